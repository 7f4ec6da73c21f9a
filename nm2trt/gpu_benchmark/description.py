"""A GPU's figures for the estimate: its data sheet where it is known, else what was reached."""

from __future__ import annotations

from collections.abc import Sequence

from nm2trt.estimate.gpus import GpuSpec, Precision, gpu_of_device
from nm2trt.gpu_benchmark.gpu_schema import MachineRecord, PointRecord

_HALF: tuple[Precision, ...] = ("fp16", "bf16")


def describe_gpu(
    machine: MachineRecord,
    points: Sequence[PointRecord],
    *,
    copy_gb_s: float,
    clock_mhz: int | None,
    power_limit_w: float | None,
) -> GpuSpec:
    """Build the record that `nm2trt estimate --gpu-file` reads.

    Peaks are the data sheet's where the table knows the card; else the fastest dense product stands for the dense peak
    and twice that for the sparse one. Bandwidth is the measured one in both cases.
    """
    known = gpu_of_device(machine.name)
    reached = {name: _fastest_tflops(points, name) for name in ("fp16", "bf16", "int8")}
    dense: dict[Precision, float] = {}
    for name in ("fp16", "bf16", "int8"):
        value = reached[name]
        if known is not None and name in known.dense:
            dense[name] = known.dense[name]
        elif value:
            dense[name] = value
    if not dense:
        dense = {"fp16": 1.0}
    half = next((dense[name] for name in _HALF if name in dense), None)
    dense.setdefault("tf32", known.dense["tf32"] if known is not None and "tf32" in known.dense else (half or 2.0) / 2)
    sparse: dict[Precision, float] = {name: 2 * peak for name, peak in dense.items()}
    source = "peaks from the data sheet" if known is not None else "peaks: the fastest products seen"
    return GpuSpec(
        name=machine.name,
        sm=machine.capability[0] * 10 + machine.capability[1],
        sms=machine.multiprocessors,
        clock_mhz=known.clock_mhz if known is not None else clock_mhz or 1500,
        l2_mib=machine.l2_mib,
        bandwidth_gb_s=copy_gb_s,
        power_w=power_limit_w or (known.power_w if known is not None else 300.0),
        dense=dense,
        sparse=sparse,
        source=f"nm2trt benchmark-gpu, torch {machine.torch}: bandwidth measured, {source}",
    )


def _fastest_tflops(points: Sequence[PointRecord], dtype: str) -> float:
    rates = [2 * one.m * one.n * one.k / one.dense_us / 1e6 for one in points if one.dtype == dtype]
    return round(max(rates, default=0.0), 1)
