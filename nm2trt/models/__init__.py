"""Networks by name."""

from nm2trt.models.registry import build_model, check_model, model_names

__all__ = ["build_model", "check_model", "model_names"]
