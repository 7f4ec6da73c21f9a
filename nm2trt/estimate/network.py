"""A whole network, dense against sparse: each layer's kernels, which of them TensorRT would choose, and the sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nm2trt.errors import ConfigError
from nm2trt.estimate.choice import Expectation, expects_sparse, hint_for
from nm2trt.estimate.eligible import eligibility_of_layers
from nm2trt.estimate.geometry import LayerGeometry
from nm2trt.estimate.gpus import GpuSpec, Precision
from nm2trt.estimate.kernel import (
    ELEMENT_BYTES,
    Bound,
    KernelConstants,
    KernelTime,
    Spread,
    fitted_constants,
    kernel_time,
)
from nm2trt.estimate.network_layers import model_file, network_geometry
from nm2trt.estimate.ranges import names_for, spread_for, total_ranges
from nm2trt.layers import LayerWeight
from nm2trt.pattern import NMPattern
from nm2trt.reasons import GainCode, Reason, words_of
from nm2trt.verify import ELIGIBLE

NetworkPrecision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

_SPARSE_PRECISIONS = ("fp16", "bf16", "int8", "fp8")
FEW_ROWS = 16
"""Rows of a product below which it reads weights and hardly multiplies: engines at batch 1 went either way."""
_FEW_ROWS_RATIO = (0.84, 1.2)
"""Of engines at batch 1, as recorded."""
_ONE_PRODUCT = 0.9
"""Share of the time from which on one product is the whole network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A value with the range that four of five points held back fell into."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Range:
        """All three times `factor`."""
        return Range(value=self.value * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEstimate:
    """One layer. Times are those that profiling layer by layer would show."""

    geometry: LayerGeometry
    precision: Precision
    dense: KernelTime
    dense_us: Range
    sparse: KernelTime | None
    """With a sparse kernel; None where TensorRT does not consider one."""
    sparse_us: Range | None
    against: Reason | None
    """Why TensorRT does not consider a sparse kernel; None for an eligible layer."""
    expectation: Expectation | Literal[""]
    """Whether the builder would choose the sparse kernel; empty where it has no choice."""
    chosen: bool
    """The better guess where it is open."""
    why: Reason | None
    """Why a sparse kernel is not expected, or gains little."""
    outside: tuple[str, ...]
    """What of this layer the constants were not fitted on."""

    @property
    def tensorrt(self) -> str:
        """`eligible`, or why TensorRT does not consider a sparse kernel."""
        return words_of(self.against) or ELIGIBLE

    @property
    def gain(self) -> float:
        """Estimated dense over sparse kernel time; 1 where there is no sparse kernel."""
        return self.dense.total_us / self.sparse.total_us if self.sparse else 1.0

    @property
    def best_us(self) -> float:
        """In the sparse engine."""
        return self.sparse.total_us if self.sparse and self.chosen else self.dense.total_us


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEstimate:
    """All layers in the graph's order, and their sum without what profiling adds."""

    layers: tuple[LayerEstimate, ...]
    gpu: GpuSpec
    precision: NetworkPrecision
    inputs: Mapping[str, tuple[int, ...]]
    dense_ms: Range
    sparse_ms: Range
    speedup: Range
    """Dense over sparse, from sparse kernels alone."""
    clock_gain: float
    """Seen on this board in layers whose kernel did not change; 1 where nothing is known. Not sparsity."""
    profile_us: float
    """What a per-layer profile adds to each layer."""
    outside: tuple[str, ...]
    constants: KernelConstants
    """What the times were computed with."""
    notes: tuple[str, ...] = field(default=())

    @property
    def sparse_layers(self) -> int:
        """Layers with a sparse kernel expected."""
        return sum(layer.chosen for layer in self.layers)


def estimate_network(
    path: Path | str,
    gpu: GpuSpec,
    precision: NetworkPrecision = "fp16",
    *,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    assume: NMPattern | None = None,
    dense_layers: Sequence[str] = (),
    constants: KernelConstants | None = None,
    watch: Callable[[LayerWeight], None] | None = None,
) -> NetworkEstimate:
    """Estimate a network's dense and sparse engine.

    Args:
        path: An ONNX file or a build folder.
        gpu: Where it would run.
        precision: What the engine computes in. A quantized graph's own INT8 layers stay INT8; for "int8", every
            product with weights in a graph without Q/DQ is taken for quantized, in and out.
        batch: As `network_geometry` takes it.
        shapes: As `network_geometry` takes it.
        assume: Take every layer that could hold this pattern for pruned; None: count the pattern in the weights.
        dense_layers: Globs of weights, nodes or modules that stay dense.
        constants: Others than the fitted ones.
        watch: Called with every layer whose weights are counted, to show progress.

    Raises:
        ConfigError: Dynamic dimensions without a value; the assumed pattern is not legal for TensorRT; the GPU has no
            Tensor Cores for the precision; a glob matches nothing.
        InputError: The model cannot be read.
    """
    if assume is not None and not assume.tensorrt_legal:
        raise ConfigError(
            f"--assume {assume}: no pattern that Sparse Tensor Cores take", hint="use 2:4, or one that is stricter"
        )
    fitted = constants or fitted_constants()
    network = network_geometry(path, batch=batch, shapes=shapes)
    why_not = eligibility_of_layers(
        model_file(Path(path)), network.layers, assume=assume, dense_layers=dense_layers, watch=watch
    )
    layers = tuple(_estimate(layer, why_not.get(layer.name), gpu, precision, fitted) for layer in network.layers)
    notes = network.notes
    if precision in ("int8", "fp8") and not any(layer.quantized for layer in network.layers):
        notes = (*notes, f"no Q/DQ in the graph: every layer with weights is taken for {precision.upper()}, in and out")
    if fitted.kernels == "torch":
        notes = (*notes, f"constants fitted on {gpu.name}: {fitted.provenance.get('kernels', 'kernels of torch')}")
    return totals(layers, gpu, precision, network.inputs, fitted, notes)


def totals(
    layers: tuple[LayerEstimate, ...],
    gpu: GpuSpec,
    precision: NetworkPrecision,
    inputs: Mapping[str, tuple[int, ...]],
    fitted: KernelConstants,
    notes: tuple[str, ...] = (),
) -> NetworkEstimate:
    """Sum layers up to a network; the same arguments as NetworkEstimate's fields."""
    outside = _outside_of_network(gpu, precision, layers, fitted)
    overhead_us = fitted.profile_us * len(layers)
    dense_us = sum(layer.dense.total_us for layer in layers) - overhead_us
    sparse_us = sum(layer.best_us for layer in layers) - overhead_us
    total, speedup = _total_ranges(layers, dense_us / sparse_us, gpu, fitted, far=bool(outside))
    return NetworkEstimate(
        layers=layers,
        gpu=gpu,
        precision=precision,
        inputs=inputs,
        dense_ms=_range(dense_us / 1e3, total),
        sparse_ms=_range(sparse_us / 1e3, total),
        speedup=speedup,
        clock_gain=fitted.clock_gain.get(gpu.key, {}).get("tf32" if precision == "fp32" else precision, 1.0),
        profile_us=fitted.profile_us,
        outside=outside,
        constants=fitted,
        notes=notes,
    )


def _total_ranges(
    layers: Sequence[LayerEstimate], ratio: float, gpu: GpuSpec, fitted: KernelConstants, *, far: bool
) -> tuple[Spread, Range]:
    """Spread of the whole time, and the ratio with its range."""
    total_us = sum(layer.dense.total_us for layer in layers)
    able_us = sum(layer.dense.total_us for layer in layers if layer.sparse)
    largest = max(layers, key=lambda layer: layer.dense.total_us)
    if largest.dense.total_us > _ONE_PRODUCT * total_us and largest.geometry.is_product:
        # Nothing averages out.
        names, abroad = names_for(largest.geometry.kind, largest.precision), _is_far(gpu, fitted)
        gain = spread_for(fitted, "gain", *names, far=abroad)
        spread, low, high = spread_for(fitted, "dense", *names, far=abroad), ratio * gain.low, ratio * gain.high
        if largest.geometry.m <= FEW_ROWS:
            low, high = _FEW_ROWS_RATIO
    else:
        spread, both = total_ranges(fitted, ratio, far=far, sparse_share=able_us / total_us)
        low, high = both.low, both.high
    if not able_us:
        return spread, Range(value=1.0, low=1.0, high=1.0)
    return spread, Range(value=ratio, low=min(low, ratio), high=max(high, ratio))


def _is_far(gpu: GpuSpec, fitted: KernelConstants) -> bool:
    return fitted.kernels == "tensorrt" and gpu.key not in fitted.boards


def _estimate(
    layer: LayerGeometry, why_not: Reason | None, gpu: GpuSpec, precision: NetworkPrecision, fitted: KernelConstants
) -> LayerEstimate:
    kernel_precision, float_bytes = layer_precision(layer, precision)
    dense = kernel_time(layer, gpu, kernel_precision, constants=fitted, float_bytes=float_bytes)
    if why_not is None and layer.weight and kernel_precision not in _SPARSE_PRECISIONS:
        why_not = Reason("tf32")
    if why_not is None and kernel_precision not in gpu.sparse:
        why_not = Reason("no-sparse-cores", gpu.name, kernel_precision)
    eligible = bool(layer.weight) and why_not is None
    sparse = None
    if eligible:
        sparse = kernel_time(layer, gpu, kernel_precision, sparse=True, constants=fitted, float_bytes=float_bytes)
    outside = _outside_of_layer(layer, kernel_precision, fitted)
    far = bool(outside) or _is_far(gpu, fitted)
    names = names_for(layer.kind, kernel_precision)
    gain = dense.total_us / sparse.total_us if sparse else 1.0
    int8_out = layer.int8_out or not layer.quantized
    few = layer.m <= FEW_ROWS
    expectation: Expectation | Literal[""] = ""
    if sparse is not None:
        expectation = "unlikely" if not int8_out else "open" if few else hint_for(gain)
    chosen = sparse is not None and int8_out and not few and expects_sparse(gain)
    return LayerEstimate(
        geometry=layer,
        precision=kernel_precision,
        dense=dense,
        dense_us=_range(dense.total_us, spread_for(fitted, "dense", *names, far=far)),
        sparse=sparse,
        sparse_us=_range(sparse.total_us, spread_for(fitted, "sparse", *names, far=far)) if sparse else None,
        against=None if eligible else why_not or Reason("no-weights"),
        expectation=expectation,
        chosen=chosen,
        why=_why(layer, sparse, gain, int8_out=int8_out),
        outside=outside,
    )


def layer_precision(layer: LayerGeometry, precision: NetworkPrecision) -> tuple[Precision, float]:
    """What a layer's products run in, and the bytes of its floating-point tensors, in an engine of `precision`."""
    if precision == "fp32":
        return ("int8", 4.0) if layer.quantized else ("tf32", 4.0)
    if layer.quantized:
        return "int8", 2.0
    if precision in ("int8", "fp8"):
        # Products of two activations stay in FP16 in TensorRT's quantized transformers.
        return ("fp16", 2.0) if layer.is_product and not layer.weight else (precision, 1.0)
    return precision, float(ELEMENT_BYTES[precision])


_BOUND_CODES: dict[Bound, GainCode] = {
    "launch": "launch-bound",
    "memory": "memory-bound",
    "on-chip": "on-chip-bound",
    "compute": "compute-bound",
}


def _why(layer: LayerGeometry, sparse: KernelTime | None, gain: float, *, int8_out: bool) -> Reason | None:
    if sparse is None:
        return None
    if not int8_out:
        return Reason("float-output")
    if layer.m <= FEW_ROWS:
        return Reason("few-rows", str(layer.m))
    if hint_for(gain) == "likely":
        return None
    if layer.n < 64:
        return Reason("narrow", str(layer.n))
    return Reason(_BOUND_CODES[sparse.bound])


def _range(value: float, spread: Spread) -> Range:
    return Range(value=value, low=value * spread.low, high=value * spread.high)


def _outside_of_layer(layer: LayerGeometry, precision: Precision, fitted: KernelConstants) -> tuple[str, ...]:
    of_torch = fitted.kernels == "torch"
    found = []
    if precision == "fp8" or (precision == "bf16" and not of_torch):
        found.append(f"{precision} (taken for {'fp16' if precision == 'bf16' else 'int8'})")
    if of_torch and layer.is_product and layer.taps > 1:
        found.append("convolutions larger than 1x1")
    if layer.kind in ("attention", "batched-matmul", "conv-transpose"):
        found.append(layer.kind)
    elif layer.is_product and layer.groups > 1:
        found.append("grouped convolutions")
    elif layer.kind == "gemm" and layer.m > 1024 and not of_torch:
        found.append("large matrix products")
    if layer.is_product and layer.kind == "conv" and fitted.covered_flops:
        low, high = fitted.covered_flops
        if not low / 2 <= layer.flops <= high * 2:
            found.append(f"convolutions {'smaller' if layer.flops < low else 'larger'} than any that was measured")
    return tuple(found)


def _outside_of_network(
    gpu: GpuSpec, precision: NetworkPrecision, layers: Sequence[LayerEstimate], fitted: KernelConstants
) -> tuple[str, ...]:
    found = []
    if fitted.kernels == "torch":
        found.append("TensorRT's kernels (the constants are of torch's)")
    elif _is_far(gpu, fitted):
        found.append(gpu.name)
    if precision == "fp8" or (precision == "bf16" and fitted.kernels == "tensorrt"):
        found.append(precision)
    total = sum(layer.dense.total_us for layer in layers)
    kinds: dict[str, float] = {}
    for layer in layers:
        for what in layer.outside:
            kinds[what] = kinds.get(what, 0.0) + layer.dense.total_us / total
    found += [f"{what} ({100 * share:.0f} % of the time)" for what, share in kinds.items() if share > 0.1]
    return tuple(dict.fromkeys(found))
