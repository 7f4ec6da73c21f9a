"""One-shot magnitude pruning of third-party files to N:M, format kept; channel permutations for ONNX."""

from nm2trt.prune.prune_schema import ChannelGroup, MagnitudeTotals, Permutation, PrunedLayer, PruneDocument
from nm2trt.prune.run import PermuteOptions, prune_path
from nm2trt.prune.selection import Request

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
