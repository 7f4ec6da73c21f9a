"""Report hardware and installed dependencies, and what they let anyone prove."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nm2trt._version import __version__
from nm2trt.artifacts.host import installed_version
from nm2trt.extras import EXTRAS, explain_missing_module, install_line, missing_modules
from nm2trt.library_errors import one_line
from nm2trt.threads import available_cpus

if TYPE_CHECKING:
    from nm2trt.tensorrt_api import Flavor

__all__ = ["DoctorConfig", "Finding", "MachineReport", "examine_machine"]

_LEAST_FREE_GIB = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorConfig:
    """Where this machine is looked at."""

    folder: Path = field(default_factory=Path)
    """Whose disk's free space is reported."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that this machine can or cannot do."""

    name: str
    present: bool
    detail: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineReport:
    """What this machine has, and which of the four facts can be proved on it."""

    findings: tuple[Finding, ...]
    abilities: dict[str, str]
    """Fact -> "yes", or why not."""

    def to_json(self) -> str:
        """The same with schema and version, indented."""
        document = {
            "schema": "nm2trt.doctor/1",
            "nm2trt_version": __version__,
            "findings": [asdict(finding) for finding in self.findings],
            "abilities": self.abilities,
        }
        return json.dumps(document, indent=2)


def examine_machine(config: DoctorConfig | None = None) -> MachineReport:
    """Look for the GPU, TensorRT, ONNX Runtime, Triton, extras and data sets. Nothing is installed or downloaded.

    Args:
        config: Where to look.

    Returns:
        One finding each; what is missing says how to get it.

    Raises:
        OSError: The folder is not there.

    Example:
        >>> report = examine_machine()
        >>> [finding.present for finding in report.findings if finding.name == "onnxruntime"]
        [True]
    """
    findings = tuple(_findings((config or DoctorConfig()).folder))
    return MachineReport(findings=findings, abilities=_abilities(findings))


def _module(distribution: str, module: str, gives: str, hint: str) -> Finding:
    version = installed_version(distribution)
    if version is None:
        return Finding(distribution, present=False, detail=f"not installed; it {gives}", hint=hint)
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 -- a broken install may raise anything; it is the finding
        return Finding(
            distribution, present=False, detail=f"{version} installed, cannot be imported: {one_line(error)}", hint=hint
        )
    return Finding(distribution, present=True, detail=f"{version}; {gives}")


def _extras() -> list[Finding]:
    found = []
    for extra, modules in EXTRAS.items():
        missing = missing_modules(extra)
        detail = f"missing: {', '.join(missing)}" if missing else ", ".join(modules)
        found.append(Finding(f"extra {extra}", not missing, detail, install_line(extra) if missing else ""))
    return found


def _needs(name: str, module: str) -> Finding | None:
    """A finding that cannot be made because a module is not installed."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        explained = explain_missing_module(error.name)
        if explained is None:
            raise
        return Finding(name, present=False, detail=f"not known: {explained.what}", hint=explained.hint)
    return None


def _gpu() -> Finding:
    if (unknown := _needs("GPU", "torch")) is not None:
        return unknown
    import torch

    from nm2trt.tensorrt_api import explain_missing_gpu

    missing = explain_missing_gpu()
    if missing is not None:
        return Finding(
            "GPU",
            present=False,
            detail=f"{missing.what}: no sparse kernel can be chosen or timed here",
            hint=missing.hint
            if missing.code == "old-driver"
            else "run on a machine with an NVIDIA GPU of compute capability 8.0 or newer and its driver",
        )
    devices = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        cores = "Sparse Tensor Cores" if (major, minor) >= (8, 0) else "no Sparse Tensor Cores"
        devices.append(f"{torch.cuda.get_device_name(index)} (SM{major}{minor}, {cores})")
    return Finding("GPU", present=True, detail=", ".join(devices))


def _tensorrt(flavor: Flavor, gives: str, hint: str) -> Finding:
    """Whatever its distribution is called: the module counts, and it tells its own version."""
    from nm2trt.errors import MachineError
    from nm2trt.tensorrt_api import explain_missing_package, load_tensorrt

    missing = explain_missing_package(flavor)
    if missing is not None:
        return Finding(flavor, present=False, detail=f"not installed; it {gives}", hint=hint)
    try:
        version = load_tensorrt(flavor).__version__
    except MachineError as error:
        return Finding(flavor, present=False, detail=f"installed, {error.what}", hint=hint)
    return Finding(flavor, present=True, detail=f"{version}; {gives}")


def _torch_sparse() -> Finding:
    if (unknown := _needs("torch 2:4 kernels", "torch")) is not None:
        return unknown
    from nm2trt.torch_sparse.backends import describe_state, detect_backends

    states = detect_backends()
    detail = "; ".join(describe_state(state) for state in states)
    if any(state.slow_release for state in states):
        detail += (
            ". cuSPARSELt 0.8.0 is slower on H100 and L4 than 0.7.1 and 0.8.1 (NVIDIA's release notes; pytorch#177456)"
        )
    present = any(state.available for state in states)
    return Finding(
        "torch 2:4 kernels",
        present=present,
        detail=detail,
        hint="" if present else "run on an NVIDIA GPU of compute capability 8.0 or newer, with torch for CUDA",
    )


def _onnxruntime() -> Finding:
    if (unknown := _needs("onnxruntime", "onnxruntime")) is not None:
        return unknown
    import onnxruntime

    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return Finding(
        "onnxruntime", present=True, detail=f"{onnxruntime.__version__}: compiled for {', '.join(providers)}"
    )


def _digits() -> Finding:
    return _needs("digits", "sklearn") or Finding("digits", present=True, detail="inside scikit-learn")


def _fashion_mnist() -> Finding:
    if (unknown := _needs("fashion-mnist", "torch")) is not None:
        return unknown
    from nm2trt.data.fashion_mnist import system_folder

    folder = system_folder()
    if folder is None:
        return Finding(
            "fashion-mnist",
            present=False,
            detail="not installed; torchvision downloads it on first use",
            hint="apt-get install dataset-fashion-mnist",
        )
    return Finding("fashion-mnist", present=True, detail=f"{folder}")


def _triton() -> Finding:
    from nm2trt.errors import MachineError
    from nm2trt.serve.installed import find_triton

    try:
        return Finding("triton", present=True, detail=f"{find_triton().description}: serves")
    except MachineError as error:
        return Finding("triton", present=False, detail=error.what, hint=error.hint)


def _findings(folder: Path) -> list[Finding]:
    free_gib = shutil.disk_usage(folder).free / 2**30
    return [
        Finding("python", present=sys.version_info >= (3, 10), detail=sys.version.split()[0]),
        Finding("processor", present=True, detail=f"{available_cpus()} CPUs"),
        Finding("disk", present=free_gib > _LEAST_FREE_GIB, detail=f"{free_gib:.0f} GiB free here"),
        _module("torch", "torch", "trains", "pip install 'nm2trt[torch]'"),
        _gpu(),
        _torch_sparse(),
        _onnxruntime(),
        _module("polygraphy", "polygraphy", "builds engines", "pip install 'nm2trt[export]'"),
        _tensorrt(
            "tensorrt",
            "builds and runs engines, shows which kernels were chosen (needs a GPU)",
            "pip install 'nm2trt[tensorrt]' on a GPU machine",
        ),
        _tensorrt(
            "tensorrt-rtx",
            "compiles for SM80 without a GPU; cannot show sparse kernels",
            "pip install 'nm2trt[rtx]'",
        ),
        _triton(),
        _module("tritonclient", "tritonclient", "checks servers", "pip install 'nm2trt[server]'"),
        _digits(),
        _fashion_mnist(),
        *_extras(),
    ]


_NO_CPU_KERNELS = "; ONNX Runtime's CPU has no 2:4 kernels"


def _abilities(findings: Sequence[Finding]) -> dict[str, str]:
    """What can be proved of the four facts on this machine."""
    have = {finding.name: finding.present for finding in findings}
    engine = have["tensorrt"] and have["GPU"]
    lacking = " and ".join(name for name in ("tensorrt", "GPU") if not have[name])
    in_torch = have["torch 2:4 kernels"] and have["GPU"]
    beside = "; of torch's 2:4 kernels, yes (nm2trt benchmark-gpu, profile --backend torch-sparse)" if in_torch else ""
    return {
        "legal pattern": "yes",
        "eligible in TensorRT": "yes, by TensorRT's documented rules",
        "sparse kernel chosen": "yes" if engine else f"no: needs {lacking}{beside}",
        "faster": "yes" if engine else f"no: needs {lacking}{beside or _NO_CPU_KERNELS}",
    }
