"""Networks by name."""

from nm2trt.models.registry import build_model, check_model, model_names
from nm2trt.models.weights import load_strict

__all__ = ["build_model", "check_model", "load_strict", "model_names"]
