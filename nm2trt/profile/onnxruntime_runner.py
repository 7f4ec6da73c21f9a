"""Runs an ONNX network on ONNX Runtime: CPU, or CUDA where its provider can be loaded."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from nm2trt.artifacts import RunnerRecord
from nm2trt.artifacts.host import available_cpus
from nm2trt.errors import InputError

_CPU_NOTE = (
    "ONNX Runtime's CPU provider has no 2:4 kernels: it multiplies stored zeros like any other value, "
    "so no difference measured here comes from sparsity."
)
_CUDA_NOTE = (
    "ONNX Runtime's CUDA provider is not known to use 2:4 kernels and does not report which kernels ran, "
    "so no difference measured here can be put down to sparsity."
)
_QUIET = 3
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def best_device() -> str:
    """`cuda` where ONNX Runtime can open its CUDA provider, else `cpu`."""
    if _PROVIDERS["cuda"] not in ort.get_available_providers() or not _has_driver():
        return "cpu"
    # Listed only means compiled in. The libraries it needs come with torch's wheels; loading them first lets it open.
    ort.preload_dlls()
    tensor, result = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [tensor], [result])
    probe = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    try:
        session = ort.InferenceSession(probe.SerializeToString(), providers=[_PROVIDERS["cuda"], _PROVIDERS["cpu"]])
    except Exception:  # noqa: BLE001 -- whatever the driver or the loader says, it does not open
        return "cpu"
    return "cuda" if _PROVIDERS["cuda"] in session.get_providers() else "cpu"


def _has_driver() -> bool:
    """Ask the loader for NVIDIA's driver, so that a machine without one is spared ONNX Runtime's error lines."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False


class OnnxRuntimeRunner:
    """One session with fixed threads and inputs bound on its device.

    Args:
        model: The network; read once, not kept.
        name: Names it in errors.
        device: `cpu` or `cuda`.
        seed: Of the input values.

    Raises:
        InputError: ONNX Runtime cannot open the network.
    """

    def __init__(self, model: onnx.ModelProto, *, name: str, device: str = "cpu", seed: int = 0) -> None:
        self._name = name
        self._device = device
        self._seed = seed
        self._threads = available_cpus()
        self._settings = {
            "session.intra_op.allow_spinning": "0",
            "session.set_denormal_as_zero": "1",
        }
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _QUIET
        for key, value in self._settings.items():
            options.add_session_config_entry(key, value)
        providers = [_PROVIDERS[device]] + ([_PROVIDERS["cpu"]] if device != "cpu" else [])
        try:
            self._session: Any = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
        except Exception as error:  # noqa: BLE001 -- onnxruntime's exceptions share no public base
            raise InputError(
                f"ONNX Runtime cannot open it: {_one_line(error)}", where=name, mend="check it with onnx.checker"
            ) from None
        self._binding: Any = None

    @property
    def record(self) -> RunnerRecord:
        """Backend, version, provider, threads and settings."""
        on_cpu = self._device == "cpu"
        return RunnerRecord(
            backend="onnxruntime",
            version=ort.__version__,
            provider=_PROVIDERS[self._device],
            threads=self._threads,
            settings={
                "execution": "sequential",
                "graph optimization": "all",
                "intra-op spinning": "off: idle threads of one arm would take the other arms' cores",
                "denormals": "flushed to zero: they slow a CPU down, and one network may hold more than the other",
                "inputs": "normal draws, bound on the device",
            },
            clock="one blocking call with inputs and outputs on the device, host clock (time.perf_counter)",
            sparse_kernels=False if on_cpu else None,
            note=_CPU_NOTE if on_cpu else _CUDA_NOTE,
        )

    def prepare(self, batch: int) -> None:
        """Bind inputs of `batch` samples.

        Raises:
            InputError: A dimension other than the batch is dynamic, the batch is fixed to another value, or the
                network fails on these inputs.
        """
        rng = np.random.default_rng(self._seed)
        device, number = self._device, 0
        binding = self._session.io_binding()
        for port in self._session.get_inputs():
            shape = self._shape(port, batch)
            binding.bind_ortvalue_input(port.name, self._values(port, shape, rng))
        for port in self._session.get_outputs():
            binding.bind_output(port.name, device, number)
        self._binding = binding
        try:
            self.run_once()
        except Exception as error:  # noqa: BLE001 -- as above
            raise InputError(f"fails at batch {batch}: {_one_line(error)}", where=self._name) from None

    def run_once(self) -> float:
        """Run once; milliseconds."""
        started = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return (time.perf_counter() - started) * 1000

    def close(self) -> None:
        """Drop the session and its buffers."""
        self._binding = None
        self._session = None

    def _shape(self, port: Any, batch: int) -> list[int]:
        if not port.shape:
            raise InputError(f"input {port.name!r} has no batch dimension", where=self._name)
        first, *rest = port.shape
        if isinstance(first, int) and first != batch:
            raise InputError(
                f"input {port.name!r} has a fixed batch of {first}, not {batch}",
                where=self._name,
                mend=f"use --batch {first}, or export with a dynamic batch",
            )
        free = [str(size) for size in rest if not isinstance(size, int)]
        if free:
            raise InputError(
                f"input {port.name!r} has dynamic dimensions besides the batch: {', '.join(free)}",
                where=self._name,
                mend="export it with these dimensions fixed",
            )
        return [batch, *rest]

    def _values(self, port: Any, shape: list[int], rng: np.random.Generator) -> Any:
        dtype = port.type.removeprefix("tensor(").removesuffix(")")
        if dtype in ("float", "double", "float16"):
            kind = {"float": np.float32, "double": np.float64, "float16": np.float16}[dtype]
            return ort.OrtValue.ortvalue_from_numpy(rng.standard_normal(shape).astype(kind), self._device, 0)
        if dtype == "bfloat16":
            bits = (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)
        if dtype in ("int8", "uint8", "int32", "int64", "bool"):
            return ort.OrtValue.ortvalue_from_numpy(rng.integers(0, 2, shape).astype(dtype), self._device, 0)
        raise InputError(f"input {port.name!r} has type {port.type}, for which no values are drawn", where=self._name)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else f"{text[:240]}…"
