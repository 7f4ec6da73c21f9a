"""The sparse training methods: their names, and what each of them does with step and weight.

| method | the module's parameter holds | source |
|---|---|---|
| dense | W | |
| ste, sr-ste | E * W | Zhou et al., ICLR 2021 |
| asp | E * W, the mask held | Mishra et al., 2021 |
| s-ste | beta * E * sign(W) * (abs(W) - t) | Hu et al., NeurIPS 2024 |
| decaying-mask | (E + (1 - E) * f) * W, f from 1 to 0 | Kao et al., 2022; Bambhaniya et al., 2024 |
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nm2trt.errors import ConfigError

Method = Literal["dense", "ste", "sr-ste", "asp", "s-ste", "decaying-mask"]
METHODS: tuple[str, ...] = get_args(Method)
PAPER_DECAY = 2e-4

_GROWING = ("ste", "sr-ste", "s-ste", "decaying-mask")
_WITH_TOTAL = ("decaying-mask",)

MASK_DECAY_SHARE = 0.75
"""Share of all steps in which "decaying-mask" lets pruned weights fade; the rest trains hard masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRule:
    """A method with its schedule, counted in optimizer steps.

    Attributes:
        method: Its name.
        decay: lambda of SR-STE; 0 for methods without it.
        refresh_every: Steps between new masks.
        dense_steps: Steps before masks are imposed.
        total_steps: Of the whole training; None where nothing depends on it.
        decay_warmup: Share of all steps in which lambda grows from 0.
    """

    method: str
    decay: float = 0.0
    refresh_every: int = 1
    dense_steps: int = 0
    total_steps: int | None = None
    decay_warmup: float = 0.0

    @property
    def keeps_residual(self) -> bool:
        """Whether pruned weights have values that may grow back."""
        return self.method in _GROWING

    def decay_at(self, steps: int) -> float:
        """Lambda of the step after `steps` others (Huang et al., AAAI 2025: it grows linearly, then stays)."""
        ramp = self.decay_warmup * (self.total_steps or 0)
        return self.decay * min(1.0, steps / ramp) if ramp else self.decay

    def pruned_factor(self, steps: int) -> float:
        """What pruned weights are multiplied with after `steps` steps; 0 but for "decaying-mask"."""
        if self.method != "decaying-mask" or self.total_steps is None:
            return 0.0
        return max(0.0, 1.0 - steps / max(1, int(MASK_DECAY_SHARE * self.total_steps)))


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
    if rule.decay_warmup and rule.method != "sr-ste":
        raise ConfigError(f"goes with method sr-ste, not {rule.method}", where="decay_warmup")
    if rule.method == "s-ste" and rule.refresh_every != 1:
        raise ConfigError(
            "s-ste thresholds the weights of every step, so its masks cannot be held between steps",
            where=f"refresh_every = {rule.refresh_every}",
        )
    return rule


def warn_of_adam(method: str, optimizer: Any) -> None:
    """Warn of masks that move under Adam."""
    name = type(optimizer).__name__
    if method in ("ste", "sr-ste") and "adam" in name.lower():
        warnings.warn(
            f"{method} under {name}: STEP (Lu et al., ICML 2023) finds that masks which still move spoil Adam's second "
            "moments; compare with SGD, or freeze() the masks early",
            stacklevel=3,
        )
