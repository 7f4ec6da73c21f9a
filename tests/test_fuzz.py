"""A short run of the fuzzer, so that it stays alive; docs/reliability.md has the long one."""

import subprocess
import sys

import pytest
from helpers import REPOSITORY


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="missing: Linux's limits on memory")
def test_broken_files_are_judged_or_refused():
    result = subprocess.run(
        [sys.executable, REPOSITORY / "fuzz" / "readers.py", "--files", "240", "--first", "1000"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    *_, counts, last = result.stdout.splitlines()
    assert last.startswith("240 files, 0 findings")
    # Every format took part, and something of it was refused.
    for name in ("json", "npz", "onnx", "pt", "safetensors"):
        assert f"{name} refused" in counts
