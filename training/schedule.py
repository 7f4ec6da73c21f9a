"""The learning rate over a run."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, *, steps: int, warmup_steps: int) -> float:
    """Factor on the peak learning rate for optimizer step `step` (0-based).

    Linear from 0 over the warm-up, then half a cosine down to 0 after the last step, as in the paper's recipe.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
