"""benchmarks/a100.py: the commands it would run are commands that nm2trt knows, and a failed step stops nothing."""

import json
import shlex
import subprocess
import sys
import tarfile

import click
import pytest
from helpers import REPOSITORY

from nm2trt.cli.main import cli

SCRIPT = REPOSITORY / "benchmarks" / "a100.py"


def a100(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=600
    )


def test_every_command_is_one_that_nm2trt_takes(tmp_path):
    result = a100("--dry-run", "-o", tmp_path / "a100")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    # Three networks: prune and two exports; FP16 and two kinds of INT8; four batches, built and profiled.
    assert len(lines) == 3 * (3 + 3 + 3 * 4 * 2)
    for line in lines:
        _, name, *arguments = shlex.split(line)
        command = cli.get_command(click.Context(cli), name)
        command.make_context(name, arguments)
    assert not (tmp_path / "a100").exists()


@pytest.mark.parametrize("wrong", [("--networks", "resnet51"), ("--precisions", "int4"), ("--batches", "1,x")])
def test_mistakes_are_told_at_once(wrong):
    assert a100(*wrong).returncode == 2


@pytest.mark.slow
def test_the_whole_way_on_a_small_network(tmp_path):
    asked = ("--networks", "tiny", "--backend", "onnxruntime", "--batches", "2", "--duration", "0.5", "--rebuilds", "1",
             "--streams", "1", "--precisions", "fp16,int8", "-o", tmp_path / "a100")  # fmt: skip
    result = a100(*asked)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((tmp_path / "a100" / "summary.json").read_text())
    assert [row["report"] for row in summary["rows"]] == ["tiny-fp16-b2", "tiny-int8-b2"]
    with tarfile.open(tmp_path / "a100.tar.gz") as packed:
        names = packed.getnames()
    assert "a100/reports/tiny-fp16-b2/report.html" in names
    assert "a100/index.html" in names
    assert not [name for name in names if name.endswith((".onnx", ".safetensors", ".plan"))]
    again = a100(*asked)
    assert again.stdout.count("there already") == len(summary["steps"])
