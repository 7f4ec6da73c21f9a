"""A made-up GPU: times that follow from known constants, with known noise."""

import numpy as np

from nm2trt.estimate.gpus import GpuSpec
from nm2trt.estimate.kernel import KernelConstants, kernel_time
from nm2trt.gpu_benchmark.config import BenchmarkConfig
from nm2trt.gpu_benchmark.fit import Sample

GPU = GpuSpec(
    name="Synthetic",
    sm=90,
    sms=100,
    clock_mhz=1500,
    l2_mib=40,
    bandwidth_gb_s=2000,
    power_w=500,
    dense={"tf32": 200, "fp16": 400, "bf16": 400, "int8": 800},
    sparse={"tf32": 400, "fp16": 800, "bf16": 800, "int8": 1600},
    source="made up",
)


def truth(**changes):
    values = {
        "efficiency": {"fp16": 0.62, "bf16": 0.62, "int8": 0.5, "tf32": 0.62, "fp8": 0.5},
        "l2_bytes_per_clock": 60.0,
        "memory_efficiency": 0.75,
        "epilogue": 0.8,
        "kernel_us": 3.2,
        "profile_us": 0.0,
        "split_us": 1.5,
        "sparse_speedup": {"fp16": 1.35, "bf16": 1.35, "int8": 1.7, "tf32": 1.35, "fp8": 1.7},
        "sparse_split_us": 0.6,
        "sparse_kernel_us": 1.7,
        "sustained": {},
        "clock_gain": {},
        "spread": {},
        "provenance": {},
    }
    return KernelConstants(**(values | changes))


def samples(constants, *, noise=0.02, dtypes=("fp16", "int8"), seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for point in BenchmarkConfig(dtypes=dtypes).points():
        for sparse in (False, True):
            sample = Sample(m=point.m, n=point.n, k=point.k, precision=point.dtype, sparse=sparse, time_us=1.0)
            time = kernel_time(sample.geometry(), GPU, point.dtype, sparse=sparse, constants=constants).total_us
            found.append(
                Sample(
                    m=point.m,
                    n=point.n,
                    k=point.k,
                    precision=point.dtype,
                    sparse=sparse,
                    time_us=time * float(np.exp(rng.normal(0, noise))),
                )
            )
    return found
