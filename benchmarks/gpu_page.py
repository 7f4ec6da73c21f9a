"""The tables of docs/gpu-NAME.md, from what `make gpu` left.

    python benchmarks/gpu_page.py build/gpu          # a folder, or the unpacked archive

Products of the networks are held against the estimate: measured over predicted, by constants that were fitted to the
benchmark's products, which are others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nm2trt.artifacts import ReportDocument
from nm2trt.estimate.kernel import kernel_time
from nm2trt.gpu_benchmark import GpuBenchmarkDocument
from nm2trt.gpu_benchmark.fit import Sample
from nm2trt.gpu_benchmark.wording import best_sparse


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def machine(found: GpuBenchmarkDocument) -> None:
    one = found.machine
    print(f"{one.name}, driver {one.driver}, torch {one.torch}, CUDA {one.cuda}, cuSPARSELt {one.cusparselt}")
    print(f"memory {found.copy_gb_s:,.0f} GB/s; empty kernel {found.launch_us:.2f} us in a graph, "
          f"{found.eager_launch_us:.1f} us launched by the host\n")  # fmt: skip


def products(found: GpuBenchmarkDocument) -> None:
    """Dense over 2:4 by rows of the activation, default algorithm and searched one."""
    rows = sorted({point.m for point in found.points})
    lines = []
    for dtype in ("fp16", "bf16", "int8"):
        for searched in (False, True):
            cells = [dtype, "searched" if searched else "default"]
            for m in rows:
                ratios = [
                    one.ratio.value
                    for point in found.points
                    if point.dtype == dtype and point.m == m
                    for one in point.sparse
                    if one.chosen and one.searched is searched
                ]
                cells.append(f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "")
            lines.append(cells)
    table(("dtype", "algorithm", *(f"M = {m}" for m in rows)), lines)
    for dtype in ("fp16", "bf16", "int8"):
        mine = [best for point in found.points if point.dtype == dtype and (best := best_sparse(point)) is not None]
        faster = sum(one.finding == "sparse-faster" for one in mine)
        slower = sum(one.finding == "sparse-slower" for one in mine)
        print(f"{dtype}: {faster} of {len(mine)} products faster than dense beyond the noise, {slower} slower")
    print()
    if found.constants is not None:
        spread = ", ".join(f"{name} {one.low:.2f} to {one.high:.2f}" for name, one in found.constants.spread.items())
        print(f"fit, measured over predicted, sizes held back, the middle four fifths: {spread}\n")


def networks(folder: Path) -> None:
    """Every network, mode and batch."""
    lines = []
    for path in sorted(folder.glob("*/report.json")):
        report = ReportDocument.read(path.parent)
        for batch in report.batches:
            medians = {variant.name: variant.median_ms for variant in batch.variants}
            contrast = next(one.ratio for one in batch.contrasts if one.over == "control")
            lines.append(
                (
                    path.parent.name,
                    str(batch.mode),
                    str(batch.batch),
                    f"{medians['dense']:.3g}",
                    f"{medians['control']:.3g}",
                    f"{medians['sparse']:.3g}",
                    f"{batch.ratio.value:.2f} [{batch.ratio.low:.2f}, {batch.ratio.high:.2f}]",
                    f"{contrast.value:.2f}",
                    f"{100 * batch.noise_floor:.1f} %",
                    batch.finding,
                )
            )
    headings = ("network", "mode", "batch", "dense ms", "control ms", "sparse ms", "dense / sparse",
                "control / sparse", "A/A noise", "finding")  # fmt: skip
    table(headings, lines)


def layers(folder: Path, found: GpuBenchmarkDocument) -> None:
    """Products inside the networks: kernel times, and the estimate against them."""
    if found.constants is None:
        return
    lines = []
    for path in sorted(folder.glob("*/report.json")):
        report = ReportDocument.read(path.parent)
        if report.layers is None:
            continue
        dense, sparse, dense_ms, sparse_ms = [], [], 0.0, 0.0
        for row in report.layers.layers:
            if not row.chosen or row.dense_ms is None or row.sparse_ms is None:
                continue
            sizes, _, rows = row.shape.partition(", ")
            n, k, *_ = map(int, sizes.split("x"))
            precision = report.precision
            assert precision in ("fp16", "bf16")
            sample = Sample(m=int(rows.split()[0]), n=n, k=k, precision=precision, sparse=False, time_us=1.0)
            for ratios, time_ms, is_sparse in ((dense, row.dense_ms, False), (sparse, row.sparse_ms, True)):
                predicted = kernel_time(
                    sample.geometry(), found.gpu, precision, sparse=is_sparse, constants=found.constants
                )
                ratios.append(1000 * time_ms / predicted.total_us)
            dense_ms += row.dense_ms
            sparse_ms += row.sparse_ms
        if dense:
            lines.append(
                (
                    path.parent.name,
                    str(report.layers.batch),
                    str(len(dense)),
                    f"{dense_ms:.3g}",
                    f"{sparse_ms:.3g}",
                    f"{dense_ms / sparse_ms:.2f}",
                    *(f"{np.median(one):.2f} ({np.percentile(one, 10):.2f} to {np.percentile(one, 90):.2f})"
                      for one in (dense, sparse)),
                )
            )  # fmt: skip
    headings = ("network", "batch", "products on sparse kernels", "dense ms", "2:4 ms", "dense / 2:4",
                "measured / estimated, dense", "measured / estimated, 2:4")  # fmt: skip
    table(headings, lines)


def training(folder: Path) -> None:
    """What a step costs."""
    path = folder / "train-step.json"
    if not path.is_file():
        return
    found = json.loads(path.read_text())
    print(f"{found['model']}, batch {found['batch']}, bf16 autocast, channels_last, {found['rounds']} rounds\n")
    lines = []
    for kind, row in found["variants"].items():
        value, low, high = row["over_dense"]
        lines.append(
            (
                kind,
                f"{row['step_ms']:.2f}",
                f"{value:.4f} [{low:.4f}, {high:.4f}]",
                f"{row['optimizer_ms']:.2f}",
                str(row["optimizer_kernels"]),
                str(row["host_waits_in_a_step"]),
            )
        )
    headings = ("variant", "step ms", "over dense", "optimizer's step ms", "its kernels", "host waits in a step")
    table(headings, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpu-file", type=Path, help="another record of benchmark-gpu than the folder's gpu.json")
    arguments = parser.parse_args()
    path = arguments.gpu_file or arguments.folder / "gpu.json"
    found = GpuBenchmarkDocument.model_validate_json(path.read_bytes())
    machine(found)
    products(found)
    networks(arguments.folder)
    layers(arguments.folder, found)
    training(arguments.folder)


if __name__ == "__main__":
    main()
