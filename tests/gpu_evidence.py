"""`make test-gpu`: runs the tests that need a GPU and packs what they saw into one file that can be sent on.

    python tests/gpu_evidence.py build/gpu-evidence.tar.gz [PYTEST ARGUMENTS]

The archive holds junit.xml, versions, `nvidia-smi -q`, and build.json, logs and inspector output of every engine that
the tests built; no weights and no plans. Ends with pytest's exit code, and 4 where no test ran.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from engine_runs import EVIDENCE_VARIABLE

EXIT_MACHINE = 4


def main(target, *arguments):
    """Run, collect, pack."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "gpu-evidence"
        folder.mkdir()
        junit = folder / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu or tensorrt", f"--junitxml={junit}", *arguments]
        code = subprocess.run(command, env=os.environ | {EVIDENCE_VARIABLE: str(folder)}, check=False).returncode
        ran = collect(folder, junit, code)
        with tarfile.open(target, "w:gz") as archive:
            archive.add(folder, folder.name)
    print(f"{target}: {ran} tests ran on this machine, pytest ended with {code}")
    return code if ran or code else EXIT_MACHINE


def collect(folder, junit, code):
    """Write what the machine is, and count the tests that were not skipped."""
    from nm2trt.artifacts import host_record

    suites = ET.parse(junit).getroot().iter("testsuite") if junit.is_file() else []
    totals = {"tests": 0, "skipped": 0, "failures": 0, "errors": 0}
    for suite in suites:
        for name in totals:
            totals[name] += int(suite.get(name, 0))
    ran = totals["tests"] - totals["skipped"]
    facts = {"host": host_record().model_dump(), "pytest": totals | {"exit_code": code, "ran": ran}}
    (folder / "machine.json").write_text(json.dumps(facts, indent=2) + "\n")
    smi = shutil.which("nvidia-smi")
    if smi is None:
        words = "nvidia-smi: not found\n"
    else:
        words = subprocess.run([smi, "-q"], capture_output=True, text=True, check=False).stdout
    # Serial numbers and ids of the machine are nobody's business.
    private = ("Serial Number", "GPU UUID", "Board ID", "Bus Id", "Hostname", "Process ID", "Name  ")
    kept = [line for line in words.splitlines() if not line.strip().startswith(private)]
    (folder / "nvidia-smi.txt").write_text("\n".join(kept) + "\n")
    return ran


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
