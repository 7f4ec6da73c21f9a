"""`nm2trt benchmark-gpu` as a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from nm2trt.artifacts import host_record
from nm2trt.errors import EXIT_BAD_VERDICT, MachineError, Nm2trtError
from nm2trt.estimate.gpus import GpuSpec
from nm2trt.estimate.kernel import KernelConstants
from nm2trt.gpu_benchmark.config import BenchmarkConfig
from nm2trt.gpu_benchmark.description import describe_gpu
from nm2trt.gpu_benchmark.device import copy_gb_s, eager_launch_us, launch_us, machine_record, warm_up
from nm2trt.gpu_benchmark.fit import Sample, fit_constants
from nm2trt.gpu_benchmark.gpu_schema import GpuBenchmarkDocument, MachineRecord, PointRecord
from nm2trt.gpu_benchmark.measure import has_wrong_outputs, ways_of
from nm2trt.gpu_benchmark.timing import GraphTimer
from nm2trt.gpu_benchmark.wording import sentence
from nm2trt.gpu_benchmark.worker import Worker
from nm2trt.profile.device_state import gpu_state
from nm2trt.torch_sparse.backends import BackendName, detect_backends

Progress = Callable[[str, float], None]

_SHARE_OF_ROUNDS = 0.35
"""Of a product's time; the rest goes into packing, searching, capturing and profiling."""


class WrongProductError(Nm2trtError):
    """A sparse product is not the dense product of the same weights."""

    exit_code = EXIT_BAD_VERDICT


def benchmark_gpu(
    config: BenchmarkConfig,
    *,
    progress: Progress = lambda _what, _share: None,
    clock: Callable[[], float] = time.perf_counter,
) -> GpuBenchmarkDocument:
    """Measure this machine's first GPU with torch alone.

    Raises:
        MachineError: There is no GPU of compute capability 8.0 or newer that torch can use.
        WrongProductError: A sparse product differs from the dense one by more than rounding.
    """
    require_gpu()
    started = clock()
    timer = GraphTimer()
    machine = machine_record()
    warm_up()
    before = gpu_state()
    bandwidth, launch, eager = copy_gb_s(timer), launch_us(timer), eager_launch_us()
    backends = tuple(state.name for state in detect_backends() if state.available)
    records, left_out = _measure_all(config, backends, machine, progress, clock, started)
    after = gpu_state()
    gpu = describe_gpu(
        machine,
        records,
        copy_gb_s=bandwidth,
        clock_mhz=before.clock_sm_max_mhz if before else None,
        power_limit_w=before.power_limit_w if before else None,
    )
    progress("fitting", 1.0)
    constants = _fitted(records, gpu, machine, launch_us=launch, seed=config.seed)
    return GpuBenchmarkDocument(
        machine=machine,
        copy_gb_s=round(bandwidth, 1),
        launch_us=round(launch, 3),
        eager_launch_us=round(eager, 3),
        timer=timer.description,
        points=tuple(records),
        left_out=tuple(left_out),
        gpu=gpu,
        constants=constants,
        before=before,
        after=after,
        duration_s=config.duration_s,
        seed=config.seed,
        sentence=sentence(records),
        notes=_notes(constants is None, backends),
        host=host_record(),
    )


def refit(document: GpuBenchmarkDocument) -> GpuBenchmarkDocument:
    """Describe and fit anew what was measured before; needs no GPU."""
    state = document.before
    gpu = describe_gpu(
        document.machine,
        document.points,
        copy_gb_s=document.copy_gb_s,
        clock_mhz=state.clock_sm_max_mhz if state else None,
        power_limit_w=state.power_limit_w if state else None,
    )
    constants = _fitted(document.points, gpu, document.machine, launch_us=document.launch_us, seed=document.seed)
    return document.model_copy(update={"gpu": gpu, "constants": constants, "sentence": sentence(document.points)})


def _fitted(
    records: Sequence[PointRecord], gpu: GpuSpec, machine: MachineRecord, *, launch_us: float, seed: int
) -> KernelConstants | None:
    provenance = {
        "kernels": f"torch {machine.torch} (cuBLAS of CUDA {machine.cuda}, cuSPARSELt {machine.cusparselt}), "
        "not TensorRT's",
        "products": f"{len(records)} products on {machine.name}, driver {machine.driver}",
        "method": "nm2trt benchmark-gpu: least squares on log times, soft L1; spreads held back by size",
    }
    return fit_constants(samples_of(records), gpu, floor_us=launch_us, provenance=provenance, seed=seed)


def require_gpu() -> None:
    """Check that torch has a GPU with sparse Tensor Cores.

    Raises:
        MachineError: It has none.
    """
    if not torch.cuda.is_available():
        raise MachineError(
            "torch finds no GPU", hint="run on a machine with an NVIDIA GPU of compute capability 8.0 or newer"
        )
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        raise MachineError(
            f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]} and no sparse "
            "Tensor Cores",
            hint="use an NVIDIA GPU of compute capability 8.0 or newer",
        )


def _measure_all(
    config: BenchmarkConfig,
    backends: Sequence[BackendName],
    machine: MachineRecord,
    progress: Progress,
    clock: Callable[[], float],
    started: float,
) -> tuple[list[PointRecord], list[str]]:
    points = list(config.points())
    share_s = config.duration_s / len(points)
    records: list[PointRecord] = []
    left_out: list[str] = []
    worker = Worker(
        config,
        budget_s=share_s * _SHARE_OF_ROUNDS,
        l2_bytes=machine.l2_mib * 2**20,
    )
    ways = ways_of(backends, search=config.search)
    for number, point in enumerate(points):
        if clock() - started > config.duration_s:
            left_out.append(point.label)
            continue
        progress(point.label, number / len(points))
        try:
            record = worker.measure(point, ways)
        except RuntimeError as error:
            # Too large for this GPU's memory, as a rule; the other products still count.
            left_out.append(str(error))
            continue
        if has_wrong_outputs(record):
            worst = max(record.sparse, key=lambda one: one.relative_error)
            raise WrongProductError(
                f"{worst.backend} differs from the dense product of the same weights by {worst.relative_error:.3g} of "
                "its largest value",
                where=point.label,
                hint="report it to PyTorch, with these sizes and versions",
            )
        records.append(record)
    worker.close()
    return records, left_out


def samples_of(records: Sequence[PointRecord]) -> list[Sample]:
    """Kernels to fit on: the dense one, and of the sparse ones whose name was seen the fastest."""
    samples = []
    for one in records:
        size = {"m": one.m, "n": one.n, "k": one.k, "precision": one.dtype}
        samples.append(Sample(**size, sparse=False, time_us=one.dense_us))  # type: ignore[arg-type]
        chosen = [times.median_us for times in one.sparse if times.chosen]
        if chosen:
            samples.append(Sample(**size, sparse=True, time_us=min(chosen)))  # type: ignore[arg-type]
    return samples


def _notes(no_fit: bool, backends: Sequence[BackendName]) -> tuple[str, ...]:
    notes = [
        "Outputs of 2:4 products lie column by column, as torch leaves them; a transposition behind them is not timed."
    ]
    notes += ["These are torch's kernels. What TensorRT would choose, or how fast its kernels are, was not measured."]
    if not backends:
        notes.append("No 2:4 backend runs on this GPU with this torch: only dense products were timed.")
    if no_fit:
        notes.append("Too few products were timed for a fit: `nm2trt estimate` keeps its own constants.")
    notes += [
        "cuSPARSELt 0.8.0 is slower on this GPU than 0.7.1 and 0.8.1 (NVIDIA's release notes; pytorch#177456)."
        for state in detect_backends()
        if state.slow_release
    ]
    return tuple(notes)
