"""A network beyond protobuf's 2 GiB, through every check. Its figures are in docs/export.md."""

import json
import shutil

import pytest
import torch
from helpers import export_run
from safetensors.torch import save_file
from torch import nn

from nm2trt.artifacts import BuildDocument, sha256_of
from nm2trt.verify import verify_path

WIDTH, DEPTH = 8192, 9
NEEDED_BYTES = 12 << 30


def stack(input_shape):
    """Nine Linears of 8192 by 8192: 2.4 GB in float32."""
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH)))


def available_bytes():
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))


@pytest.mark.slow
def test_more_than_two_gigabytes_are_exported_verified_and_compared(tmp_path):
    free, disk = available_bytes(), shutil.disk_usage(tmp_path).free
    if free < NEEDED_BYTES or disk < NEEDED_BYTES:
        pytest.skip(f"needs 12 GiB of free memory and disk, has {free / 2**30:.1f} and {disk / 2**30:.1f}")
    # 2:4 by place, which costs no sorting of 600 million weights.
    kept = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(WIDTH // 4)
    torch.manual_seed(0)
    save_file(
        {f"{i}.weight": (torch.rand(WIDTH, WIDTH) - 0.5).mul_(0.03).mul_(kept) for i in range(DEPTH)},
        tmp_path / "stack.safetensors",
    )
    about = {"model": f"{__name__}:stack", "input_shape": str(WIDTH)}
    build = export_run(tmp_path / "stack.safetensors", tmp_path / "b", builder="none", batch="1:2:2", about=about)
    (tmp_path / "stack.safetensors").unlink()
    data = tmp_path / "b" / "model.onnx.data"
    assert data.stat().st_size == 4 * WIDTH * WIDTH * DEPTH > 2 << 30
    assert (tmp_path / "b" / "model.onnx").stat().st_size < 1 << 20
    assert build.verdict == "pass"
    assert build.files["model.onnx.data"].sha256 == sha256_of(data)
    assert build.facts.legal.evidence.startswith(f"{DEPTH} of {DEPTH} layers")
    assert BuildDocument.read(tmp_path / "b") == build
    checked = verify_path(tmp_path / "b" / "model.onnx")
    assert checked.verdict == "pass"
    print(json.dumps({"error": build.numerics.max_rel_error, "size_bytes": data.stat().st_size}))
    shutil.rmtree(tmp_path / "b")
