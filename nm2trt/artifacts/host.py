"""Which machine and which versions produced an artifact."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nm2trt.threads import available_cpus

_PACKAGES = (
    "torch",
    "torchvision",
    "accelerate",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "polygraphy",
    "tensorrt",
    "tensorrt-rtx",
    "safetensors",
)
_IDENTIFYING = re.compile(
    r"Serial|UUID|GUID|Board (ID|Part Number)|GPU Part Number|Bus Id|Bus  |Device Id|Sub System Id|Hostname|"
    r"Process ID|Process Name|^\s*Name  |Parent|GPU PDI|Chassis|Slot Number|Module ID|Minor Number|Platform Info|file://|"
    r"^-e |@ git\+"
)


class HostRecord(BaseModel):
    """The machine's facts that explain a result. No host name, user or path is recorded."""

    model_config = ConfigDict(frozen=True)

    python: str
    platform: str
    processor: str
    cpu_count: int
    packages: dict[str, str]


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, or None; nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def host_record() -> HostRecord:
    """Describe this machine."""
    versions = {name: installed_version(name) for name in _PACKAGES}
    return HostRecord(
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor(),
        cpu_count=available_cpus(),
        packages={name: version for name, version in versions.items() if version is not None},
    )


def redact_machine(text: str) -> str:
    """Drop the lines of `nvidia-smi -q`, `pip freeze` and the like that identify a machine or its users.

    Serial numbers, UUIDs, board, bus and process ids, host names, and packages installed from a local path.
    """
    return "".join(line for line in text.splitlines(keepends=True) if not _IDENTIFYING.search(line))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
