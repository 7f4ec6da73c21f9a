"""Which layers TensorRT may consider for a sparse kernel: verify's rules, over a graph's layers.

The engine's precision is chosen for the estimate, so the types in the file do not count here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nm2trt.estimate.geometry import LayerGeometry
from nm2trt.layers import LayerWeight, Op
from nm2trt.pattern import TENSORRT_PATTERN, NMPattern
from nm2trt.reasons import Reason
from nm2trt.selectors import check_globs, match_any, selectable_names
from nm2trt.verify import LayerVerdict, verify_path
from nm2trt.verify.eligibility import structural_reason


def eligibility_of_layers(
    path: Path,
    layers: Sequence[LayerGeometry],
    *,
    assume: NMPattern | None = None,
    dense_layers: Sequence[str] = (),
    watch: Callable[[LayerWeight], None] | None = None,
) -> dict[str, Reason | None]:
    """Say per layer (by its name) why it cannot get a sparse kernel; None where nothing stands against it.

    Args:
        path: The ONNX file whose weights are counted.
        layers: Its layers.
        assume: Take what could hold this pattern for pruned, and read no weights.
        dense_layers: Globs of weights, nodes or modules that stay dense.
        watch: Called with every layer before it is counted.

    Raises:
        ConfigError: A glob matches no layer with weights.
        InputError: The weights cannot be read.
    """
    kept = _kept_dense(layers, dense_layers)
    verdicts: dict[str, LayerVerdict] = {}
    if assume is None:
        checked = verify_path(path, TENSORRT_PATTERN, watch=watch).layers
        verdicts = {layer.name: layer for layer in checked}
    reasons: dict[str, Reason | None] = {}
    for layer in layers:
        if not layer.weight:
            reasons[layer.name] = None
            continue
        reason = structural_reason(weight_of(layer))
        if not reason and assume is not None and layer.channels % assume.m:
            reason = Reason("channels", str(layer.channels), str(assume.m))
        if not reason and layer.name in kept:
            reason = Reason("excluded")
        if not reason and assume is None:
            reason = _counted(verdicts.get(layer.weight))
        reasons[layer.name] = reason
    return reasons


def weight_of(layer: LayerGeometry) -> LayerWeight:
    """A layer as verify sees it, without values; convolutions [out, in / groups, kernel...], products [out, in]."""
    op: Op = "conv" if layer.kind == "conv" else "conv-transpose" if layer.kind == "conv-transpose" else "gemm"
    depthwise = layer.kind == "conv" and layer.groups > 1 and layer.channels == 1
    batched = op == "gemm" and layer.groups > 1
    return LayerWeight(
        name=layer.weight,
        op="matmul" if batched else op,
        shape=(layer.groups, layer.k, layer.n) if batched else (layer.n * layer.groups, layer.channels, *layer.kernel),
        dtype="",
        reduction_axis=None if depthwise else 1,
        weight=lambda: np.zeros(0),
        groups=1 if batched else layer.groups,
        reason=Reason("depthwise-groups") if depthwise else None,
        node=layer.name,
    )


def _counted(verdict: LayerVerdict | None) -> Reason | None:
    if verdict is None:
        return Reason("computed")
    if verdict.verdict == "zero-point":
        return Reason("zero-point")
    if verdict.violations:
        return Reason("not-legal", str(verdict.violations), str(verdict.groups))
    return None if verdict.groups else verdict.reason or verdict.tensorrt_reason


def names_of(layer: LayerGeometry) -> tuple[str, ...]:
    """What a glob may match: the weight, with and without `.weight`, the node, the module."""
    return selectable_names(layer.weight, layer.name, layer.torch_name)


def _kept_dense(layers: Sequence[LayerGeometry], globs: Sequence[str]) -> set[str]:
    known = {layer.name: names_of(layer) for layer in layers if layer.weight}
    check_globs(known.values(), globs, where="--exclude", kind="layer with weights")
    return {name for name, names in known.items() if match_any(names, globs)}
