"""What N:M training costs: a dense step, ours, and SR-STE by autograd with argsort masks, in turn in one process.

    python benchmarks/train_step.py [--model resnet18-cifar resnet50] [--batch 32 128] [--rounds 5]
    python benchmarks/train_step.py --masks        # only the mask pass against copying

The autograd arm works as the paper's published code does: a Function whose forward sorts every group and masks the
weight, and whose backward adds decay * (1 - mask) * weight; it was written for this benchmark. Every arm has a model
and an optimizer of its own, the same seed and the same batch. Ratios are of the median step to the dense arm's.
Goal: ours at most 1.03 at batch 128; the mask pass at no less than a quarter of the copy's speed for 2:4 on float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18, resnet50

from nm2trt.pattern import NMPattern
from nm2trt.training import sparsify
from nm2trt.training.projection import project

DECAY = 2e-4
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-5}


class ArgsortMask(torch.autograd.Function):
    """SR-STE as an autograd function over [O, H, W, I] groups of 4."""

    @staticmethod
    def forward(ctx, weight):  # type: ignore[no-untyped-def]
        w_OHWI = weight.detach().permute(0, 2, 3, 1)
        groups = w_OHWI.abs().reshape(-1, 4)
        order = groups.argsort(dim=1)[:, :2]
        mask = torch.ones_like(groups).scatter_(1, order, 0.0).reshape(w_OHWI.shape).permute(0, 3, 1, 2)
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        weight, mask = ctx.saved_tensors
        return gradient + DECAY * (1 - mask) * weight


class AutogradConv(nn.Conv2d):
    """A convolution whose weight is masked in every forward pass."""

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x_BCHW, ArgsortMask.apply(self.weight), self.bias)


def network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    if name == "resnet50":
        return resnet50(weights=None), (3, 224, 224)
    model = resnet18(weights=None, num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model, (3, 32, 32)


def arm(kind: str, name: str, batch: int, layout: torch.memory_format) -> Callable[[], None]:
    torch.manual_seed(0)
    model, shape = network(name)
    x_BCHW = torch.randn(batch, *shape).to(memory_format=layout)
    y_B = torch.randint(0, 10, (batch,))
    model = model.to(memory_format=layout).train()
    if kind == "autograd":
        for module in model.modules():
            if type(module) is nn.Conv2d and module.in_channels % 4 == 0:
                module.__class__ = AutogradConv
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    if kind == "ours":
        sparsify(model, optimizer, "2:4", "sr-ste", decay=DECAY)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x_BCHW), y_B).backward()
        optimizer.step()

    return step


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def steps(name: str, batch: int, layout: torch.memory_format, rounds: int) -> None:
    arms = {kind: arm(kind, name, batch, layout) for kind in ("dense", "ours", "autograd")}
    for step in arms.values():
        step()
    taken: dict[str, list[float]] = {kind: [] for kind in arms}
    for index in range(rounds):
        order = list(arms) if index % 2 else list(reversed(arms))
        for kind in order:
            taken[kind].append(seconds(arms[kind]))
    dense = taken["dense"]
    words = "channels_last" if layout == torch.channels_last else "contiguous"
    print(f"{name:15} {words:14} batch {batch:4}  dense {1e3 * statistics.median(dense):8.1f} ms", end="")
    for kind in ("ours", "autograd"):
        ratios = sorted(mine / theirs for mine, theirs in zip(taken[kind], dense, strict=True))
        print(f"   {kind} {statistics.median(ratios):.3f}x [{ratios[0]:.3f}, {ratios[-1]:.3f}]", end="")
    print(flush=True)


def masks(rounds: int) -> None:
    """The mask pass and the whole projection over 100 MB of weights, against copying them."""
    print(f"{'weights':28} {'pattern':8} {'copy':>9} {'mask pass':>16} {'projection':>16}")
    shapes = {"linear 2048x2048": (2048, 2048), "conv 512x512x3x3": (512, 512, 3, 3)}
    for label, shape in shapes.items():
        for dtype in (torch.float32, torch.bfloat16):
            for text in ("2:4", "1:4", "2:8", "4:8", "1:16"):
                _mask_row(label, shape, dtype, text, rounds)
    _mask_row("linear, all equal", (2048, 2048), torch.float32, "2:4", rounds, ties=True)


def _mask_row(
    label: str, shape: tuple[int, ...], dtype: torch.dtype, text: str, rounds: int, *, ties: bool = False
) -> None:
    count = max(1, round(100e6 / (torch.Size(shape).numel() * dtype.itemsize)))
    make = torch.ones if ties else torch.randn
    weights = [make(shape).to(dtype) for _ in range(count)]
    targets = [torch.empty_like(weight) for weight in weights]
    bits = [torch.zeros_like(weight, dtype=torch.uint8) for weight in weights]
    size_gb = sum(weight.numel() for weight in weights) * dtype.itemsize / 1e9
    pattern = NMPattern.parse(text)
    works = {
        "copy": lambda: [target.copy_(weight) for target, weight in zip(targets, weights, strict=True)],
        "mask": lambda: [
            project(weight, None, bit, pattern, 1, impose=False) for weight, bit in zip(weights, bits, strict=True)
        ],
        "project": lambda: [
            project(weight, target, bit, pattern, 1, impose=True)
            for weight, target, bit in zip(weights, targets, bits, strict=True)
        ],
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            taken[name].append(seconds(work))
    speed = {name: size_gb / statistics.median(values[1:]) for name, values in taken.items()}
    share = {name: f"{speed[name]:6.2f} ({speed[name] / speed['copy']:.2f})" for name in ("mask", "project")}
    print(
        f"{label + ' ' + str(dtype).removeprefix('torch.'):28} {text:8} {speed['copy']:6.2f} GB/s "
        f"{share['mask']:>15} {share['project']:>16}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["resnet18-cifar", "resnet50"])
    parser.add_argument("--batch", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--masks", action="store_true")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if arguments.masks:
        masks(arguments.rounds)
        return
    for name in arguments.model:
        for batch in arguments.batch:
            for layout in (torch.contiguous_format, torch.channels_last):
                steps(name, batch, layout, arguments.rounds)


if __name__ == "__main__":
    main()
