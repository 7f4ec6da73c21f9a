"""`nm2trt benchmark-gpu`: what dense and 2:4 products cost on this GPU with torch alone, and constants fitted to it."""

from nm2trt.gpu_benchmark.config import BenchmarkConfig
from nm2trt.gpu_benchmark.gpu_schema import GpuBenchmarkDocument
from nm2trt.gpu_benchmark.run import benchmark_gpu, refit

__all__ = ["BenchmarkConfig", "GpuBenchmarkDocument", "benchmark_gpu", "refit"]
