"""From N:M sparse training to TensorRT engines, with proof at every step that the sparsity is real."""

from nm2trt._version import __version__

__all__ = ["__version__"]
