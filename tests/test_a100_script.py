"""benchmarks/a100.py: the commands it would run are commands that nm2trt knows, and a failed step stops nothing."""

import json
import os
import shlex
import signal
import subprocess
import tarfile
import time

import click
import pytest
from helpers import REPOSITORY, forked_python
from tensorrt_double.double import VERSIONS, double_environment, require_double

from nm2trt.artifacts.host import redact_machine
from nm2trt.cli.main import cli

SCRIPT = REPOSITORY / "benchmarks" / "a100.py"


def a100(*arguments, start=None):
    """Run the script; `start`, a Python and its environment, is that of the tests where it is None."""
    python, environment = start or forked_python(os.environ)
    command = [python, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200, env=environment)


def test_every_command_is_one_that_nm2trt_takes(tmp_path, monkeypatch):
    # Reading --threads settles how this process's idle threads wait; monkeypatch puts it back.
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
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


def ledger(folder):
    return {one["step"]: one for one in json.loads((folder / "steps.json").read_text())}


@pytest.mark.slow
def test_end_to_end_on_a_small_network_after_a_failed_step(tmp_path):
    asked = ("--networks", "tiny", "--backend", "onnxruntime", "--batches", "2", "--duration", "0.5", "--rebuilds", "1",
             "--streams", "1", "--precisions", "fp16,int8", "-o", tmp_path / "a100")  # fmt: skip
    sparse = tmp_path / "a100" / "networks" / "tiny" / "sparse" / "model.safetensors"
    # A folder where the step writes a file: it fails, and its output is there all the same.
    sparse.mkdir(parents=True)
    first = a100(*asked)
    assert first.returncode == 1
    assert ledger(tmp_path / "a100")["tiny-prune"]["exit"] != 0
    sparse.rmdir()
    second = a100(*asked)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "tiny-prune: exit 0" in second.stdout
    assert "tiny-dense-export: there already, exit 0" in second.stdout
    summary = json.loads((tmp_path / "a100" / "summary.json").read_text())
    assert [row["report"] for row in summary["rows"]] == ["tiny-fp16-b2", "tiny-int8-b2"]
    with tarfile.open(tmp_path / "a100.tar.gz") as packed:
        names = packed.getnames()
    assert "a100/reports/tiny-fp16-b2/report.html" in names
    assert "a100/index.html" in names
    assert not [name for name in names if name.endswith((".onnx", ".safetensors", ".plan"))]
    again = a100(*asked)
    assert again.stdout.count("there already, exit 0") == len(summary["steps"])


SMI = """    Product Name                          : NVIDIA A100-SXM4-80GB
    Serial Number                         : 1560221007911
    GPU UUID                              : GPU-2f7b0a8e-9c4e-1f4a-8f6e-000000000000
        Bus Id                            : 00000000:07:00.0
    Board ID                              : 0x700
    Power Draw                            : 61.53 W
        Process ID                        : 4711
            Name                          : /srv/somebody/python
torch==2.14.1
nm2trt @ file:///srv/somebody/nm2trt
-e git+ssh://somebody@host/nm2trt#egg=nm2trt
"""


def test_what_identifies_a_machine_stays_there():
    kept = redact_machine(SMI)
    assert kept.splitlines() == [
        "    Product Name                          : NVIDIA A100-SXM4-80GB",
        "    Power Draw                            : 61.53 W",
        "torch==2.14.1",
    ]


@pytest.mark.slow
def test_the_rehearsal_ends_well_after_a_kill(tmp_path):
    """All three networks at small size, on TensorRT's double: killed within a build, and called again."""
    environment = double_environment(require_double(VERSIONS[-1]))
    start = forked_python(environment, environment)
    folder = tmp_path / "a100"
    asked = ("--rehearse", "--precisions", "int8", "--batches", "1", "-o", folder)
    process = subprocess.Popen(
        [start[0], str(SCRIPT), *map(str, asked)],
        env=start[1],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if "small-resnet50-sparse-int8-calibrate: exit 0" in line:
            break
    time.sleep(2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = ledger(folder)
    assert len(before) >= 5
    result = a100(*asked, start=start)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("there already, exit 0") == len(before)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["failed"] == 0
    assert [row["report"] for row in summary["rows"]] == [
        "small-bert-int8-b1", "small-resnet50-int8-b1", "small-vit_b_16-int8-b1"
    ]  # fmt: skip
    assert {row["baseline"] for row in summary["rows"]} == {"dense"}
