"""What an experiment with torch's 2:4 kernels compares, and what it measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from nm2trt.artifacts import RunnerRecord
from nm2trt.artifacts.report import DeviceState, ExecutionMode, VariantName
from nm2trt.profile.layers import LayerTable
from nm2trt.profile.measure import Measurement
from nm2trt.torch_sparse.backends import BackendName
from nm2trt.torch_sparse.conversion import ProductLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """The same network three times, on the GPU."""

    dense: nn.Module
    """Dense weights, the network as it was given."""
    control: nn.Module
    """The sparse weights, products rewritten, dense kernels."""
    sparse: nn.Module
    """The sparse weights, packed for 2:4 kernels."""
    layers: tuple[ProductLayer, ...]
    """Products with the reason against each; rows for one sample."""
    backend: BackendName


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFound:
    """One batch size in one mode."""

    batch: int
    mode: ExecutionMode
    measured: Measurement
    enqueue_ms: Mapping[VariantName, float | None]
    sparse_kernels: int
    """Launches of kernels with sparse names in one call of the sparse variant."""
    before: DeviceState | None
    after: DeviceState | None


@dataclass(slots=True)
class Found:
    """Everything that was measured."""

    record: RunnerRecord
    batches: list[BatchFound] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Modes that could not run, with the reason."""
    tables: dict[VariantName, LayerTable] = field(default_factory=dict)
    layers: tuple[ProductLayer, ...] = ()
    layers_batch: int = 0
    sparse_shares: dict[str, float] = field(default_factory=dict)
    """Product -> share of its time that kernels with sparse names took."""
    relative_error: float = 0.0
