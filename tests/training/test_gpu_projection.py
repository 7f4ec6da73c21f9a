import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nm2trt.pattern import NMPattern
from nm2trt.training import gpu_projection
from nm2trt.training.projection import Split, project_all

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="missing: triton (comes with torch on Linux)")
def test_the_kernel_under_tritons_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted_triton.py")]
    result = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout


def test_a_cpu_never_asks_for_triton():
    assert not gpu_projection.runs_on_gpu(torch.zeros(4))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        *((text, torch.float32) for text in ("1:2", "1:4", "4:8", "1:16", "1:32", "3:5", "2:40")),
        *(("2:4", dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)),
        ("3:5", torch.bfloat16),
    ],
)
def test_a_gpus_kernel_splits_like_a_cpu(monkeypatch, text, dtype):
    pattern = NMPattern.parse(text)
    generator = torch.Generator().manual_seed(0)
    conv = torch.randn(16, 2 * pattern.m, 3, 3, generator=generator).to(dtype)
    weights = [
        torch.randint(-20, 21, (64, 3 * pattern.m), generator=generator).to(dtype),
        torch.randn(512, 64 * pattern.m, generator=generator).to(dtype),
        conv,
        conv.clone().to(memory_format=torch.channels_last),
    ]
    weights[1].view(-1)[5:9] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0], dtype=dtype)
    sides = []
    for device in ("cpu", "cuda"):
        moved = [weight.clone().to(device) for weight in weights]
        sides.append(
            [
                Split(one, torch.empty_like(one), torch.zeros_like(one, dtype=torch.uint8), pattern, 1, impose=True)
                for one in moved
            ]
        )
    expected = [int(count) for count in project_all(sides[0])]
    launched = []
    run = gpu_projection._run
    monkeypatch.setattr(gpu_projection, "_run", lambda launch, *more: launched.append(launch) or run(launch, *more))
    assert [int(count) for count in project_all(sides[1])] == expected
    assert launched
    assert not gpu_projection.KernelState.off
    for cpu, gpu in zip(*sides, strict=True):
        for one, other in ((cpu.weight, gpu.weight), (cpu.residual, gpu.residual)):
            assert torch.equal(torch.nan_to_num(one), torch.nan_to_num(other.cpu()))
        assert torch.equal(cpu.bits, gpu.bits.cpu())
