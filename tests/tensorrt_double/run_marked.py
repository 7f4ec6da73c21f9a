"""Run every test marked `tensorrt` on each version of the double; `make test` calls it after all others.

    python tests/tensorrt_double/run_marked.py [PYTEST ARGUMENTS]

Ends with pytest's exit code. Where the double is not prepared, it says so and ends well: the tests' own skips do, too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from tensorrt_double.double import VERSIONS, double_environment, missing

TESTS = Path(__file__).resolve().parent.parent
PYTEST = [
    "-m",
    "pytest",
    "-q",
    "-m",
    "tensorrt",
    "--numprocesses",
    "auto",
    "--maxprocesses",
    "8",
    "--dist",
    "loadscope",
]


def find_marked_files() -> list[Path]:
    """Files of tests that name the mark: collecting all others takes half a minute for each version and worker."""
    return [path for path in sorted(TESTS.rglob("test_*.py")) if "mark.tensorrt" in path.read_text("utf-8")]


def main(arguments: list[str]) -> int:
    """Run the versions one after the other."""
    code = 0
    files = [str(path) for path in find_marked_files()]
    for version in VERSIONS:
        reason = missing(version)
        if reason:
            print(f"tests marked tensorrt did not run on {version}: missing {reason}")
            continue
        print(f"tests marked tensorrt, on the double of TensorRT {version}:", flush=True)
        command = [sys.executable, *PYTEST, *files, *arguments]
        code = subprocess.run(command, check=False, env=double_environment(version)).returncode or code
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
