import subprocess
import sys

from helpers import REPOSITORY


def test_the_one_line_example_ends_sparse_and_trained():
    result = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / "own_loop.py", "--epochs", "3"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()
    assert lines[-1].endswith(": 2")
    assert float(lines[-2].split("accuracy ")[1].split(",")[0]) > 0.9
    assert any("the classifier stays dense" in line for line in lines)
