"""N:M sparse training: the sparsifier for any training loop, and the loop of `nm2trt train`."""

if __name__ != "nm2trt.training":
    # Without this, a checkout on the path would offer the same files under two names.
    raise ImportError("this folder is imported as nm2trt.training (run: pip install -e .)")

from nm2trt.training.averaging import project_average, sparse_average, sparse_average_state_dict
from nm2trt.training.entry import sparsify
from nm2trt.training.live_selection import LayerReport
from nm2trt.training.lora import merge_lora
from nm2trt.training.masks import nm_mask
from nm2trt.training.methods import METHODS, PAPER_DECAY
from nm2trt.training.sad import LayerSad, Sad
from nm2trt.training.sparsifier import Sparsifier

__all__ = [
    "METHODS",
    "PAPER_DECAY",
    "LayerReport",
    "LayerSad",
    "Sad",
    "Sparsifier",
    "merge_lora",
    "nm_mask",
    "project_average",
    "sparse_average",
    "sparse_average_state_dict",
    "sparsify",
]
