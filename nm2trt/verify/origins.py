"""Where a checkpoint comes from, as far as the file tells, what it lacks, and what hints it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.layers import LayerWeight
from nm2trt.pattern import TENSORRT_PATTERN
from nm2trt.verify.verdicts import UNREAD_VERDICTS, LayerVerdict

_HINTS = {
    "apex ASP": "multiply each weight with its __*_mma_mask and drop these buffers before export",
    "Model Optimizer": "modelopt.torch.sparsity.export(model) writes the masks into the weights; then save again",
    "torch.nn.utils.prune": "torch.nn.utils.prune.remove(module, name) writes the masks into the weights; save again",
    "a torch parametrization": "torch.nn.utils.parametrize.remove_parametrizations(module, name); then save again",
}
"""Tool, as nm2trt/layers/checkpoint.py names it -> how its masks get into the weights."""

_SAMPLE = 1 << 16
_MOST_LAYERS = 8
_FEWEST_OUTPUTS = 4
"""A layer with fewer outputs is a projection (LPIPS's 1x1 convolutions), and its few weights say nothing."""
_SHRUNK_SHARE = 0.9


class KeptShare:
    """How much of the magnitude a 2:4 mask would keep, measured on the first weights of the first dense layers.

    Independent normal weights keep 0.74 of their magnitude (2 of 4). Weights that were trained while a mask in the
    forward pass left half of them unused, and shrank those, as SR-STE does, keep more.
    """

    def __init__(self) -> None:
        self._kept = self._all = 0.0
        self._layers = 0

    def look(self, layer: LayerWeight, verdict: LayerVerdict) -> None:
        """Take a sample of a dense layer into account."""
        axis = layer.reduction_axis
        if verdict.verdict != "dense" or axis is None or self._layers >= _MOST_LAYERS:
            return
        outputs = math.prod(layer.shape) // math.prod((layer.shape[axis], *layer.shape[2:]))
        groups = _sample(layer, axis) if outputs >= _FEWEST_OUTPUTS else None
        if groups is None:
            return
        self._layers += 1
        ordered = np.sort(groups, axis=1)
        self._kept += float(ordered[:, TENSORRT_PATTERN.m - TENSORRT_PATTERN.n :].sum())
        self._all += float(ordered.sum())

    @property
    def share(self) -> float | None:
        """Between 0.5 and 1; None where no dense layer was seen."""
        return self._kept / self._all if self._all else None


def origin_notes(verdicts: list[LayerVerdict], kept: KeptShare, kind: str, source: str) -> list[str]:
    """One line for each tool whose traces are in the file, and for what only looks like one.

    Args:
        verdicts: All layers.
        kept: Fed with every layer.
        kind: "checkpoint" or "onnx".
        source: The file's name, for the commands.
    """
    notes = []
    for tool, hint in _HINTS.items():
        count = sum(
            layer.reading is not None and layer.reading.code == "masked" and layer.reading.detail == tool
            for layer in verdicts
        )
        if count:
            layers = "1 layer" if count == 1 else f"{count} layers"
            notes.append(
                f"from {tool}: {layers} checked with their masks applied, which the stored weights may lack; {hint}"
            )
    if any(layer.reading is not None and layer.reading.code in ("mask-alone", "mask-bits") for layer in verdicts):
        notes.append(
            "a file of masks, as MaskLLM writes them: the verdict is about the masks; multiply them into the weights "
            "(tensor name without .mask), then verify those"
        )
    wrong = Counter(layer.pattern for layer in verdicts if layer.verdict == "wrong-axis")
    notes += [
        f"wrong axis: nm2trt prune {source or 'PATH'} --pattern {pattern} -o OUT prunes again along the right one"
        for pattern in wrong
    ]
    share = kept.share
    sparse = any(layer.verdict not in ("dense", "indivisible", *UNREAD_VERDICTS) for layer in verdicts)
    if share is None or sparse or kind != "checkpoint":
        return notes
    looks = (
        "so half of them look unused, as after training with a mask that lives only in the forward pass (SR-STE); "
        "other causes are possible"
        if share >= _SHRUNK_SHARE
        else "about as of weights that were never pruned (0.74); should the mask live in the code's forward pass "
        "(SR-STE), it is not in the file"
    )
    notes.append(
        f"all dense: a 2:4 mask would keep {share:.2f} of the magnitude, {looks}; "
        f"nm2trt prune {source or 'PATH'} --pattern 2:4 -o OUT applies one"
    )
    return notes


def _sample(layer: LayerWeight, axis: int) -> NDArray[Any] | None:
    """Magnitudes of groups [groups, M] from the layer's first values; None where there is no whole group."""
    inner = math.prod(layer.shape[axis + 1 :])
    span = TENSORRT_PATTERN.m * inner
    size = math.prod(layer.shape)
    if layer.shape[axis] % TENSORRT_PATTERN.m or not size:
        return None
    count = min(size, max(_SAMPLE // span, 1) * span)
    flat = layer.load_range(0, count) if layer.load_range else np.ascontiguousarray(layer.weight()).reshape(-1)[:count]
    values = np.abs(flat.astype(np.float32)).reshape(-1, TENSORRT_PATTERN.m, inner)
    return np.nan_to_num(values.transpose(0, 2, 1).reshape(-1, TENSORRT_PATTERN.m), posinf=0.0)
