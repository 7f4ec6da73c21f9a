"""Candidate models of the estimate: which constants are free, which mechanisms are on, and their fit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from estimate_points import Point
from estimate_vector import Points
from scipy.optimize import least_squares

from nm2trt.estimate.constants import KernelConstants

BOARD = "a100-pcie-40gb"
SCALES = {"layer": 0.06, "product": 0.15, "network": 0.10}
RATIO_SCALES = {"layer": 0.03, "product": 0.12, "network": 0.08}
"""Log errors that count as one: what points of a kind scatter by themselves (libraries, checkpoints, releases)."""
OTHER_LIBRARY = 0.3
"""The same for networks that other libraries ran: their attention is not fused, their launches are no graph's."""
PRIOR, FIRM_PRIOR = 0.3, 3.0
"""Weight of a constant's distance (log) from where it starts, against one such error; firm where the start is physics
that few points can move."""
FIRM = ("operand_limit", "operand_scale", "sparse_power")

STARTS = 4

Bounds = tuple[float, float, float]

COMMON: dict[str, Bounds] = {
    "efficiency.fp16": (0.8, 0.4, 0.97),
    "efficiency.bf16": (0.75, 0.4, 0.97),
    "efficiency.int8": (0.8, 0.4, 0.97),
    "efficiency.tf32": (0.75, 0.4, 0.97),
    "l2_bytes_per_clock": (36.0, 16.0, 64.0),
    "memory_efficiency": (0.85, 0.4, 0.92),
    "epilogue": (0.8, 0.1, 4.0),
    "kernel_us": (9.0, 4.0, 20.0),
    "profile_us": (5.0, 1.0, 8.0),
    "sparse_split_us": (0.5, 0.05, 10.0),
}
OLD: dict[str, Bounds] = {
    "sustained.a100-pcie-40gb.fp16": (0.85, 0.4, 1.0),
    "sparse_speedup.fp16": (1.5, 1.0, 2.0),
    "sparse_speedup.int8": (1.5, 1.0, 2.0),
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model: free constants with start, lower and upper bound; what is fixed."""

    name: str
    free: Mapping[str, Bounds]
    fixed: Mapping[str, object] = field(default_factory=dict)


def constants_of(candidate: Candidate, values: Sequence[float], clock_gain: Mapping[str, float]) -> KernelConstants:
    """Constants from the free ones; precisions that nothing was measured in take their nearest."""
    fields: dict[str, object] = {
        "profile_us": 0.0,
        "split_us": 2.0,
        "sustained": {},
        "clock_gain": {BOARD: dict(clock_gain)},
        "spread": {},
        "provenance": {},
        "sparse_speedup": {"fp16": 1.5, "int8": 1.5},
        **candidate.fixed,
    }
    for name, value in zip(candidate.free, values, strict=True):
        head, *rest = name.split(".")
        if not rest:
            fields[head] = value
            continue
        at = dict(fields.get(head) or {})
        fields[head] = at
        for key in rest[:-1]:
            at[key] = dict(at.get(key) or {})
            at = at[key]
        at[rest[-1]] = value
    for name in ("efficiency", "sparse_speedup", "operand_limit", "watts_per_tflops"):
        table = fields.get(name)
        if not table:
            continue
        for precision, nearest in (("bf16", "fp16"), ("tf32", "fp16"), ("fp8", "int8")):
            # A TF32 product takes twice the power of an FP16 one, and moves twice the bytes.
            factor = 2.0 if (name, precision) == ("watts_per_tflops", "tf32") else 1.0
            table.setdefault(precision, table[nearest] * factor)
    return KernelConstants.model_validate(fields)


def clock_gains(points: Sequence[Point]) -> dict[str, float]:
    """Median gain of layers whose kernel was the same in both engines: clocks and power, not sparsity."""
    gains = {}
    for precision in ("fp16", "int8"):
        same = [p.ratio for p in points if p.chosen is False and p.precision == precision and p.ratio]
        gains[precision] = float(np.median(same)) if same else 1.0
    return gains


def merged(points: Sequence[Point]) -> list[Point]:
    """Networks that differ in the release alone as one point, their median: ten releases are no ten networks."""
    groups: dict[tuple[object, ...], list[Point]] = {}
    for point in points:
        release = point.release if point.kind != "network" or "Faster" in point.release else ""
        key = (point.kind, point.family, point.precision, point.name, release, point.engine if not release else "")
        if point.kind != "network":
            key = (id(point),)
        elif not release or "TensorRT" in point.release:
            key = (point.kind, point.family, point.precision, point.name)
        groups.setdefault(key, []).append(point)
    found = []
    for equal in groups.values():
        ratios = [p.ratio for p in equal if p.ratio]
        dense = [p.dense_us for p in equal if p.dense_us]
        found.append(
            replace(
                equal[0],
                dense_us=statistics.median(dense) if dense else None,
                ratio=statistics.median(ratios) if ratios else None,
            )
        )
    return found


class Fit:
    """Least squares on logarithms, soft L1, of one candidate over some points."""

    def __init__(self, candidate: Candidate, points: Sequence[Point]) -> None:
        self.candidate, self.points = candidate, merged(points)
        self.gain = clock_gains(points)
        start = [bounds[0] for bounds in candidate.free.values()]
        self.compiled = Points(self.points, constants_of(candidate, start, self.gain))
        self._measured()

    def _measured(self) -> None:
        self.dense = np.array([math.log(p.dense_us) if p.dense_us else np.nan for p in self.points])
        clocks = [
            self.gain.get(p.precision, 1.0) if p.gpu.key == BOARD and p.kind == "layer" else 1.0 for p in self.points
        ]
        self.ratio = np.array([math.log(p.ratio) if p.ratio else np.nan for p in self.points]) - np.log(clocks)
        self.chosen = np.array([p.chosen is not False for p in self.points])
        # Every engine counts as one of 20 points, however many were recorded of it.
        counts: dict[str, int] = {}
        for point in self.points:
            counts[point.engine] = counts.get(point.engine, 0) + 1
        weight = np.array([min(1.0, math.sqrt(25 / counts[p.engine])) for p in self.points])
        foreign = [p.kind == "network" and "TensorRT" not in p.release for p in self.points]
        self.scale = np.where(foreign, OTHER_LIBRARY, [SCALES[p.kind] for p in self.points]) / weight
        self.ratio_scale = np.where(foreign, OTHER_LIBRARY, [RATIO_SCALES[p.kind] for p in self.points]) / weight
        self.prior = np.array([FIRM_PRIOR if n.startswith(FIRM) else PRIOR for n in self.candidate.free])

    def residuals(self, x: np.ndarray) -> np.ndarray:
        constants = constants_of(self.candidate, np.exp(x), self.gain)
        dense, sparse = self.compiled.predict(constants)
        gain = np.log(dense / sparse)
        errors = (np.log(dense) - self.dense) / self.scale
        ratio = np.where(self.chosen, (gain - self.ratio) / self.ratio_scale, np.maximum(0.0, gain) / 0.1)
        known = np.concatenate([errors[~np.isnan(self.dense)], ratio[~np.isnan(self.ratio)]])
        return np.concatenate([known, self.prior * (x - self.start)])

    @property
    def start(self) -> np.ndarray:
        return np.log([bounds[0] for bounds in self.candidate.free.values()])

    def cost(self, x: np.ndarray) -> float:
        """Sum of soft L1 losses."""
        return float(np.sum(2 * (np.sqrt(1 + self.residuals(x) ** 2) - 1)))

    def run(self, starts: int = STARTS) -> tuple[np.ndarray, KernelConstants]:
        """Fit from several starts: the fastest tiling changes with the constants, so the cost has steps.

        Returns:
            Logs of the free constants, and all constants.
        """
        low, high = (np.log([bounds[i] for bounds in self.candidate.free.values()]) for i in (1, 2))
        random = np.random.default_rng(0)
        best, least = self.start, self.cost(self.start)
        for number in range(starts):
            at = best if number == 0 else best + random.normal(0.0, 0.1, len(best))
            for step in (2e-2, 2e-3):
                at = np.clip(at, low + 1e-6, high - 1e-6)
                at = least_squares(
                    self.residuals, at, bounds=(low, high), loss="soft_l1", diff_step=step, max_nfev=15
                ).x
                if (cost := self.cost(at)) < least:
                    best, least = at, cost
        return best, constants_of(self.candidate, np.exp(best), self.gain)


SOFT = {"soft_wave": (0.5, 0.05, 1.0)}
LIMIT = {
    "operand_limit.fp16": (1.6, 0.8, 4.0),
    "operand_limit.int8": (1.6, 0.8, 4.0),
    "operand_scale.90": (1.5, 0.7, 4.0),
}
WATTS = {
    "watts_per_tflops.fp16": (1.1, 0.3, 3.0),
    "watts_per_tflops.int8": (0.5, 0.1, 1.5),
    "watts_scale.89": (0.8, 0.4, 1.2),
}
TILES = {"split_convolutions": False, "least_columns": {"int8": 64}}
RATE = {key: value for key, value in OLD.items() if not key.startswith("sustained")}


STREAM = {"weights_stream": True}
L2 = {"l2_scale.90": (1.6, 1.0, 3.0)}
LARGE = {"least_sparse_tile": {"int8": 128 * 128}}
SPARSE_POWER = {"sparse_power": (0.75, 0.4, 1.0)}
POWER = {"power_exponent": 0.67, "watts_scale": {"90": 0.8}}
ATTENTION = {"attention_share": (0.35, 0.2, 0.6)}
CLOCK = {"floor_clock_mhz": 1410.0}
ROWS = {"tile_rows": (32, 64, 128, 192, 256)}
"""The recorded INT8 engine ran a tile of 192 x 64 for 64 channels."""


def candidates() -> list[Candidate]:
    """From the model before to one mechanism more each."""
    softer = COMMON | SOFT | ATTENTION | L2
    every = softer | WATTS | LIMIT | SPARSE_POWER
    fixed = TILES | STREAM | POWER
    return [
        Candidate(name="as before", free=COMMON | OLD),
        Candidate(name="+ tiles", free=COMMON | OLD, fixed=TILES),
        Candidate(name="+ soft last wave", free=COMMON | OLD | SOFT, fixed=TILES),
        Candidate(name="+ attention's share", free=COMMON | OLD | SOFT | ATTENTION, fixed=TILES),
        Candidate(name="+ weights from memory", free=softer | OLD, fixed=TILES | STREAM),
        Candidate(name="+ power", free=softer | RATE | WATTS, fixed=fixed),
        Candidate(name="+ floor in clocks", free=softer | RATE | WATTS, fixed=fixed | CLOCK),
        Candidate(name="+ operands", free=softer | WATTS | LIMIT, fixed=fixed | CLOCK),
        Candidate(name="+ sparse power", free=every, fixed=fixed | CLOCK),
        Candidate(name="+ tiles of 192 rows", free=every, fixed=fixed | CLOCK | ROWS),
        Candidate(name="+ large sparse tiles", free=every, fixed=fixed | CLOCK | ROWS | LARGE),
    ]
