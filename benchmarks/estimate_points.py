"""Everything measured that the estimate is fitted on and checked against, as points of one form.

A point is one timing: a layer of a profiled engine, one matrix product, or a whole network end to end. Its groups say
what it shares with others, so that whole engines, GPUs and releases can be held back together.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from estimate_data import geometry, resnet18_rows, unet_rows

from nm2trt.estimate.geometry import LayerGeometry, Traffic
from nm2trt.estimate.gpus import GpuSpec, Precision, find_gpu
from nm2trt.estimate.network import layer_precision

Kind = Literal["layer", "product", "network"]

GPU_KEYS = {
    "A100": "a100-sxm-80gb",
    "A100 SXM4": "a100-sxm-40gb",
    "A100 SXM 80GB": "a100-sxm-80gb",
    "A100 40GB": "a100-sxm-40gb",
    "A100 80GB": "a100-sxm-80gb",
    "H100": "h100-sxm",
    "H100 SXM": "h100-sxm",
    "RTX 3090": "rtx-3090",
    "L4": "l4",
}
"""Boards of the published rows; where a source names no board, the one that its dense figures fit."""
FAMILIES = {"a100": "A100", "h100": "H100", "l4": "L4", "rtx-3090": "RTX 3090"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Equal layers of a point."""

    layer: LayerGeometry
    precision: Precision
    float_bytes: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """One timing. Microseconds; a ratio is dense over sparse."""

    name: str
    kind: Kind
    engine: str
    """Engine, or paper and library: what one measurement run shares."""
    family: str
    """GPU, boards of one chip together."""
    release: str
    """Of TensorRT, or the library."""
    gpu: GpuSpec
    precision: Precision
    parts: tuple[Part, ...]
    dense_us: float | None
    ratio: float | None = None
    chosen: bool | None = None
    """Whether a sparse kernel ran; None where not known."""
    sparse_us: float | None = None

    @property
    def group(self) -> str:
        """Engine, or what comes closest: one network or library on one GPU in one precision."""
        if self.kind == "layer":
            return self.engine
        what = "products" if self.kind == "product" else self.name.partition(" ")[0].partition(",")[0]
        return f"{what} {self.precision}, {self.family}"

    @property
    def layers(self) -> int:
        return sum(part.count for part in self.parts)

    @property
    def shape(self) -> tuple[object, ...]:
        """Of layers and products; networks by their size."""
        first = self.parts[0].layer
        return (first.m, first.n, first.k) if self.kind != "network" else (self.name,)


def read_points(folder: Path) -> tuple[list[Point], list[str]]:
    """All points of the folder, and what was left out with the reason."""
    rows = unet_rows(folder)
    more, _, left_out = resnet18_rows(folder)
    points = [
        Point(
            name=row.layer.name,
            kind="layer",
            engine=row.engine,
            family="A100",
            release="TensorRT 10.16" if row.engine.startswith("unet") else "TensorRT 8.x",
            gpu=row.gpu,
            precision=row.precision,
            parts=(part_of(row.layer, row.precision),),
            dense_us=row.dense_us,
            sparse_us=row.sparse_us,
            ratio=row.dense_us / row.sparse_us if row.sparse_us else None,
            chosen=row.chosen,
        )
        for row in [*rows, *more]
    ]
    with (folder / "published" / "dense-sparse.csv").open(newline="") as file:
        published, reasons = _published(csv.DictReader(file))
    return [*points, *published], [*left_out, *reasons]


def _published(records: Iterable[dict[str, str]]) -> tuple[list[Point], list[str]]:
    points, left_out, convolutions = [], [], {}
    for record in records:
        gpu, dense = GPU_KEYS.get(record["gpu"]), record["dense_ms"]
        if gpu is None or (record["op"] == "gemm" and not record["M"]):
            left_out.append(f"{record['source']}: no board or no shape stated")
            continue
        if record["op"].startswith("conv"):
            key = tuple(record[name] for name in ("precision", "op", "M", "N", "K"))
            convolutions.setdefault(key, []).append((1e3 * float(dense), record))
            continue
        parts = _parts(record)
        if not parts:
            left_out.append(f"{record['source']}: {record['network']}: no graph of it here")
            continue
        points.append(_point(record, gpu, parts, 1e3 * float(dense) if dense else None))
    for times in convolutions.values():
        # Layers of one shape in one engine are one point: their median.
        record = times[0][1]
        points.append(
            _point(record, GPU_KEYS[record["gpu"]], (_convolution(record),), statistics.median(t for t, _ in times))
        )
    return points, left_out


def _point(record: dict[str, str], gpu: str, parts: tuple[Part, ...], dense_us: float | None) -> Point:
    network, conv = record["op"] == "network", record["op"].startswith("conv")
    ratio = float(record["ratio"]) if record["ratio"] else None
    size = f" b{record['batch']}" if network else f" {record['M']}x{record['N']}x{record['K']}"
    engine = f"{record['gpu']} {record['library']}" + (f" {record['network']}" if network else "")
    return Point(
        name=(record["network"] or record["op"]) + size,
        kind="network" if network else "layer" if conv else "product",
        engine=f"ResNet-50 {record['precision']}, {record['gpu']}" if conv else engine,
        family=next(family for key, family in FAMILIES.items() if gpu.startswith(key)),
        release=record["library"],
        gpu=find_gpu(gpu),
        precision=record["precision"],
        parts=parts,
        # A feed-forward block quantizes its activations, too, in both.
        dense_us=dense_us if record["op"] != "ffn2" else None,
        ratio=ratio,
        sparse_us=1e3 * float(record["sparse_ms"]) if record["sparse_ms"] else None,
        chosen=None if ratio is None else True,
    )


def part_of(layer: LayerGeometry, precision: Precision, count: int = 1) -> Part:
    """A layer whose tensors are stored in the precision that it runs in."""
    size = {"tf32": 4.0, "int8": 1.0, "fp8": 1.0}.get(precision, 2.0)
    return Part(layer=layer, precision=precision, float_bytes=size, count=count)


def _parts(record: dict[str, str]) -> tuple[Part, ...]:
    precision: Precision = record["precision"]
    if record["op"] == "network":
        name, batch = record["network"], int(record["batch"] or 0)
        tokens = int(name.rpartition(" ")[2]) if "sequence" in name else 0
        if name.startswith("BERT-Large"):
            return bert_parts(24, 1024, 16, batch, tokens, precision)
        if name.startswith("BERT-base"):
            return bert_parts(12, 768, 12, batch, tokens, precision)
        return ()
    m, n, k = (int(record[name]) for name in "MNK")
    return (part_of(product(m, n, k), precision, 2 if record["op"] == "ffn2" else 1),)


@cache
def bert_parts(layers: int, width: int, heads: int, batch: int, tokens: int, precision: str) -> tuple[Part, ...]:
    """The layers of a BERT encoder; equal ones are counted, not repeated."""
    shapes = {"x": (batch, tokens, width)}
    found = geometry("bert", None, layers=layers, width=width, heads=heads, shapes=shapes).layers
    counts: dict[tuple[object, ...], list[LayerGeometry]] = {}
    for layer in found:
        key = (layer.kind, layer.m, layer.n, layer.k, layer.groups, layer.reads, layer.writes, layer.residual)
        counts.setdefault(key, []).append(layer)
    parts = []
    for equal in counts.values():
        kernel_precision, float_bytes = layer_precision(equal[0], precision)
        parts.append(Part(layer=equal[0], precision=kernel_precision, float_bytes=float_bytes, count=len(equal)))
    return tuple(parts)


def product(m: int, n: int, k: int) -> LayerGeometry:
    """One matrix product, weights n x k."""
    return LayerGeometry(
        name="product",
        kind="gemm",
        op_types=("MatMul",),
        nodes=("product",),
        weight="w",
        m=m,
        n=n,
        k=k,
        channels=k,
        flops=2 * m * n * k,
        reads=Traffic(floats=m * k),
        writes=Traffic(floats=m * n),
        weight_elements=n * k,
    )


def _convolution(record: dict[str, str]) -> Part:
    m, n, k = (int(record[name]) for name in "MNK")
    words = record["op"].split()
    kernel, stride = int(words[1].partition("x")[0]), int(words[3])
    channels = k // kernel**2
    residual = m * n if "residual" in record["op"] else 0
    # A 1x1 kernel at stride 2 reads one pixel of four; a larger one reads them all.
    image = m * channels * min(stride, kernel) ** 2
    layer = LayerGeometry(
        name=record["op"],
        kind="conv",
        op_types=("Conv",),
        nodes=("conv",),
        weight="w",
        m=m,
        n=n,
        k=k,
        channels=channels,
        kernel=(kernel, kernel),
        flops=2 * m * n * k,
        reads=Traffic(floats=image + residual),
        residual=Traffic(floats=residual),
        writes=Traffic(floats=m * n),
        weight_elements=n * k,
    )
    return part_of(layer, record["precision"])
