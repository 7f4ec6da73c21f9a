"""Estimate a network's dense and sparse engine on a GPU that need not be there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from nm2trt.artifacts import BuildDocument
from nm2trt.errors import ConfigError
from nm2trt.estimate import network as model
from nm2trt.estimate.estimate_schema import EstimateDocument, estimate_document
from nm2trt.estimate.gpus import GpuSpec, find_gpu, gpu_table, read_gpu_file
from nm2trt.estimate.kernel import KernelConstants, constants_of_file
from nm2trt.estimate.network import LayerEstimate, NetworkEstimate, NetworkPrecision, Range
from nm2trt.layers import LayerWeight
from nm2trt.pattern import NMPattern

__all__ = [
    "EstimateConfig",
    "EstimateDocument",
    "LayerEstimate",
    "NetworkEstimate",
    "Range",
    "estimate_document",
    "estimate_network",
    "gpu_table",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateConfig:
    """Where a network would run, and in which shapes. Exactly one of `gpu` and `gpu_file` is needed."""

    gpu: str | None = None
    """Key of a built-in GPU, as in `gpu_table()`."""
    gpu_file: Path | None = None
    """Another GPU's figures, or a file of `nm2trt benchmark-gpu`."""
    precision: NetworkPrecision | None = None
    """None: a build folder's own, else fp16."""
    batch: int | None = None
    """Size of dynamic first dimensions. None: what a build folder's engines were tuned for."""
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Input name -> whole shape."""
    dense_layers: tuple[str, ...] = ()
    """Globs of weights, nodes or modules that stay dense."""
    assume: NMPattern | str | None = None
    """Take every layer that could hold this pattern for pruned; None: count the pattern in the weights."""


def estimate_network(
    source: Path | str, config: EstimateConfig, *, progress: Callable[[str], None] | None = None
) -> NetworkEstimate:
    """Estimate every layer's time, dense and sparse. Nothing is measured.

    Args:
        source: An ONNX file or a build folder.
        config: Where it would run.
        progress: Told what is being done.

    Returns:
        Times in microseconds per layer and milliseconds in all, with ranges; `estimate_document` makes JSON of it.

    Raises:
        ConfigError: No GPU or two, dynamic dimensions without a value, a glob that matches nothing.
        InputError: The model or the GPU's file cannot be read.

    Example:
        >>> estimate = estimate_network("model.onnx", EstimateConfig(gpu="a100-pcie-40gb", batch=32))
        >>> [(layer.geometry.weight, layer.expectation) for layer in estimate.layers if layer.geometry.weight]
        [('w0', 'unlikely'), ('w1', 'open')]
    """
    spec, constants = _gpu(config)
    built_batch, built_precision = _of_build(Path(source))
    assume = NMPattern.parse(config.assume) if isinstance(config.assume, str) else config.assume
    logger.debug("estimate %s on %s", source, spec.name)

    def watch(layer: LayerWeight) -> None:
        if progress is not None:
            progress(f"counting {layer.name}")

    return model.estimate_network(
        Path(source),
        spec,
        config.precision or built_precision,
        batch=config.batch if config.batch is not None or config.shapes else built_batch,
        shapes=config.shapes,
        assume=assume,
        dense_layers=config.dense_layers,
        constants=constants,
        watch=None if progress is None else watch,
    )


def _gpu(config: EstimateConfig) -> tuple[GpuSpec, KernelConstants | None]:
    """The GPU, and the constants that were fitted on it where its file has some."""
    if config.gpu is not None and config.gpu_file is None:
        return find_gpu(config.gpu), None
    if config.gpu_file is None or config.gpu is not None:
        what = "no GPU named" if config.gpu is None else "both --gpu and --gpu-file"
        raise ConfigError(what, hint=f"give one of --gpu {'|'.join(gpu_table())} and --gpu-file F")
    found = read_gpu_file(config.gpu_file)
    constants = None if found.constants is None else constants_of_file(found.constants, config.gpu_file)
    return found.spec, constants


def _of_build(source: Path) -> tuple[int | None, NetworkPrecision]:
    """The batch that a build folder's engines were tuned for, and what its products run in beside INT8."""
    if not (source / "build.json").is_file():
        return None, "fp16"
    document = BuildDocument.read(source)
    precision = document.precision.removeprefix("int8+")
    batch = None if document.batch is None else document.batch.opt
    return batch, "fp16" if precision == "int8" else cast(NetworkPrecision, precision)
