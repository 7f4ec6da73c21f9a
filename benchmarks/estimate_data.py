"""The measured layers that the estimate's constants come from: recorded A100 data, each with its geometry.

The folder holds `a100-unet` (TensorRT 10.16 on an A100-PCIE-40GB, dense and sparse engine) and `a100-resnet18`
(TensorRT 8.x on an A100 80GB PCIe, dense only; NVIDIA's trt-engine-explorer examples).
"""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import estimate_networks as networks

from nm2trt.estimate.geometry import LayerGeometry
from nm2trt.estimate.gpus import GpuSpec, Precision, find_gpu
from nm2trt.estimate.network_layers import NetworkGeometry, network_geometry

UNET_TABLES = {"fp16": "fp16.csv", "int8": "int8_odd_layers.csv"}
UNET_END_TO_END_MS = {"fp16": (5.09, 4.51), "int8": (2.96, 2.69)}
"""Dense and sparse engine, by their README."""
RESNET18_FOLDERS: dict[str, Precision] = {"fp32": "tf32", "fp16": "fp16", "qat-residual": "int8"}


@dataclass(frozen=True)
class Row:
    """One layer in one engine; times as the per-layer profile gave them."""

    engine: str
    precision: Precision
    gpu: GpuSpec
    layer: LayerGeometry
    dense_us: float
    sparse_us: float | None = None
    chosen: bool | None = None

    @property
    def group(self) -> tuple[int, int, int]:
        """Layers of one shape are held back together, whatever network and precision they ran in."""
        return self.layer.m, self.layer.n, self.layer.k


@dataclass(frozen=True)
class Engine:
    """One engine: what its layers take together when profiled one by one, and what it takes end to end."""

    name: str
    layers: int
    profiled_us: float
    end_to_end_us: float


def geometry(maker: str, batch: int, **arguments) -> NetworkGeometry:
    shapes = arguments.pop("shapes", None)
    with tempfile.TemporaryDirectory() as folder:
        path = getattr(networks, maker)(Path(folder) / "model.onnx", **arguments)
        return network_geometry(path, batch=batch, shapes=shapes)


def unet_rows(folder: Path) -> list[Row]:
    layers = {layer.name: layer for layer in geometry("unet", 32).layers}
    gpu = find_gpu("a100-pcie-40gb")
    rows = []
    for precision, name in UNET_TABLES.items():
        with (folder / "a100-unet" / name).open(newline="") as file:
            rows += [
                Row(
                    engine=f"unet {precision}",
                    precision=precision,
                    gpu=gpu,
                    layer=layers[record["layer"]],
                    dense_us=1e3 * float(record["dense_engine_ms"]),
                    sparse_us=1e3 * float(record["sparse_engine_ms"]),
                    chosen=record["sparse_kernel_chosen"] == "1",
                )
                for record in csv.DictReader(file)
            ]
    return rows


def resnet18_rows(folder: Path) -> tuple[list[Row], list[Engine], list[str]]:
    """Convolutions that ran on Tensor Cores; the names of the others with the reason."""
    products = [layer for layer in geometry("resnet18", 32).layers if layer.is_product]
    gpu = find_gpu("a100-pcie-80gb")
    rows, engines, left_out = [], [], []
    for name, precision in RESNET18_FOLDERS.items():
        times, layers = _profile(folder / "a100-resnet18" / name)
        summary = json.loads((folder / "a100-resnet18" / name / "timing.summary.json").read_text())
        ran = [value for value in times.values() if value > 0]
        engines.append(Engine(f"resnet18 {precision}", len(ran), sum(ran), 1e3 * summary["computeMs"]["median"]))
        for layer in layers:
            if layer["LayerType"] != "CaskConvolution":
                continue
            if reason := _not_a_tensor_core_layer(layer, precision):
                left_out.append(f"resnet18 {precision}, {layer['Name'][:40]}: {reason}")
                continue
            rows.append(
                Row(
                    engine=f"resnet18 {precision}",
                    precision=precision,
                    gpu=gpu,
                    layer=_match(layer, products),
                    dense_us=times[layer["Name"]],
                )
            )
    return rows, engines, left_out


def unet_engines(rows: list[Row]) -> list[Engine]:
    """FP16 only: of INT8 half of the layers is known. Other layers' times are those in the README."""
    dense = [row for row in rows if row.engine == "unet fp16"]
    others = {"dense": (15, 561 + 260 + 79), "sparse": (15, 547 + 259 + 78)}
    sums = {"dense": sum(row.dense_us for row in dense), "sparse": sum(row.sparse_us or 0 for row in dense)}
    return [
        Engine(
            f"unet fp16 {variant}", len(dense) + count, sums[variant] + extra, 1e3 * UNET_END_TO_END_MS["fp16"][index]
        )
        for index, (variant, (count, extra)) in enumerate(others.items())
    ]


def _profile(folder: Path) -> tuple[dict[str, float], list[dict]]:
    profile = json.loads((folder / "profile.json").read_text())
    times = {entry["name"]: 1e3 * entry["averageMs"] for entry in profile if "name" in entry}
    return times, json.loads((folder / "graph.json").read_text())["Layers"]


def _not_a_tensor_core_layer(layer: dict, precision: str) -> str:
    if "scudnn" in layer["TacticName"]:
        return "ran on FP32 units"
    if precision == "int8" and layer["Outputs"][0]["Format/Datatype"].endswith("FP32") and len(layer["Inputs"]) > 1:
        return "INT8 with an FP32 residual and output"
    return ""


def _match(layer: dict, products: list[LayerGeometry]) -> LayerGeometry:
    """By shape; where the residual sum went decides among equals."""
    (batch, c_in, *_), (_, c_out, *size) = layer["Inputs"][0]["Dimensions"], layer["Outputs"][0]["Dimensions"]
    kernel = layer["Kernel"][0]
    wanted = (batch * size[0] * size[1], c_out, c_in * kernel * kernel)
    found = [product for product in products if (product.m, product.n, product.k) == wanted]
    residual = len(layer["Inputs"]) > 1
    return min(found, key=lambda product: bool(product.residual.floats) != residual)
