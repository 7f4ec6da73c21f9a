"""Which of torch's semi-structured backends a GPU has, and which weights each takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

BackendName = Literal["cusparselt", "cutlass"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

_SLOW_CUSPARSELT = 800
"""0.8.0; NVIDIA's release notes and pytorch#177456."""
_SLOW_CAPABILITIES = ((8, 9), (9, 0))
"""L4 and H100, on which 0.8.0 was seen slower than 0.7.1 and 0.8.1."""

AbsenceCode = Literal["no-gpu", "too-old", "not-built", "only-sm8x", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendState:
    """Whether a backend can run on this GPU."""

    name: BackendName
    absence: AbsenceCode
    """Why it cannot; empty where it can."""
    version: str = ""
    slow_release: bool = False
    """The version is one that is known to be slower on this GPU than its neighbors."""

    @property
    def available(self) -> bool:
        """Whether products can be run."""
        return not self.absence


def backend_states(
    capability: tuple[int, int] | None, *, cusparselt_version: int | None, cuda_build: bool
) -> tuple[BackendState, ...]:
    """Tell which backends there are, from what torch says of itself and of its GPU.

    Args:
        capability: Compute capability (major, minor); None without a GPU.
        cusparselt_version: As torch reports it, 801 for 0.8.1; None where torch was built without cuSPARSELt.
        cuda_build: torch was built for CUDA.
    """
    states = []
    for name in BACKENDS:
        absence: AbsenceCode = ""
        if not cuda_build or (name == "cusparselt" and cusparselt_version is None):
            absence = "not-built"
        elif capability is None:
            absence = "no-gpu"
        elif capability < (8, 0):
            absence = "too-old"
        elif name == "cutlass" and capability[0] != 8:
            absence = "only-sm8x"
        has_version = name == "cusparselt" and cusparselt_version is not None
        states.append(
            BackendState(
                name=name,
                absence=absence,
                version=version_text(cusparselt_version) if has_version and cusparselt_version is not None else "",
                slow_release=has_version
                and cusparselt_version == _SLOW_CUSPARSELT
                and (capability is None or capability in _SLOW_CAPABILITIES),
            )
        )
    return tuple(states)


def detect_backends() -> tuple[BackendState, ...]:
    """Ask torch about this machine's first GPU."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    return backend_states(
        capability,
        cusparselt_version=torch.backends.cusparselt.version() if torch.backends.cusparselt.is_available() else None,
        cuda_build=torch.version.cuda is not None,
    )


def version_text(number: int) -> str:
    """801 -> "0.8.1"."""
    return f"{number // 1000}.{number % 1000 // 100}.{number % 100}"


def describe_state(state: BackendState) -> str:
    """Say in a few words whether a backend runs here, or why it does not."""
    name = {"cusparselt": "cuSPARSELt", "cutlass": "CUTLASS"}[state.name]
    if state.version:
        name += f" {state.version}"
    if state.available:
        return name
    reasons: Mapping[AbsenceCode, str] = {
        "no-gpu": "no GPU",
        "too-old": "the GPU's compute capability is below 8.0",
        "not-built": "this build of torch has none",
        "only-sm8x": "torch builds these kernels for compute capability 8.x only",
    }
    return f"{name}: {reasons[state.absence]}"


def tensor_class(backend: BackendName) -> Any:
    """Torch's tensor class of a backend."""
    sparse: Any = torch.sparse
    return (
        sparse.SparseSemiStructuredTensorCUSPARSELT
        if backend == "cusparselt"
        else sparse.SparseSemiStructuredTensorCUTLASS
    )


def weight_multiples(backend: BackendName, dtype: torch.dtype) -> tuple[int, int] | None:
    """Multiples that a weight's [out, in] sizes must be of; None where the backend does not take the dtype."""
    found = tensor_class(backend)._DTYPE_SHAPE_CONSTRAINTS.get(dtype)  # noqa: SLF001 -- torch's only statement of them
    return None if found is None else (int(found.sparse_min_rows), int(found.sparse_min_cols))
