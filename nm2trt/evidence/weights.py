"""Whether an engine's layer multiplies by weights: yes, no, or not known. Not known is never counted as either."""

from __future__ import annotations

import re

from nm2trt.evidence.inspector import InspectedLayer
from nm2trt.evidence.tactics import tactic_verdict

POINTWISE = "kgen"
"""A kernel that Myelin generated; mostly pointwise work around the matrix kernels."""

_WITH_WEIGHTS = re.compile(r"Conv|FullyConnected|^Fc$|^correlation$", re.IGNORECASE)
_WITHOUT = re.compile(
    r"Reformat|NoOp|Pool|Shuffle|Soft?Max|PointWise|ElementWise|Eltwise|Reduce|TopK|Slice|Concat|^Cast|Constant|^Shape|Gather"
    r"|Scatter|Resize|^Scale|^Signal|^Wait|Copy|Padding|Squeeze|Transpose|Select|NonZero|Unary|Activation|Identity|^Fill"
    r"|Normalization|^Quantize|^Dequantize|TripLimit|Recurrence|Iterator|LoopOutput|Condition|Assertion|OneHot|^NMS|GridSample"
    r"|^shape_call$|Einsum(?!.)|^LRN|^RNN(?!.)",
    re.IGNORECASE,
)
_COPIES = ("Reformatting CopyNode", "Reformatted")


def has_weights(
    layer: InspectedLayer, nodes: tuple[str, ...], weights: tuple[str, ...], *, is_listed: bool, has_graph: bool
) -> bool | None:
    """Tell whether a layer multiplies by weights.

    Args:
        layer: As the inspector or the log describes it.
        nodes: The ONNX nodes that run in it.
        weights: Their weights, where the network is at hand.
        is_listed: The builder's log lists it as eligible, so it has weights.
        has_graph: The network is at hand.

    Returns:
        None where nothing shows it: bare names, plugins, Myelin's subgraphs, products that may be of two activations.
    """
    if is_listed or weights or layer.has_sparse_weights is not None or layer.weights_count:
        return True
    if layer.type == POINTWISE:
        # With the network at hand, its nodes have no weights of their own here.
        return False if has_graph or (not nodes and not layer.constants) else None
    if layer.name.startswith(_COPIES):
        return False
    if layer.type and _WITH_WEIGHTS.search(layer.type) and layer.fields.get("HasDynamicFilter") not in (1, True):
        return True
    if has_graph and nodes:
        return False
    if layer.type and _WITHOUT.search(layer.type):
        return False
    # The kernel of a matrix product with one operand among the constants.
    return True if layer.constants and tactic_verdict(layer.tactic) != "unknown" else None
