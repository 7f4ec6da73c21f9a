"""What N:M training costs on a GPU: a dense step, ours with and without Triton, in turn in one process.

    python benchmarks/train_step_gpu.py [--model resnet50] [--batch 256] [--rounds 40] [-o step.json]

Every variant has a network and an optimizer of its own, the same seed and the same batch on the GPU; the forward pass
runs under bf16 autocast, weights and activations are channels_last. A round times one step of each variant in shuffled
order by CUDA events; ratios are medians of the rounds' ratios with a bootstrap interval, and dense-repeat over dense is
the noise. Goal: at most 1.02 times the dense step for ResNet-50 at batch 256.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nm2trt.profile.statistics import paired_ratio
from nm2trt.training import gpu_projection, sparsify

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-5}
VARIANTS = ("dense", "dense-repeat", "triton", "torch")
"""`triton` and `torch` are the same method; the second with the kernel switched off."""


def network(name: str) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None)


class Step:
    """A network with its optimizer, and one training step."""

    def __init__(self, kind: str, name: str, batch: int, size: int) -> None:
        torch.manual_seed(0)
        self.kind = kind
        self.model = network(name).cuda().to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD)
        self.x_BCHW = torch.randn(batch, 3, size, size, device="cuda").to(memory_format=torch.channels_last)
        self.y_B = torch.randint(0, 1000, (batch,), device="cuda")
        self.sparsifier = None
        if kind in ("triton", "torch"):
            with WithoutTriton(kind == "torch"):
                self.sparsifier = sparsify(self.model, self.optimizer, "2:4", "sr-ste")

    def run(self) -> None:
        """Forward, backward, step."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(self.model(self.x_BCHW), self.y_B)
        loss.backward()
        with WithoutTriton(self.kind == "torch"):
            self.optimizer.step()

    def hooks(self) -> None:
        """Only what is done around the optimizer's step, and that step."""
        with WithoutTriton(self.kind == "torch"):
            self.optimizer.step()


class WithoutTriton:
    """Switch the kernel off for a while."""

    def __init__(self, off: bool) -> None:
        self.off = off

    def __enter__(self) -> None:
        self.before = gpu_projection.KernelState.off
        gpu_projection.KernelState.off = self.before or self.off

    def __exit__(self, *_: object) -> None:
        gpu_projection.KernelState.off = self.before


def milliseconds(work: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def kernels(work: Callable[[], None]) -> tuple[int, float]:
    """Number of kernels, copies and fills, and their summed milliseconds."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        work()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    return len(events), sum(event.device_time for event in events) / 1000


def syncs(work: Callable[[], None]) -> int:
    """Times that the host waited for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        work()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message).lower() for one in caught)


def measure(name: str, batch: int, size: int, rounds: int) -> dict[str, object]:
    steps = {kind: Step(kind, name, batch, size) for kind in VARIANTS}
    for step in steps.values():
        for _ in range(4):
            step.run()
    rng = np.random.default_rng(0)
    whole: dict[str, list[float]] = {kind: [] for kind in VARIANTS}
    around: dict[str, list[float]] = {kind: [] for kind in VARIANTS}
    for _ in range(rounds):
        for index in rng.permutation(len(VARIANTS)):
            kind = VARIANTS[index]
            whole[kind].append(milliseconds(steps[kind].run))
            around[kind].append(milliseconds(steps[kind].hooks))
    found: dict[str, object] = {
        "model": name,
        "batch": batch,
        "image": size,
        "rounds": rounds,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton_works": not gpu_projection.KernelState.off,
        "variants": {},
    }
    dense = np.array(whole["dense"])[:, None]
    for kind, step in steps.items():
        ratio = paired_ratio(np.array(whole[kind])[:, None], dense, seed=0)
        count, kernel_ms = kernels(step.hooks)
        found["variants"][kind] = {
            "step_ms": float(np.median(whole[kind])),
            "over_dense": [ratio.value, ratio.low, ratio.high],
            "optimizer_ms": float(np.median(around[kind])),
            "optimizer_kernels": count,
            "optimizer_kernel_ms": kernel_ms,
            "host_waits_in_a_step": [syncs(step.run), syncs(step.run)][1],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.model, arguments.batch, arguments.image, arguments.rounds)
    for kind, row in found["variants"].items():
        value, low, high = row["over_dense"]
        print(
            f"{kind:13} step {row['step_ms']:8.2f} ms  {value:.4f}x [{low:.4f}, {high:.4f}] of dense  optimizer "
            f"{row['optimizer_ms']:6.2f} ms in {row['optimizer_kernels']} kernels ({row['optimizer_kernel_ms']:.2f} ms)"
            f"  host waits {row['host_waits_in_a_step']}",
            flush=True,
        )
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
