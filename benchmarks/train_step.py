"""What N:M training costs: a dense step, ours, and SR-STE by autograd with argsort masks, in turn in one process.

    python benchmarks/train_step.py [--model resnet18-cifar resnet50] [--batch 32 128] [--rounds 5]
    python benchmarks/train_step.py --masks        # only the mask pass against copying
    python benchmarks/train_step.py --hooks        # only what is done around the optimizer's step
    python benchmarks/train_step.py --methods --model resnet18-cifar --batch 32    # every method against dense

The autograd variant works as the paper's published code does: a Function whose forward sorts every group and masks the
weight, and whose backward adds decay * (1 - mask) * weight; it was written for this benchmark. Every variant has a
model and an optimizer of its own, the same seed and the same batch; ratios are medians of the ratio of two neighboring
steps. Each figure stands twice, by the clock and in processor time of all threads: on a machine with other work only
the second means something, and it counts what threads spend waiting for each other, too. Goal: ours at most 1.03 at
batch 128; the mask pass at no less than a quarter of the copy's speed for 2:4 on float32.

ResNet-50 takes 224x224 images, and at batch 128 about 19 GB of memory; where that is not free, the row says so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18, resnet50

from nm2trt.pattern import NMPattern
from nm2trt.training import sparsify
from nm2trt.training.projection import Split, project_all
from nm2trt.training.teacher import distillation_divergence

DECAY = 2e-4
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-5}
ADAMW = {"lr": 1e-3, "weight_decay": 1e-2}
TEACHER_WEIGHT = 0.67
_ENDLESS = 1_000_000
METHODS: dict[str, dict[str, Any]] = {
    "dense": {},
    "ste": {"method": "ste"},
    "sr-ste": {"method": "sr-ste"},
    "sr-ste, decay_warmup": {"method": "sr-ste", "decay_warmup": 0.5, "total_steps": _ENDLESS},
    "sr-ste, teacher": {"method": "sr-ste"},
    "s-ste": {"method": "s-ste"},
    "decaying-mask, fading": {"method": "decaying-mask", "total_steps": _ENDLESS},
    "decaying-mask, structured": {"method": "decaying-mask", "mask_decay": "structured", "total_steps": _ENDLESS},
    "decaying-mask, hard": {"method": "decaying-mask", "total_steps": 1},
    "asp, masks held": {"method": "asp"},
    "dense, AdamW": {},
    "step, before the switch": {"method": "step", "total_steps": _ENDLESS},
    "step, after it": {"method": "step", "total_steps": 2},
}
"""Options of `sparsify`; those with AdamW come last and are compared with its dense steps."""
_WARM_UP_STEPS = 3
"""After these, STEP of two steps has switched and a mask that decays in one is hard."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPES = {"resnet18-cifar": (3, 32, 32), "resnet50": (3, 224, 224)}
_LINEAR = {"resnet18-cifar": ["fc"], "resnet50": ["fc"]}
GB_PER_SAMPLE = {"resnet18-cifar": 0.02, "resnet50": 0.13}
"""What activations take; 2 GB more are torch, three models and their optimizers."""


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


def network(name: str) -> nn.Module:
    if name == "resnet50":
        return resnet50(weights=None)
    model = resnet18(weights=None, num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def model_and_optimizer(name: str, layout: torch.memory_format) -> tuple[nn.Module, torch.optim.SGD]:
    model = network(name).to(memory_format=layout).train()
    return model, torch.optim.SGD(model.parameters(), **SGD)


def variant(kind: str, name: str, batch: int, layout: torch.memory_format) -> Callable[[], None]:
    torch.manual_seed(0)
    model, optimizer = model_and_optimizer(name, layout)
    x_BCHW = torch.randn(batch, *SHAPES[name]).to(memory_format=layout)
    y_B = torch.randint(0, 10, (batch,))
    if kind == "autograd":
        for module in model.modules():
            if type(module) is nn.Conv2d and module.in_channels % 4 == 0:
                module.__class__ = AutogradConv
    if kind == "ours":
        sparsify(model, optimizer, "2:4", "sr-ste", decay=DECAY)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x_BCHW), y_B).backward()
        optimizer.step()

    return step


class Taken(NamedTuple):
    """Seconds."""

    clock: float
    processor: float


def seconds(work: Callable[[], object]) -> Taken:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return Taken(time.perf_counter() - clock, time.process_time() - processor)


def ratios(mine: list[float], theirs: list[float]) -> str:
    each = sorted(one / other for one, other in zip(mine, theirs, strict=True))
    return f"{statistics.median(each):.3f}x [{each[0]:.3f}, {each[-1]:.3f}]"


def free_gb() -> float:
    """What a process can still take; a large number where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(int(line.split()[1]) / 1e6 for line in lines if line.startswith("MemAvailable"))


def steps(name: str, batch: int, words: str, rounds: int) -> None:
    """A line each by the clock and in processor time."""
    print(f"{name:15} {words:14} batch {batch:4}", end="", flush=True)
    needed_gb = GB_PER_SAMPLE[name] * batch + 2
    if needed_gb > free_gb():
        print(f"  left out: needs about {needed_gb:.0f} GB, {free_gb():.0f} GB are free")
        return
    variants = {kind: variant(kind, name, batch, LAYOUTS[words]) for kind in ("dense", "ours", "autograd")}
    for step in variants.values():
        step()
    taken: dict[str, list[Taken]] = {kind: [] for kind in variants}
    for index in range(rounds):
        for kind in variants if index % 2 else reversed(variants):
            taken[kind].append(seconds(variants[kind]))
    for measure, label in ((0, "clock"), (1, "processor")):
        dense = [one[measure] for one in taken["dense"]]
        line = "  ".join(
            f"{kind} {ratios([one[measure] for one in taken[kind]], dense)}" for kind in list(variants)[1:]
        )
        print(
            f"{'' if measure == 0 else ' ' * 42}  {label:9} dense {statistics.median(dense):7.3f} s  {line}", flush=True
        )


def bare_hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The update alone: gradient += decay * R, weight += R, step, split. Nothing is watched, restored or counted."""
    splits = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels % 4 == 0:
            weight = module.weight.detach()
            residual, bits = torch.zeros_like(weight), torch.zeros_like(weight, dtype=torch.uint8)
            splits.append((module.weight, Split(weight, residual, bits, NMPattern(2, 4), 1, impose=True)))
    project_all([split for _, split in splits])

    @torch.no_grad()
    def before(*_: object) -> None:
        for parameter, split in splits:
            parameter.grad.add_(split.residual, alpha=DECAY)
            split.weight.add_(split.residual)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(lambda *_: project_all([split for _, split in splits]) and None)


def hooks(rounds: int) -> None:
    """The optimizer's step alone, with the bare update around it, and with `sparsify`, in turn in one process."""
    print("Median ms of the step; added: least of all rounds less the least of the step alone; clock / processor")
    for name in SHAPES:
        for words, layout in LAYOUTS.items():
            optimizers = {}
            for kind in ("alone", "bare", "sparsify"):
                torch.manual_seed(0)
                model, optimizer = model_and_optimizer(name, layout)
                for parameter in model.parameters():
                    parameter.grad = torch.randn_like(parameter)
                if kind == "bare":
                    bare_hooks(model, optimizer)
                if kind == "sparsify":
                    sparsify(model, optimizer, "2:4", "sr-ste", decay=DECAY, exclude=_LINEAR[name])
                optimizers[kind] = (model, optimizer)
            taken: dict[str, list[Taken]] = {kind: [] for kind in optimizers}
            for index in range(rounds + 1):
                for kind in optimizers if index % 2 else reversed(optimizers):
                    taken[kind].append(seconds(optimizers[kind][1].step))
            best = {kind: least(values[1:]) for kind, values in taken.items()}
            print(f"{name:15} {words:14}", end="")
            for kind in optimizers:
                median = statistics.median(one.clock for one in taken[kind][1:])
                print(f"  {kind} {1e3 * median:6.1f}", end="")
                if kind != "alone":
                    added = [one - other for one, other in zip(best[kind], best["alone"], strict=True)]
                    print(f" (added {1e3 * added[0]:5.1f} / {1e3 * added[1]:5.1f})", end="")
            print(f"  sparsify to bare {best['sparsify'].clock / best['bare'].clock:.3f}x", flush=True)


class MethodStep:
    """A network of its own that one method trains."""

    def __init__(self, label: str, name: str, batch: int, layout: torch.memory_format) -> None:
        torch.manual_seed(0)
        self.model = network(name).to(memory_format=layout).train()
        self.uses_adam = label.startswith("step") or label.endswith("AdamW")
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(self.model.parameters(), **ADAMW)
            if self.uses_adam
            else torch.optim.SGD(self.model.parameters(), **SGD)
        )
        self.teacher = network(name).to(memory_format=layout).eval() if label.endswith("teacher") else None
        self.x_BCHW = torch.randn(batch, *SHAPES[name]).to(memory_format=layout)
        self.y_B = torch.randint(0, 10, (batch,))
        if METHODS[label]:
            sparsify(self.model, self.optimizer, "2:4", decay=DECAY, exclude=_LINEAR[name], **METHODS[label])

    def backward(self) -> None:
        """All of a step but the optimizer's own."""
        self.optimizer.zero_grad()
        outputs = self.model(self.x_BCHW)
        loss = F.cross_entropy(outputs, self.y_B)
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher(self.x_BCHW)
            loss = TEACHER_WEIGHT * distillation_divergence(outputs, taught, 1.0) + (1 - TEACHER_WEIGHT) * loss
        loss.backward()

    def step(self) -> tuple[Taken, Taken]:
        """The whole step and the optimizer's part of it."""
        rest = seconds(self.backward)
        own = seconds(self.optimizer.step)
        return Taken(rest.clock + own.clock, rest.processor + own.processor), own


def method_steps(name: str, batch: int, words: str, rounds: int) -> None:
    """Whole steps of every method and of dense training, in turn in one process."""
    steps = {label: MethodStep(label, name, batch, LAYOUTS[words]) for label in METHODS}
    for one in steps.values():
        for _ in range(_WARM_UP_STEPS):
            one.step()
    whole: dict[str, list[Taken]] = {label: [] for label in steps}
    own: dict[str, list[Taken]] = {label: [] for label in steps}
    for index in range(rounds):
        for label in steps if index % 2 else reversed(steps):
            taken = steps[label].step()
            whole[label].append(taken[0])
            own[label].append(taken[1])
    print(f"{name}, {words}, batch {batch}, {rounds} rounds, 2:4; each method against dense steps of its optimizer")
    print(f"{'':27} {'by the clock':26} {'processor time':26} ms added to the optimizer's step: clock, processor")
    for label, one in steps.items():
        dense = "dense, AdamW" if one.uses_adam else "dense"
        if label == dense:
            clock, processor = (statistics.median(taken[measure] for taken in whole[label]) for measure in (0, 1))
            print(f"{label:27} {clock:7.3f} s{'':18} {processor:7.3f} s", flush=True)
            continue
        words_of = [
            ratios([taken[measure] for taken in whole[label]], [taken[measure] for taken in whole[dense]])
            for measure in (0, 1)
        ]
        added = [
            1e3 * statistics.median(a[measure] - b[measure] for a, b in zip(own[label], own[dense], strict=True))
            for measure in (0, 1)
        ]
        print(f"{label:27} {words_of[0]:26} {words_of[1]:26} {added[0]:6.1f} {added[1]:6.1f}", flush=True)


def least(taken: list[Taken]) -> Taken:
    return Taken(min(one.clock for one in taken), min(one.processor for one in taken))


def masks(rounds: int) -> None:
    """The mask pass and the whole split over 100 MB of weights, against copying them."""
    print(
        "GB/s of weights by the clock (share of the copy's speed by the clock, in processor time), least of all rounds"
    )
    print(f"{'weights':42} {'pattern':8} {'copy':>8} {'mask':>20} {'mask, split':>20}")
    matrix, kernel = (2048, 2048), (512, 512, 3, 3)
    for dtype in (torch.float32, torch.bfloat16):
        for text in ("2:4", "1:4", "2:8", "4:8", "1:16"):
            _mask_row("linear 2048x2048", torch.randn(matrix), dtype, text, rounds)
            _mask_row("conv 512x512x3x3", torch.randn(kernel), dtype, text, rounds)
            last = torch.randn(kernel).to(memory_format=torch.channels_last)
            _mask_row("conv 512x512x3x3 channels_last", last, dtype, text, rounds)
    _mask_row("linear 2048x2048, all equal", torch.ones(matrix), torch.float32, "2:4", rounds)
    _mask_row("linear 2048x2048, all equal", torch.ones(matrix), torch.float32, "1:16", rounds)


def _mask_row(label: str, weight: torch.Tensor, dtype: torch.dtype, text: str, rounds: int) -> None:
    count = max(1, round(100e6 / (weight.numel() * dtype.itemsize)))
    weights = [weight.to(dtype).clone() for _ in range(count)]
    targets = [torch.empty_like(one) for one in weights]
    bits = [torch.zeros_like(one, dtype=torch.uint8) for one in weights]
    size_gb = sum(one.numel() for one in weights) * dtype.itemsize / 1e9
    pattern = NMPattern.parse(text)
    recorded = [Split(one, None, bit, pattern, 1, impose=False) for one, bit in zip(weights, bits, strict=True)]
    imposed = [
        Split(one, target, bit, pattern, 1, impose=True)
        for one, target, bit in zip(weights, targets, bits, strict=True)
    ]
    works: dict[str, Callable[[], object]] = {
        "copy": lambda: [target.copy_(one) for target, one in zip(targets, weights, strict=True)],
        "mask": lambda: project_all(recorded),
        "split": lambda: project_all(imposed),
    }
    taken: dict[str, list[Taken]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            taken[name].append(seconds(work))
    best = {name: least(values[1:]) for name, values in taken.items()}
    line = "".join(
        f" {size_gb / best[name].clock:6.2f} ({best['copy'].clock / best[name].clock:.2f},"
        f" {best['copy'].processor / best[name].processor:.2f})".rjust(21)
        for name in ("mask", "split")
    )
    words = f"{label} {str(dtype).removeprefix('torch.')}"
    print(f"{words:42} {text:8} {size_gb / best['copy'].clock:8.2f}{line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--layout", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--rounds", type=int, default=5)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--masks", action="store_true")
    only.add_argument("--hooks", action="store_true")
    only.add_argument("--methods", action="store_true")
    arguments = parser.parse_args()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} cores{load}", flush=True)
    if arguments.masks:
        masks(arguments.rounds)
    elif arguments.hooks:
        hooks(arguments.rounds)
    else:
        measured = method_steps if arguments.methods else steps
        for name in arguments.model:
            for batch in arguments.batch:
                for words in arguments.layout:
                    measured(name, batch, words, arguments.rounds)


if __name__ == "__main__":
    main()
