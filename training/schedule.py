"""The learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Sequence


def cosine_with_warmup(step: int, *, steps: int, warmup_steps: int) -> float:
    """Factor on the peak learning rate for optimizer step `step` (0-based).

    Linear from 0 over the warm-up, then half a cosine down to 0 after the last step, as in the paper's recipe.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def cosine_cycles(step: int, *, cycles: Sequence[int], warmup_steps: int) -> float:
    """The same, once per cycle.

    Args:
        step: Optimizer step, 0-based, over the whole run.
        cycles: Steps of each cycle.
        warmup_steps: Of every cycle.
    """
    start = 0
    for steps in cycles[:-1]:
        if step < start + steps:
            return cosine_with_warmup(step - start, steps=steps, warmup_steps=warmup_steps)
        start += steps
    return cosine_with_warmup(step - start, steps=cycles[-1], warmup_steps=warmup_steps)
