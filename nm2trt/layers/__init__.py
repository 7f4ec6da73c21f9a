"""Every checkpoint and every graph as one stream of `LayerWeight`s, one tensor in memory at a time."""

from nm2trt.layers.metadata import METHOD_KEY, PATTERNS_KEY
from nm2trt.layers.sources import open_layers, open_source, source_files
from nm2trt.layers.stream import LayerSource, LayerWeight, Op

__all__ = [
    "METHOD_KEY",
    "PATTERNS_KEY",
    "LayerSource",
    "LayerWeight",
    "Op",
    "open_layers",
    "open_source",
    "source_files",
]
