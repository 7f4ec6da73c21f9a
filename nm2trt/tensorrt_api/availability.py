"""Whether TensorRT and a GPU can be used here, and what exactly is missing. TensorRT itself is not imported."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import metadata, util
from typing import Literal

Flavor = Literal["tensorrt", "tensorrt-rtx"]
Lack = Literal["no-package", "no-cuda-build", "no-driver", "old-driver", "hidden", "no-device", "other"]

_MODULES: dict[Flavor, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS: dict[Flavor, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
_OLD_DRIVER = re.compile(r"driver on your system is too old \(found version (\d+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """One thing that keeps TensorRT from running here."""

    code: Lack
    what: str
    hint: str
    """Command or step that provides it."""


def module_name(flavor: Flavor) -> str:
    """Name of the Python module, `tensorrt` or `tensorrt_rtx`."""
    return _MODULES[flavor]


def distribution_version(flavor: Flavor) -> str:
    """Version of whichever distribution provides the module; "" where none is known.

    The module may come from `tensorrt`, `tensorrt-cu12`, `tensorrt_cu13`, or from a system package without metadata,
    so only the module itself knows its version for sure (`nm2trt.engine.run_probe`).
    """
    module = _MODULES[flavor]
    if util.find_spec(module) is None:
        return ""
    names = metadata.packages_distributions().get(module)
    return metadata.version(names[0]) if names else ""


def explain_missing(flavor: Flavor) -> list[Missing]:
    """Everything that running engines of this flavor needs and this machine lacks: the package, a GPU."""
    return [one for one in (explain_missing_package(flavor), explain_missing_gpu()) if one is not None]


def explain_missing_package(flavor: Flavor) -> Missing | None:
    """That the module cannot be found; None where it can, whatever the distribution is called."""
    if util.find_spec(_MODULES[flavor]) is not None:
        return None
    return Missing(
        code="no-package", what=f"{flavor} is not installed", hint=f"pip install 'nm2trt[{_EXTRAS[flavor]}]'"
    )


def present_sm() -> str | None:
    """Compute capability of the GPU that torch uses, "80"; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def present_gpu() -> str:
    """Name of the GPU that torch uses, as its driver gives it; "" without one."""
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


def explain_missing_gpu() -> Missing | None:
    """What keeps torch from using an NVIDIA GPU; None where it can."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return Missing(
            code="no-cuda-build",
            what=f"torch {torch.__version__} was installed without CUDA",
            hint="install a CUDA build of torch",
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 -- torch raises RuntimeError or AssertionError; its words are the finding
        return _read_torch_error(" ".join(str(error).split()), torch.version.cuda)
    return _hidden() or Missing(code="no-device", what="no NVIDIA GPU is visible", hint=_ELSEWHERE)


_ELSEWHERE = "run on the machine that the engine is for"


def _read_torch_error(words: str, cuda: str) -> Missing:
    old = _OLD_DRIVER.search(words)
    if old is not None:
        number = int(old.group(1))
        found = f"{number // 1000}.{number % 1000 // 10}"
        return Missing(
            code="old-driver",
            what=f"the NVIDIA driver is too old: it supports CUDA {found}, and torch was built for CUDA {cuda}",
            hint="update the driver, or install torch and TensorRT for its CUDA version",
        )
    if "no NVIDIA driver" in words:
        return Missing(code="no-driver", what="no NVIDIA GPU is visible: there is no NVIDIA driver", hint=_ELSEWHERE)
    if "No CUDA GPUs" in words:
        return _hidden() or Missing(code="no-device", what="no NVIDIA GPU is visible", hint=_ELSEWHERE)
    return Missing(code="other", what=f"torch cannot use the GPU: {words}", hint="check the driver with nvidia-smi")


def _hidden() -> Missing | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    return Missing(
        code="hidden",
        what=f"no NVIDIA GPU is visible: CUDA_VISIBLE_DEVICES is {visible!r}",
        hint="unset CUDA_VISIBLE_DEVICES, or name a GPU that is there",
    )
