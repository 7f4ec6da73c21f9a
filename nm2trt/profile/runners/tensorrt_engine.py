"""A TensorRT engine on the GPU: loaded through its manifest, with an execution context and buffers of its own.

Buffers and streams are torch's: it is installed with the CUDA libraries that fit it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nm2trt.artifacts import check_plan, this_platform
from nm2trt.artifacts.build import Variant
from nm2trt.errors import InputError, MachineError
from nm2trt.ort.random_inputs import draw_tensor
from nm2trt.tensorrt_api import (
    Flavor,
    LogKeeper,
    explain_missing,
    keep_log,
    load_engine,
    load_tensorrt,
    make_runtime,
    present_sm,
    require,
)
from nm2trt.tensorrt_api.types import ICudaEngine, IExecutionContext, Tensorrt

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}


class Engine:
    """One deserialized plan. Loaded only after the manifest vouched for it; host code stays disallowed.

    Args:
        folder: Build folder.
        variant: Which of its engines.
        flavor: The library that built it.
        rebuild: Which repetition of the variant.
        trust: As `check_plan`.

    Raises:
        InputError: The plan is not the manifest's, does not fit this machine, or cannot be deserialized.
        MachineError: The library or the GPU is missing, or they do not fit each other.
    """

    def __init__(
        self, folder: Path, variant: Variant, *, flavor: Flavor = "tensorrt", rebuild: int = 0, trust: bool = False
    ) -> None:
        require_tensorrt(flavor)
        self.trt: Tensorrt = load_tensorrt(flavor)
        self.flavor = flavor
        path = check_plan(
            folder,
            variant,
            tensorrt_version=self.trt.__version__,
            sm=present_sm() or "",
            platform=this_platform(),
            rebuild=rebuild,
            trust=trust,
            builder=flavor,
        )
        self.log: LogKeeper = keep_log(self.trt, "ERROR")
        self._runtime = make_runtime(self.trt, self.log)
        plan = path.read_bytes()
        self.plan_bytes = len(plan)
        self.name = f"{folder.resolve().name}/{path.name}"
        self.cuda_engine: ICudaEngine = load_engine(self._runtime, plan, self.log, where=path)


def require_tensorrt(flavor: Flavor) -> None:
    """Check that engines can run here.

    Raises:
        MachineError: The library or the GPU is missing; the line names all that is.
    """
    missing = explain_missing(flavor)
    if missing:
        raise MachineError(
            f"--backend {flavor}: {' and '.join(one.what for one in missing)}",
            hint=f"{', then '.join(one.hint for one in missing)}; or use --backend onnxruntime",
        )


class EngineContext:
    """An execution context with its buffers on a stream of its own.

    Args:
        engine: Loaded.
        shapes: Input name -> shape, as `input_shapes` gives them.
        seed: Of the input values.
        profiler: TensorRT's IProfiler that is called for every layer; None for none.

    Raises:
        InputError: The engine does not take a shape, or has tensors that are not known here.
        MachineError: TensorRT made no context, for want of memory, say.
    """

    def __init__(self, engine: Engine, shapes: Mapping[str, tuple[int, ...]], seed: int, profiler: Any = None) -> None:
        self.engine = engine
        trt, cuda = engine.trt, engine.cuda_engine
        self.context: IExecutionContext = require(
            cuda.create_execution_context(),
            "TensorRT made no execution context",
            engine.log,
            where=engine.name,
            hint="free memory on the GPU (nvidia-smi names who holds it), or use a smaller --batch",
        )
        # DETAILED plans mark every layer for Nsight, at a cost to each launch.
        self.context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
        if profiler is not None:
            self.context.profiler = profiler
        self.stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        generator = torch.Generator(device="cuda").manual_seed(seed)
        names = [cuda.get_tensor_name(index) for index in range(cuda.num_io_tensors)]
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        for name in names:
            if cuda.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self._take_shape(engine, name, shapes[name])
                self.inputs[name] = draw_tensor(generator, shapes[name], _dtype(engine, name))
        for name in names:
            if name not in self.inputs:
                shape = tuple(self.context.get_tensor_shape(name))
                self.outputs[name] = _allocate(engine, name, shape)
        for name, tensor in (self.inputs | self.outputs).items():
            if not self.context.set_tensor_address(name, tensor.data_ptr()):
                raise MachineError(f"TensorRT refused the buffer of {name!r}{engine.log.because()}", where=engine.name)
        torch.cuda.synchronize()

    def enqueue(self) -> None:
        """Launch one execution on the stream.

        Raises:
            MachineError: TensorRT refused; the line says why.
        """
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise MachineError(
                f"TensorRT could not enqueue the engine{self.engine.log.because()}", where=self.engine.name
            )

    def _take_shape(self, engine: Engine, name: str, shape: tuple[int, ...]) -> None:
        if self.context.set_input_shape(name, shape):
            return
        low, best, high = (tuple(one) for one in engine.cuda_engine.get_tensor_profile_shape(name, 0))
        raise InputError(
            f"input {name!r} takes {list(low)} to {list(high)} (tuned for {list(best)}), not {list(shape)}",
            where=engine.name,
            hint="measure another --batch, or export with a wider --batch MIN:OPT:MAX",
        )


def input_shapes(
    cuda: ICudaEngine, trt: Tensorrt, batch: int, given: Mapping[str, tuple[int, ...]], *, name: str
) -> dict[str, tuple[int, ...]]:
    """Fill the engine's dynamic dimensions: the first with the batch, the others from what the user gave.

    Raises:
        InputError: A dimension stays open, or a fixed one is not the batch.
    """
    shapes = {}
    for index in range(cuda.num_io_tensors):
        port = cuda.get_tensor_name(index)
        if cuda.get_tensor_mode(port) != trt.TensorIOMode.INPUT:
            continue
        shape = tuple(cuda.get_tensor_shape(port))
        first, *rest = shape
        if first not in (-1, batch):
            raise InputError(
                f"input {port!r} has a fixed batch of {first}, not {batch}", where=name, hint=f"use --batch {first}"
            )
        wanted = given.get(port, shape)[1:]
        filled = tuple(own if own != -1 else other for own, other in zip(rest, wanted, strict=False))
        if len(filled) != len(rest) or -1 in filled:
            sizes = "x".join("?" if size == -1 else str(size) for size in rest)
            raise InputError(
                f"input {port!r} has dynamic dimensions besides the batch: {sizes}",
                where=name,
                hint=f"give them with --shape {port}={batch}x{sizes}",
            )
        shapes[port] = (batch, *filled)
    return shapes


def _dtype(engine: Engine, name: str) -> torch.dtype:
    dtype = str(engine.cuda_engine.get_tensor_dtype(name)).rpartition(".")[2]
    if dtype not in _DTYPES:
        raise InputError(f"tensor {name!r}: unsupported input dtype {dtype}", where=engine.name)
    return _DTYPES[dtype]


def _allocate(engine: Engine, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if any(size < 0 for size in shape):
        raise InputError(
            f"output {name!r} has a shape that depends on its data, {list(shape)}",
            where=engine.name,
            hint="such engines cannot be timed here; use trtexec, and give its files to --trtexec-sparse",
        )
    return torch.empty(shape, dtype=_dtype(engine, name), device="cuda")
