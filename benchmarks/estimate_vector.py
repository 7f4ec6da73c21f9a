"""The kernel model of nm2trt.estimate.kernel over many points at once, for fits: the same formulas on arrays.

`check` holds it against the package's own function; the package's stays the only one that users run.
"""

# ruff: noqa: SLF001 - the same formulas need the same parts.

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from estimate_points import Part, Point

from nm2trt.estimate import kernel as model
from nm2trt.estimate.constants import KernelConstants

Log = np.ndarray


class Points:
    """Kernels of some points, laid out for one set of switches (tile shapes, splits); times for any constants."""

    def __init__(self, points: Sequence[Point], constants: KernelConstants) -> None:
        self.points = points
        self._index: dict[tuple[object, ...], int] = {}
        self._kernels: list[tuple[Part, Point, bool]] = []
        rows = []
        for number, point in enumerate(points):
            for part in point.parts:
                dense = self._add(point, part, False)
                sparse = self._add(point, part, True) if part.layer.weight else dense
                rows.append((number, dense, sparse, part.count))
        self._rows = np.array(rows)
        self._lay_out(constants)
        self.network = np.array([point.kind != "layer" for point in points])
        self.layers = np.array([point.layers for point in points])
        self.ran_sparse = np.array([point.kind != "network" for point in points])

    def _add(self, point: Point, part: Part, sparse: bool) -> int:
        layer = part.layer
        key = (layer.kind, layer.m, layer.n, layer.k, layer.groups, layer.reads, layer.writes, layer.residual)
        key = (*key, layer.weight_elements, part.precision, part.float_bytes, sparse, point.gpu.key)
        if key not in self._index:
            self._index[key] = len(self._kernels)
            self._kernels.append((part, point, sparse))
        return self._index[key]

    def _lay_out(self, constants: KernelConstants) -> None:
        tiles, starts, combos, facts = [], [], {}, []
        for number, (part, point, sparse) in enumerate(self._kernels):
            layer, gpu, precision = part.layer, point.gpu, part.precision
            size = model.ELEMENT_BYTES[precision]
            scale = model.SPARSE_WEIGHT_SCALE[precision] if sparse else 1.0
            moved = model._moved_bytes(layer, precision, scale, part.float_bytes)
            combo = combos.setdefault((gpu.key, precision), (len(combos), gpu, precision))[0]
            share = layer.flops / max(1, 2 * layer.m * layer.n * layer.k * layer.groups)
            attention = layer.kind == "attention"
            queries = model._up(layer.m, model._ATTENTION_ROWS) * layer.groups if attention else 1
            weights = layer.weight_elements * size * scale
            facts.append(
                (
                    *(moved, weights, gpu.bytes_per_us, gpu.l2_mib * 2**20, combo, sparse, attention, share),
                    *(layer.is_product, gpu.sms, gpu.clock_mhz, queries, layer.flops),
                )
            )
            starts.append(len(tiles))
            if not layer.is_product:
                tiles.append((1, 0, 0, 0, 1, 0))
                continue
            pack = 1
            n, k = layer.n * pack, model._padded_k(layer, precision) * pack
            writes = 2.0 if layer.residual.floats or layer.residual.int8 else 1.0
            least = max(constants.least_columns.get(precision, 0), model._SPARSE_COLUMNS if sparse else 0)
            splits = constants.split_convolutions or layer.kind not in ("conv", "conv-transpose")
            smallest = max(model._SMALLEST_TILE, constants.least_sparse_tile.get(precision, 0) if sparse else 0)
            for bm, bn, split in model._tilings(n, k, least, smallest, splits, constants.tile_rows):
                count = model._up(layer.m, bm) * model._up(n, bn) * split * layer.groups
                tiles.append(
                    (
                        count / gpu.sms,
                        2 * bm * bn * (k / split),
                        (k / split) * size * (bm + bn * scale),
                        bm * min(bn, n) * size * writes,
                        split,
                        number,
                    )
                )
        self._tiles, self._starts = np.array(tiles, float).T, np.array(starts)
        self._counts = np.diff([*starts, len(tiles)])
        self._facts, self._combos = np.array(facts, float).T, list(combos.values())

    def kernel_us(self, c: KernelConstants) -> Log:
        """Time of every kernel."""
        moved, weights, bandwidth, l2, combo, sparse, attention, share, product, sms, clock, queries, flops = (
            self._facts
        )
        sustained, relieved = (
            np.array([model.sustained_share(gpu, p, c, sparse=on) for _, gpu, p in self._combos])[combo.astype(int)]
            for on in (False, True)
        )
        sustained = np.where(sparse > 0, relieved, sustained)
        factor = np.array([model.sparse_factor(gpu, p, c) for _, gpu, p in self._combos])[combo.astype(int)]
        peak = np.array([gpu.peak_flop_per_us(p) for _, gpu, p in self._combos])[combo.astype(int)]
        efficient = np.array([c.efficiency[p] for _, _, p in self._combos])[combo.astype(int)]
        rate = peak / sms * efficient * np.where(sparse > 0, factor, 1.0)
        per_sm, work, operands, written, split, _ = self._tiles
        spread = lambda values: np.repeat(values, self._counts)  # noqa: E731
        l2_scale = np.array([c.l2_scale.get(str(gpu.sm), 1.0) for _, gpu, _ in self._combos])[combo.astype(int)]
        l2_rate = spread(c.l2_bytes_per_clock * l2_scale * clock)
        whole = np.ceil(per_sm)
        waves = np.where(whole > 1, whole - c.soft_wave * (whole - per_sm), 1.0)
        overlap = model._TILE_OVERLAP
        tile = ((work / spread(rate)) ** overlap + (operands / l2_rate) ** overlap) ** (1 / overlap)
        total = waves * (tile + c.epilogue * written / l2_rate)
        total += np.where(split > 1, c.split_us + np.where(spread(sparse) > 0, c.sparse_split_us, 0.0), 0.0)
        best = np.minimum.reduceat(total, self._starts)
        if c.attention_share:
            whole = np.ceil(queries / sms)
            waves = np.where(whole > 1, whole - c.soft_wave * (whole - queries / sms), 1.0)
            fused = flops / (peak * c.attention_share) * waves * sms / queries
        else:
            fused = best * share / model._ATTENTION_EFFICIENCY
        compute = np.where(product > 0, np.where(attention > 0, fused, best) / sustained, 0.0)
        streamed = weights if c.weights_stream else 0.0
        tensors = moved - streamed
        missed = streamed + tensors * np.minimum(1.0, tensors / (l2 * c.l2_resident))
        memory = missed / (bandwidth * c.memory_efficiency)
        slower = c.floor_clock_mhz / clock if c.floor_clock_mhz else 1.0
        own = c.kernel_us - c.profile_us + np.where(sparse > 0, c.sparse_kernel_us, 0.0)
        return np.maximum(np.hypot(compute, memory) + own * slower + c.profile_us, moved / bandwidth)

    def predict(self, c: KernelConstants) -> tuple[Log, Log]:
        """Dense and sparse time of every point; a network's builder is taken to keep what is faster."""
        each = self.kernel_us(c)
        number, dense, sparse, count = self._rows.T
        times = each[dense], np.where(self.ran_sparse[number], each[sparse], np.minimum(each[dense], each[sparse]))
        overhead = np.where(self.network, c.profile_us * self.layers, 0.0)
        first, second = (
            np.bincount(number, weights=count * time, minlength=len(self.points)) - overhead for time in times
        )
        return first, second


def check(points: Sequence[Point], c: KernelConstants) -> None:
    """Raise where the arrays and the package's function differ.

    Raises:
        AssertionError: They differ.
    """
    compiled = Points(points, c)
    for (part, point, sparse), time in zip(compiled._kernels, compiled.kernel_us(c), strict=True):
        found = model.kernel_time(
            part.layer, point.gpu, part.precision, sparse=sparse, constants=c, float_bytes=part.float_bytes
        )
        if not math.isclose(found.total_us, time, rel_tol=1e-9):
            raise AssertionError(f"{point.name}: {time} us by arrays, {found.total_us} by the package")
