"""Pruning with data: the inputs of a layer choose what goes, and what stays makes up for it. numpy only."""

from nm2trt.prune.calibrated.gram import InputGram
from nm2trt.prune.calibrated.solve import Method, PrunedColumns, prune_columns
from nm2trt.prune.calibrated.unfold import columns_to_weight, iterate_unfolded, unfold_convolution, weight_to_columns

__all__ = [
    "InputGram",
    "Method",
    "PrunedColumns",
    "columns_to_weight",
    "iterate_unfolded",
    "prune_columns",
    "unfold_convolution",
    "weight_to_columns",
]
