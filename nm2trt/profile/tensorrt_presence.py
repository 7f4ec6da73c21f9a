"""Whether engines can run here; asked by everybody, so torch is imported only where TensorRT is."""

from __future__ import annotations

from importlib import util
from typing import Literal

Flavour = Literal["tensorrt", "tensorrt-rtx"]

MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def why_not(flavour: Flavour) -> str:
    """Say what keeps engines from running here; empty where nothing does."""
    package = MODULES[flavour]
    if util.find_spec(package) is None:
        extra = "rtx" if flavour == "tensorrt-rtx" else "tensorrt"
        return (
            f"the package {package.replace('_', '-')} is not installed "
            f"(pip install 'nm2trt[{extra}]', on a machine with an NVIDIA GPU)"
        )
    import torch

    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU, or torch was installed without CUDA"
    return ""
