"""From measured products to the constants of `nm2trt estimate`: least squares on the logarithms of the times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from nm2trt.estimate.geometry import LayerGeometry, Traffic
from nm2trt.estimate.gpus import GpuSpec, Precision
from nm2trt.estimate.kernel import KernelConstants, Spread, kernel_time

FEWEST = 12
"""With fewer products a fit says nothing."""
_FOLDS = 5
_MOST_STEPS, _MOST_FOLD_STEPS = 60, 12
"""Of the solver; a fold starts where the whole fit ended."""
_TENTH = 10
_NEAREST: Mapping[Precision, tuple[Precision, ...]] = {
    "tf32": ("fp16", "bf16", "int8"),
    "fp16": ("bf16", "int8"),
    "bf16": ("fp16", "int8"),
    "int8": ("fp16", "bf16"),
    "fp8": ("int8", "fp16", "bf16"),
}
"""Whose constants stand in for a precision that was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured kernel."""

    m: int
    n: int
    k: int
    precision: Precision
    sparse: bool
    time_us: float

    def geometry(self) -> LayerGeometry:
        """The product as the kernel model reads it; int8 products write int32."""
        return LayerGeometry(
            name="product",
            kind="gemm",
            op_types=("MatMul",),
            nodes=("product",),
            weight="w",
            m=self.m,
            n=self.n,
            k=self.k,
            channels=self.k,
            flops=2 * self.m * self.n * self.k,
            reads=Traffic(int8=self.m * self.k) if self.precision == "int8" else Traffic(floats=self.m * self.k),
            writes=Traffic(other_bytes=4 * self.m * self.n)
            if self.precision == "int8"
            else Traffic(floats=self.m * self.n),
            weight_elements=self.n * self.k,
            quantized=self.precision == "int8",
            int8_out=False,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One constant, fitted as a logarithm."""

    name: str
    precision: Precision | None
    start: float
    low: float
    high: float


def _parameters(precisions: Sequence[Precision], *, floor_us: float) -> list[Parameter]:
    shared = [
        Parameter(name="l2_bytes_per_clock", precision=None, start=64.0, low=8.0, high=1024.0),
        Parameter(name="memory_efficiency", precision=None, start=0.8, low=0.2, high=2.0),
        Parameter(name="epilogue", precision=None, start=1.0, low=0.05, high=10.0),
        Parameter(name="kernel_us", precision=None, start=max(floor_us, 1.0), low=0.3, high=60.0),
        Parameter(name="sparse_kernel_us", precision=None, start=1.0, low=0.01, high=40.0),
        Parameter(name="split_us", precision=None, start=2.0, low=0.1, high=20.0),
        Parameter(name="sparse_split_us", precision=None, start=0.5, low=0.01, high=40.0),
    ]
    own = [
        Parameter(name=name, precision=precision, start=start, low=low, high=high)
        for precision in precisions
        for name, start, low, high in (("efficiency", 0.7, 0.1, 1.5), ("sparse_speedup", 1.4, 0.2, 4.0))
    ]
    return shared + own


def fit_constants(
    samples: Sequence[Sample], gpu: GpuSpec, *, floor_us: float, provenance: Mapping[str, str], seed: int = 0
) -> KernelConstants | None:
    """Fit the kernel model to measured products.

    Args:
        samples: Dense and sparse kernels.
        gpu: Peaks, SMs, clock, bandwidth.
        floor_us: Time of an empty kernel, where the search starts.
        provenance: Where the samples come from.
        seed: Of the folds of the cross-validation.

    Returns:
        Constants with their spreads: measured over predicted, where sizes are held back from the fit; a tenth of them
        lies below `low`, a tenth above `high`. None where there are fewer than `FEWEST` samples.
    """
    if len(samples) < FEWEST:
        return None
    precisions = tuple(dict.fromkeys(sample.precision for sample in samples))
    parameters = _parameters(precisions, floor_us=floor_us)
    start = np.log([parameter.start for parameter in parameters])
    best = _solve(samples, gpu, parameters, start, most=_MOST_STEPS)
    held_back = _cross_validate(samples, gpu, parameters, best, seed)
    flops = [sample.geometry().flops for sample in samples]
    fitted = _constants(parameters, best)
    return fitted.model_copy(
        update={
            "spread": _spreads(samples, held_back),
            "covered_flops": (float(min(flops)), float(max(flops))),
            "provenance": dict(provenance),
        }
    )


Log = NDArray[np.float64]


def _solve(samples: Sequence[Sample], gpu: GpuSpec, parameters: Sequence[Parameter], start: Log, *, most: int) -> Log:
    bounds = (np.log([one.low for one in parameters]), np.log([one.high for one in parameters]))
    geometries = [sample.geometry() for sample in samples]
    measured = np.log([sample.time_us for sample in samples])

    def residuals(logs: Log) -> Log:
        constants = _constants(parameters, logs)
        return _predicted(samples, geometries, gpu, constants) - measured

    found: Any = optimize.least_squares(
        residuals, np.clip(start, *bounds), bounds=bounds, loss="soft_l1", f_scale=0.1, diff_step=1e-3, max_nfev=most
    )
    return np.asarray(found.x, dtype=np.float64)


def _predicted(
    samples: Sequence[Sample], geometries: Sequence[LayerGeometry], gpu: GpuSpec, constants: KernelConstants
) -> Log:
    return np.log(
        [
            kernel_time(geometry, gpu, sample.precision, sparse=sample.sparse, constants=constants).total_us
            for sample, geometry in zip(samples, geometries, strict=True)
        ]
    )


def _constants(parameters: Sequence[Parameter], logs: Log) -> KernelConstants:
    values = {(one.name, one.precision): float(np.exp(log)) for one, log in zip(parameters, logs, strict=True)}

    def by_precision(name: str) -> dict[Precision, float]:
        known = {precision: value for (one, precision), value in values.items() if one == name and precision}
        every = dict(known)
        for precision, nearest in _NEAREST.items():
            stand_in = next((known[one] for one in nearest if one in known), None)
            if precision not in every and stand_in is not None:
                every[precision] = stand_in
        return every

    shared = {name: value for (name, precision), value in values.items() if precision is None}
    return KernelConstants(
        **shared,
        efficiency=by_precision("efficiency"),
        sparse_speedup=by_precision("sparse_speedup"),
        profile_us=0.0,
        sustained={},
        clock_gain={},
        spread={},
        provenance={},
        kernels="torch",
    )


def _cross_validate(
    samples: Sequence[Sample], gpu: GpuSpec, parameters: Sequence[Parameter], best: Log, seed: int
) -> Log:
    """Measured over predicted for each sample, by a fit that saw neither it nor its size in another form."""
    sizes = sorted({(sample.m, sample.n, sample.k) for sample in samples})
    order = np.random.default_rng(seed).permutation(len(sizes))
    fold_of = {sizes[index]: number % _FOLDS for number, index in enumerate(order)}
    folds = np.array([fold_of[(sample.m, sample.n, sample.k)] for sample in samples])
    ratios = np.ones(len(samples))
    for fold in range(_FOLDS):
        inside = [sample for sample, one in zip(samples, folds, strict=True) if one != fold]
        outside = [sample for sample, one in zip(samples, folds, strict=True) if one == fold]
        if not outside or len(inside) < len(parameters):
            continue
        constants = _constants(parameters, _solve(inside, gpu, parameters, best, most=_MOST_FOLD_STEPS))
        predicted = np.exp(_predicted(outside, [sample.geometry() for sample in outside], gpu, constants))
        ratios[folds == fold] = np.array([sample.time_us for sample in outside]) / predicted
    return ratios


def _spreads(samples: Sequence[Sample], ratios: Log) -> dict[str, Spread]:
    """Spreads of dense and sparse kernels, and of dense over sparse of the same product."""
    by_key = {
        (sample.m, sample.n, sample.k, sample.precision, sample.sparse): ratio
        for sample, ratio in zip(samples, ratios, strict=True)
    }
    dense = [ratio for key, ratio in by_key.items() if not key[-1]]
    sparse = [ratio for key, ratio in by_key.items() if key[-1]]
    gains = [
        ratio / by_key[(*key[:-1], True)]
        for key, ratio in by_key.items()
        if not key[-1] and (*key[:-1], True) in by_key
    ]
    both = dense + sparse
    found = {"dense": dense or both, "sparse": sparse or both, "gain": gains or both, "total": both}
    return {name: _spread(values) for name, values in found.items()}


def _spread(ratios: Sequence[float]) -> Spread:
    low, high = np.percentile(ratios, [_TENTH, 100 - _TENTH])
    return Spread(low=float(min(low, 1.0)), high=float(max(high, 1.0)))
