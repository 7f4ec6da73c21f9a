"""Figures of the GPUs that an estimate can be made for; others come from a file of the same form."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from nm2trt.errors import ConfigError, InputError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

Precision = Literal["tf32", "fp16", "bf16", "int8", "fp8"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_LARGEST_FILE_BYTES = 1 << 22


class GpuSpec(BaseModel):
    """One GPU. Peaks in TFLOPS or TOPS, as the vendor states them for Tensor Cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sm: Annotated[int, Field(ge=80, le=200)]
    """Compute capability times ten; sparse Tensor Cores came with 80."""
    sms: Annotated[int, Field(ge=1, le=1024)]
    clock_mhz: Positive
    l2_mib: Positive
    bandwidth_gb_s: Positive
    power_w: Positive
    dense: Mapping[Precision, Positive]
    sparse: Mapping[Precision, Positive]
    source: str
    key: str = ""
    """Its name in the table; empty for those from a file."""

    @model_validator(mode="after")
    def _sparse_at_least_dense(self) -> Self:
        for precision, peak in self.sparse.items():
            if precision not in self.dense:
                raise ValueError(f"sparse.{precision} without dense.{precision}")
            if peak < self.dense[precision]:
                raise ValueError(f"sparse.{precision} is below dense.{precision}")
        return self

    def peak_flop_per_us(self, precision: Precision) -> float:
        """Dense peak.

        Raises:
            ConfigError: The GPU has no Tensor Cores for this precision.
        """
        if precision not in self.dense:
            known = ", ".join(self.dense)
            raise ConfigError(f"{self.name} has no {precision} peak", where="--precision", hint=f"it has {known}")
        return self.dense[precision] * 1e6

    @property
    def bytes_per_us(self) -> float:
        """Bandwidth of device memory."""
        return self.bandwidth_gb_s * 1e3


@cache
def gpu_table() -> Mapping[str, GpuSpec]:
    """Every GPU of the built-in table by its key, such as "a100-pcie-40gb"."""
    text = resources.files("nm2trt.estimate").joinpath("gpus.toml").read_text(encoding="utf-8")
    return {key: GpuSpec.model_validate({**entry, "key": key}) for key, entry in tomllib.loads(text).items()}


def find_gpu(name: str) -> GpuSpec:
    """Look a GPU up by its key.

    Raises:
        ConfigError: It is not in the table; the closest names are offered.
    """
    table = gpu_table()
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    if key in table:
        return table[key]
    close = [entry for entry in table if key and key in entry] or difflib.get_close_matches(key, table, n=3, cutoff=0.5)
    offer = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(table)}"
    raise ConfigError(f"unknown GPU {name!r}", where="--gpu", hint=f"{offer}; others: --gpu-file")


def gpu_of_device(device: str) -> GpuSpec | None:
    """Look a GPU up by the name that its driver gives, "NVIDIA A100 80GB PCIe"; None where the table lacks it."""
    words = set(re.sub(r"sxm\d", "sxm", re.sub(r"[^a-z0-9]+", " ", device.lower())).split())
    if "hbm3" in words and "h100" in words:
        # The SXM card's name does not say so: "NVIDIA H100 80GB HBM3".
        words.add("sxm")
    fits = [key for key in gpu_table() if set(key.split("-")) <= words]
    return gpu_table()[max(fits, key=len)] if fits else None


BENCHMARK_SCHEMA = "nm2trt.gpu-benchmark/1"
"""Of the files that `nm2trt benchmark-gpu` writes."""


@dataclass(frozen=True, slots=True)
class GpuFile:
    """What a file tells of a GPU."""

    spec: GpuSpec
    constants: Mapping[str, object] | None = None
    """Fields of `nm2trt.estimate.kernel.KernelConstants`, fitted on that GPU; None where the file has none."""


def read_gpu_file(path: Path) -> GpuFile:
    """Read one GPU from TOML or JSON: the fields of GpuSpec, at the top or in one table; or from a GPU benchmark.

    Raises:
        InputError: The file is missing, too large, no TOML or JSON, or lacks fields; all mistakes are named.
    """
    hint = "see docs/estimate.md for the fields"
    if not path.is_file():
        raise InputError("no such file", where=path, hint=hint)
    if path.stat().st_size > _LARGEST_FILE_BYTES:
        raise InputError("is larger than 4 MiB, no GPU file", where=path, hint=hint)
    try:
        text = path.read_text(encoding="utf-8")
        raw: Any = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"no readable TOML or JSON: {error}", where=path, hint=hint) from None
    constants: Any = None
    if isinstance(raw, dict) and raw.get("schema") == BENCHMARK_SCHEMA:
        raw, constants = raw.get("gpu"), raw.get("constants")
    if isinstance(raw, dict) and len(raw) == 1 and isinstance(only := next(iter(raw.values())), dict):
        raw = only
    try:
        return GpuFile(GpuSpec.model_validate(raw), constants)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors())
        raise InputError(said, where=path, hint=hint) from None
