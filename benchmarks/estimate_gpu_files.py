"""GPUs that no part of the fit has seen: products of `nm2trt benchmark-gpu` files against the package's model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from estimate_errors import errors_of
from estimate_points import Point, part_of, product

from nm2trt.estimate.constants import KernelConstants
from nm2trt.estimate.gpus import gpu_of_device
from nm2trt.estimate.ranges import product_ranges

PRECISIONS = ("fp16", "bf16")
"""torch's INT8 products are no kernels that TensorRT would take."""


def report_gpu_files(folder: Path, constants: KernelConstants) -> None:
    """Print errors and coverage of every gpu-*.json in a folder."""
    print(f"\n{'GPU that was never fitted':34}{'points':>8}{'bias':>10}{'median':>8}{'p90':>8}{'inside':>8}")
    for path in sorted(folder.glob("gpu-*.json")):
        points = _points(json.loads(path.read_text()))
        for precision in PRECISIONS:
            errors = [error for error in errors_of(points, constants) if error.point.precision == precision]
            if not errors:
                continue
            dense, _ = product_ranges(constants, "gemm", precision, 1.0, far=True)
            gain = product_ranges(constants, "gemm", precision, 1.0, far=True)[1]
            for what, spread in (("dense", dense), ("ratio", gain)):
                known = np.array([value for error in errors if (value := getattr(error, what)) is not None])
                inside = np.mean((np.exp(known) >= spread.low) & (np.exp(known) <= spread.high))
                size = np.abs(known)
                print(
                    f"{path.stem + ' products ' + precision + ', ' + what:34}{len(known):8}"
                    f"{100 * np.median(known):+9.1f}%{100 * np.median(size):7.1f}%{100 * np.quantile(size, 0.9):7.1f}%"
                    f"{100 * inside:7.0f}%"
                )


def _points(raw: dict) -> list[Point]:
    spec = gpu_of_device(raw["machine"]["name"])
    if spec is None:
        return []
    found = []
    for entry in raw["points"]:
        if entry["dtype"] not in PRECISIONS or not entry["sparse"]:
            continue
        best = max(one["ratio"]["value"] for one in entry["sparse"])
        found.append(
            Point(
                name="product",
                kind="product",
                engine=raw["machine"]["name"],
                family=spec.key,
                release="torch",
                gpu=spec,
                precision=entry["dtype"],
                parts=(part_of(product(entry["m"], entry["n"], entry["k"]), entry["dtype"]),),
                dense_us=entry["dense_us"],
                ratio=best,
                sparse_us=entry["dense_us"] / best,
                chosen=True,
            )
        )
    return found
