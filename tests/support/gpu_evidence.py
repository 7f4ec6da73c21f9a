"""`make test-gpu`: runs the tests that need a GPU and packs what they saw into one file that can be sent on.

    python tests/support/gpu_evidence.py build/gpu-evidence.tar.gz [PYTEST ARGUMENTS]

The archive holds junit.xml, versions, `nvidia-smi -q`, and build.json, logs and inspector output of every engine that
the tests built; no weights and no plans. Ends with pytest's exit code, and 4 where no test of a mark ran.
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


MARKS = {"tensorrt": "tensorrt", "gpu": "gpu and not tensorrt"}
"""Mark -> what pytest is asked for: each has to have run, or TensorRT's tests could all skip beside one that runs."""


def main(target, *arguments):
    """Run, collect, pack."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    codes, ran = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "gpu-evidence"
        folder.mkdir()
        for mark, wanted in MARKS.items():
            junit = folder / f"junit-{mark}.xml"
            command = [sys.executable, "-m", "pytest", "-m", wanted, f"--junitxml={junit}", *arguments]
            environment = os.environ | {EVIDENCE_VARIABLE: str(folder)}
            codes[mark] = subprocess.run(command, env=environment, check=False).returncode
            ran[mark] = count_run(junit)
        describe(folder, codes, ran)
        with tarfile.open(target, "w:gz") as archive:
            archive.add(folder, folder.name)
    for mark in MARKS:
        print(f"{target}: {ran[mark]} tests marked {mark} ran on this machine, pytest ended with {codes[mark]}")
    return exit_code(codes, ran)


def exit_code(codes, ran):
    """Pytest's own where tests failed; EXIT_MACHINE where no test of a mark ran; else 0."""
    failed = [code for mark, code in codes.items() if code and ran[mark]]
    return failed[0] if failed else 0 if all(ran.values()) else EXIT_MACHINE


def count_run(junit):
    """How many tests were not skipped."""
    suites = ET.parse(junit).getroot().iter("testsuite") if junit.is_file() else []
    return sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)


def describe(folder, codes, ran):
    """Write what the machine is."""
    from nm2trt.artifacts import host_record
    from nm2trt.artifacts.host import redact_machine

    facts = {
        "host": host_record().model_dump(),
        "pytest": {mark: {"exit": codes[mark], "ran": ran[mark]} for mark in ran},
    }
    (folder / "machine.json").write_text(json.dumps(facts, indent=2) + "\n")
    smi = shutil.which("nvidia-smi")
    if smi is None:
        words = "nvidia-smi: not found\n"
    else:
        words = subprocess.run([smi, "-q"], capture_output=True, text=True, check=False).stdout
    (folder / "nvidia-smi.txt").write_text(redact_machine(words))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
