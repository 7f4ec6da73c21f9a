"""One-shot magnitude pruning of third-party files to N:M, format kept; channel permutations for ONNX."""

from nm2trt.prune.document import ChannelGroup, MagnitudeTotals, Permutation, PrunedLayer, PruneDocument
from nm2trt.prune.files import PermuteOptions, prune_path
from nm2trt.prune.plan import Request

__all__ = [
    "ChannelGroup",
    "MagnitudeTotals",
    "Permutation",
    "PermuteOptions",
    "PruneDocument",
    "PrunedLayer",
    "Request",
    "prune_path",
]
