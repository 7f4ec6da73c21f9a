import os
import subprocess

from helpers import REPOSITORY, forked_python


def test_the_one_line_example_ends_sparse_and_trained():
    python, environment = forked_python(os.environ)
    result = subprocess.run(
        [python, REPOSITORY / "examples" / "own_loop.py", "--epochs", "3"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()
    assert lines[-1].endswith(": 2")
    assert float(lines[-2].split("accuracy ")[1].split(",")[0]) > 0.9
    assert any("the classifier stays dense" in line for line in lines)
