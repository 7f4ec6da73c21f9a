"""The sparse training methods: their names, and what each of them does with step and weight.

| method | the module's parameter holds | source |
|---|---|---|
| dense | W | |
| ste, sr-ste | E * W | Zhou et al., ICLR 2021 |
| asp | E * W, the mask held | Mishra et al., 2021 |
| s-ste | beta * E * sign(W) * (abs(W) - t) | Hu et al., NeurIPS 2024 |
| step | W while Adam's second moments settle, then E * W with these held | Lu et al., ICML 2023 |
| decaying-mask | (E + (1 - E) * f) * W, f to 0, or E * W, N falls | Kao et al., 2022; Bambhaniya et al., 2024 |
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.training.precondition import why_not_step
from nm2trt.training.step_hooks import innermost, optimizer_chain

Method = Literal["dense", "ste", "sr-ste", "asp", "s-ste", "step", "decaying-mask"]
METHODS: tuple[str, ...] = get_args(Method)
MaskDecay = Literal["linear", "exponential", "structured"]
MASK_DECAYS: tuple[str, ...] = get_args(MaskDecay)
PAPER_DECAY = 2e-4
STEP_BY_DEFAULT = "no method was given, so it is step (Lu et al., ICML 2023: Adam's second moments settle before masks)"

WITH_DECAY = ("sr-ste", "step")
"""Methods whose pruned weights shrink by lambda."""
_GROWING = ("ste", "sr-ste", "s-ste", "step", "decaying-mask")
_WITH_TOTAL = ("step", "decaying-mask")

MASK_DECAY_SHARE = 0.75
"""Share of all steps in which "decaying-mask" lets pruned weights fade; the rest trains hard masks."""
LAST_EXPONENTIAL_FACTOR = 0.01
"""What an exponentially decaying mask comes down to before it is hard; the public code leaves the rate to its user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRule:
    """A method with its schedule, counted in optimizer steps.

    Attributes:
        method: Its name.
        decay: lambda of SR-STE; 0 for methods without it.
        mask_update_interval: Steps between new masks.
        dense_steps: Steps before masks are imposed.
        total_steps: Of the whole training; None where nothing depends on it.
        decay_warmup: Share of all steps in which lambda grows from 0.
        hold_masks: With "asp": the masks are those that the weights have already.
        mask_decay: How the mask of "decaying-mask" decays.
    """

    method: str
    decay: float = 0.0
    mask_update_interval: int = 1
    dense_steps: int = 0
    total_steps: int | None = None
    decay_warmup: float = 0.0
    hold_masks: bool = False
    mask_decay: str = "linear"

    @property
    def keeps_residual(self) -> bool:
        """Whether pruned weights have values that may grow back."""
        return self.method in _GROWING

    def decay_at(self, steps: int) -> float:
        """Lambda of the step after `steps` others (Huang et al., AAAI 2025: it grows linearly, then stays)."""
        ramp = self.decay_warmup * (self.total_steps or 0)
        return self.decay * min(1.0, steps / ramp) if ramp else self.decay

    @property
    def fading_steps(self) -> int:
        """Steps before masks are hard; 0 but for "decaying-mask"."""
        if self.method != "decaying-mask" or self.total_steps is None:
            return 0
        return max(1, int(MASK_DECAY_SHARE * self.total_steps))

    def pruned_factor(self, steps: int) -> float:
        """What pruned weights are multiplied with after `steps` steps: linearly down from 1, or exp(-c * steps)."""
        if steps >= self.fading_steps or self.mask_decay == "structured":
            return 0.0
        share = steps / self.fading_steps
        return 1.0 - share if self.mask_decay == "linear" else math.exp(share * math.log(LAST_EXPONENTIAL_FACTOR))

    def kept_at(self, steps: int, pattern: NMPattern) -> int | None:
        """N after `steps` steps where the structure decays; None where it is the pattern's own."""
        if steps >= self.fading_steps or self.mask_decay != "structured":
            return None
        stages = structure_stages(pattern)
        return stages[steps * len(stages) // self.fading_steps] if stages else None


def structure_stages(pattern: NMPattern) -> list[int]:
    """N before it is the pattern's own: M - 1, M / 2, M / 4 and so on (Bambhaniya et al., 2024, SdGf-Stepwise)."""
    halves = [pattern.m >> power for power in range(1, pattern.m.bit_length())]
    return [n for n in dict.fromkeys((pattern.m - 1, *halves)) if n > pattern.n]


def check_rule(rule: MethodRule) -> MethodRule:
    """Refuse settings that do not go together.

    Raises:
        ConfigError: Names the argument.
    """
    if rule.method not in METHODS:
        raise ConfigError(f"unknown method {rule.method!r}", where="method", hint=f"choose from {', '.join(METHODS)}")
    if not 0 <= rule.decay_warmup <= 1:
        raise ConfigError("is no share of all steps in [0, 1]", where=f"decay_warmup = {rule.decay_warmup}")
    needing = f"method {rule.method!r}" if rule.method in _WITH_TOTAL else "decay_warmup" if rule.decay_warmup else None
    if needing and rule.total_steps is None:
        raise ConfigError(
            f"{needing} is a schedule over the whole training, whose length is not known",
            where="total_steps",
            hint="give the number of optimizer steps that the training will have",
        )
    if rule.mask_decay not in MASK_DECAYS:
        raise ConfigError(
            f"unknown decay of masks {rule.mask_decay!r}",
            where="mask_decay",
            hint=f"choose from {', '.join(MASK_DECAYS)}",
        )
    if rule.mask_decay != "linear" and rule.method != "decaying-mask":
        raise ConfigError(f"goes with method decaying-mask, not {rule.method}", where="mask_decay")
    if rule.decay_warmup and rule.method != "sr-ste":
        raise ConfigError(f"goes with method sr-ste, not {rule.method}", where="decay_warmup")
    if rule.method == "s-ste" and rule.mask_update_interval != 1:
        raise ConfigError(
            "s-ste thresholds the weights of every step, so its masks cannot be held between steps",
            where=f"mask_update_interval = {rule.mask_update_interval}",
        )
    if rule.hold_masks and rule.method != "asp":
        raise ConfigError(
            f"holding the masks that the weights have is what method asp does, not {rule.method}",
            where="hold_masks",
            hint="leave the method out",
        )
    if rule.method == "step" and rule.dense_steps:
        raise ConfigError(
            "step finds out itself when its masks begin, between a tenth and half of all steps",
            where=f"dense_steps = {rule.dense_steps}",
            hint="leave it out",
        )
    return rule


def choose_method(optimizer: Any, total_steps: int | None) -> Method:
    """The method where none was given: SR-STE, but STEP under an Adam that it can be had from.

    It says on stderr, as a warning, that it is STEP.

    Args:
        optimizer: What `sparsify` was given.
        total_steps: Of the whole training; without it STEP cannot be.
    """
    stepping = innermost(optimizer_chain(optimizer))
    if total_steps is None or any(why_not_step(one) for one in stepping):
        return "sr-ste"
    warnings.warn(
        f"{STEP_BY_DEFAULT} under {type(stepping[0]).__name__}; method='sr-ste' has SR-STE",
        stacklevel=3,
    )
    return "step"


def warn_of_adam(method: str, optimizer: Any) -> None:
    """Warn of masks that move under Adam."""
    name = type(optimizer).__name__
    if method in ("ste", "sr-ste") and "adam" in name.lower():
        warnings.warn(
            f"{method} under {name}: STEP (Lu et al., ICML 2023) finds that masks which still move spoil Adam's second "
            "moments; use method step, or SGD",
            stacklevel=3,
        )
