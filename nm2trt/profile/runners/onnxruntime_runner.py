"""Runs an ONNX network on ONNX Runtime: CPU, or CUDA and TensorRT where their providers can be loaded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from nm2trt.artifacts import RunnerRecord
from nm2trt.errors import InputError
from nm2trt.onnx_tools.graph_compare import precision_of
from nm2trt.ort.open_session import (
    ATTRIBUTES,
    Level,
    SessionError,
    find_safe_level,
    open_session,
    runtime_reason,
)
from nm2trt.ort.random_inputs import NUMPY_TYPES, draw_values
from nm2trt.profile.runners.onnxruntime_layers import OnnxRuntimeLayers
from nm2trt.profile.runners.onnxruntime_providers import PROVIDERS
from nm2trt.threads import threads_to_measure

_CPU_NOTE = (
    "ONNX Runtime's CPU provider has no 2:4 kernels: it multiplies stored zeros like any other value, "
    "so no difference measured here comes from sparsity."
)
_CUDA_NOTE = (
    "ONNX Runtime's CUDA provider is not known to use 2:4 kernels and does not report which kernels ran, "
    "so no difference measured here can be put down to sparsity."
)
_TENSORRT_NOTE = (
    "TensorRT's execution provider may pick 2:4 kernels where it is allowed to, but does not report which kernels ran: "
    "only a build of `nm2trt export --builder tensorrt` shows whether a sparse kernel was chosen."
)
_NOTES = {"cpu": _CPU_NOTE, "cuda": _CUDA_NOTE, "tensorrt": _TENSORRT_NOTE}
_ERRORS = 3
"""ONNX Runtime's log severity: a GPU's provider that cannot be opened is an error of its log alone."""
_OPTIMIZATION: dict[Level, str] = {
    level: level if level == "all" else f"{level}: ONNX Runtime crashes on this network at higher levels"
    for level in ATTRIBUTES
}


class OnnxRuntimeRunner:
    """One session with fixed threads and inputs bound on its device.

    Args:
        model: The network; kept only for the profiler's own session.
        name: Names it in errors.
        device: `cpu`, `cuda`, or `tensorrt` (TensorRT's execution provider, CUDA for what it leaves).
        seed: Of the input values.
        sparsity: With `tensorrt`, whether sparse kernels are allowed (`trt_sparsity_enable`).
        shapes: Whole shapes of inputs with dynamic dimensions besides the batch.

    Raises:
        InputError: ONNX Runtime cannot open the network.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        name: str,
        device: str = "cpu",
        seed: int = 0,
        sparsity: bool = False,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self._model = model
        self._name = name
        self._provider = device
        self._device = "cpu" if device == "cpu" else "cuda"
        self._seed = seed
        self._sparsity = sparsity
        self._given = dict(shapes or {})
        self._threads = threads_to_measure()
        self._profile: dict[str, list[int]] = {}
        """With TensorRT's provider, the shapes that its engines are tuned for."""
        self._level = find_safe_level(model.SerializeToString()) if device == "cpu" else "all"
        self._session: Any = self._open()
        self._binding: Any = None
        self._feed: dict[str, NDArray[Any]] = {}
        self._values: dict[str, Any] = {}
        self._batch = 0

    def _open(self, profile_prefix: str = "") -> Any:
        try:
            return open_session(
                self._model.SerializeToString(),
                where=self._name,
                level=self._level,
                threads=self._threads,
                providers=self._providers(),
                entries={"session.set_denormal_as_zero": "1"},
                profile_prefix=profile_prefix,
                log_severity=_ERRORS,
            )
        except SessionError as error:
            raise InputError(
                f"ONNX Runtime cannot open it: {error.reason}", where=self._name, hint="check it with onnx.checker"
            ) from None

    def _providers(self) -> list[Any]:
        if self._provider == "cpu":
            return [PROVIDERS["cpu"]]
        if self._provider == "cuda":
            return [PROVIDERS["cuda"], PROVIDERS["cpu"]]
        kinds = precision_of(self._model)
        tensorrt = {
            "trt_sparsity_enable": str(int(self._sparsity)),
            "trt_fp16_enable": str(int("fp16" in kinds)),
            "trt_int8_enable": str(int("int8" in kinds)),
            "trt_engine_cache_enable": "0",
        }
        # The provider's option separates names by ":" and ",", and knows no quotes.
        if self._profile and not any(set(name) & set(":,") for name in self._profile):
            # Without one, the provider tunes for the largest batch that it has seen, whichever is timed.
            shapes = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in self._profile.items())
            tensorrt |= {f"trt_profile_{kind}_shapes": shapes for kind in ("min", "opt", "max")}
        return [(PROVIDERS["tensorrt"], tensorrt), PROVIDERS["cuda"], PROVIDERS["cpu"]]

    @property
    def record(self) -> RunnerRecord:
        """Backend, version, provider, threads and settings."""
        settings = {
            "execution": "sequential",
            "graph optimization": _OPTIMIZATION[self._level],
            "intra-op spinning": "off: idle threads of one variant would take the other variants' cores",
            "denormals": "flushed to zero: they slow a CPU down, and one network may hold more than the other",
            "inputs": "normal draws, bound on the device; integers 0 and 1",
        }
        if self._provider == "tensorrt":
            settings["trt_sparsity_enable"] = "1 in the sparse variants, 0 in the others"
        return RunnerRecord(
            backend="onnxruntime",
            version=ort.__version__,
            provider=PROVIDERS[self._provider],
            threads=self._threads,
            settings=settings,
            clock="one blocking call with inputs and outputs on the device, host clock (time.perf_counter)",
            sparse_kernels={"cpu": False, "cuda": None, "tensorrt": True}[self._provider],
            note=_NOTES[self._provider],
        )

    def prepare(self, batch: int) -> None:
        """Bind inputs of `batch` samples.

        Raises:
            InputError: A dimension other than the batch is dynamic, the batch is fixed to another value, or the
                network fails on these inputs.
        """
        rng = np.random.default_rng(self._seed)
        self._batch = batch
        self._feed = {}
        self._values = {}
        shapes = {port.name: self._shape(port, batch) for port in self._session.get_inputs()}
        if self._provider == "tensorrt" and shapes != self._profile:
            self._profile = shapes
            self._session = self._open()
        for port in self._session.get_inputs():
            self._values[port.name] = self._draw(port, shapes[port.name], rng)
        binding = self._bind(self._session)
        self._binding = binding
        try:
            self.run_once()
        except Exception as error:  # noqa: BLE001 -- as above
            raise InputError(f"fails at batch {batch}: {runtime_reason(error)}", where=self._name) from None

    def run_once(self) -> float:
        """Run once; milliseconds."""
        started = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return (time.perf_counter() - started) * 1000

    def run_with_transfers(self) -> float | None:
        """Run once from arrays in the host's memory to arrays there; None on the CPU, which reads them in place."""
        if self._device == "cpu" or not self._feed:
            return None
        started = time.perf_counter()
        self._session.run(None, self._feed)
        return (time.perf_counter() - started) * 1000

    def enqueue_ms(self) -> float | None:
        """ONNX Runtime's call returns when the work is done: no launch to time."""
        return None

    def memory_bytes(self) -> int | None:
        """ONNX Runtime does not tell."""
        return None

    def streams(self, count: int) -> list[Callable[[], None]]:
        """Give calls on this one session, each with its own buffers: a session may run from several threads."""
        session = self._session
        bindings = [self._bind(session) for _ in range(count)]
        return [partial(_run_bound, session, binding) for binding in bindings]

    def layer_profiler(self) -> OnnxRuntimeLayers | None:
        """Open a second session with ONNX Runtime's profiler; None on a GPU, where it times launches, not kernels."""
        if self._device != "cpu":
            return None
        folder = tempfile.TemporaryDirectory(prefix="nm2trt-profile-")
        session = self._open(profile_prefix=str(Path(folder.name) / "layers"))
        return OnnxRuntimeLayers(session, self._bind(session), self._model, folder)

    def close(self) -> None:
        """Drop the session and its buffers."""
        self._binding = None
        self._session = None
        self._values = {}

    def _bind(self, session: Any) -> Any:
        binding = session.io_binding()
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)
        for port in session.get_outputs():
            binding.bind_output(port.name, self._device, 0)
        return binding

    def _shape(self, port: Any, batch: int) -> list[int]:
        if not port.shape:
            raise InputError(f"input {port.name!r} has no batch dimension", where=self._name)
        first, *rest = port.shape
        if isinstance(first, int) and first != batch:
            raise InputError(
                f"input {port.name!r} has a fixed batch of {first}, not {batch}",
                where=self._name,
                hint=f"use --batch {first}, or export with a dynamic batch",
            )
        given = self._given.get(port.name, tuple(port.shape))
        if len(given) != len(port.shape):
            raise InputError(
                f"input {port.name!r} has {len(port.shape)} dimensions, not {len(given)}", where=self._name
            )
        rest = [own if isinstance(own, int) else other for own, other in zip(rest, given[1:], strict=True)]
        free = [str(size) for size in rest if not isinstance(size, int)]
        if free:
            sizes = "x".join(str(size) if isinstance(size, int) else "?" for size in rest)
            raise InputError(
                f"input {port.name!r} has dynamic dimensions besides the batch: {', '.join(free)}",
                where=self._name,
                hint=f"give them with --shape {port.name}={batch}x{sizes}",
            )
        return [batch, *rest]

    def _draw(self, port: Any, shape: list[int], rng: np.random.Generator) -> Any:
        if port.type == "tensor(bfloat16)":
            bits = draw_values(rng, shape, ml_dtypes.bfloat16).view(np.uint16)
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)
        if port.type in NUMPY_TYPES:
            return self._kept(port, draw_values(rng, shape, NUMPY_TYPES[port.type]))
        raise InputError(f"input {port.name!r} has type {port.type}, for which no values are drawn", where=self._name)

    def _kept(self, port: Any, values: NDArray[Any]) -> Any:
        self._feed[port.name] = values
        return ort.OrtValue.ortvalue_from_numpy(values, self._device, 0)


def _run_bound(session: Any, binding: Any) -> None:
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
