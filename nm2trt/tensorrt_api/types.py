"""Types of TensorRT's Python API, as far as nm2trt uses it.

TensorRT's wheels hold no type information, so mypy takes every call into them for `Any`. These protocols state what is
used; `tests/tensorrt_double/check_api.py` holds every name that is read from one of them against what TensorRT 10.0,
10.16, 11.0, 11.4 and TensorRT-RTX 1.7 offer. Each protocol has the name of its class there. What only newer releases
have is read with `getattr(object, name, None)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

Shape = tuple[int, ...]


class EnumType(Protocol):
    """A pybind11 enum class."""

    __members__: Mapping[str, Any]


class ILogger(Protocol):
    """Takes TensorRT's messages."""

    def log(self, severity: Any, msg: str) -> None: ...


class IHostMemory(Protocol):
    """A buffer of the host that TensorRT owns."""

    nbytes: int

    def __buffer__(self, flags: int, /) -> memoryview: ...


class Runtime(Protocol):
    """Loads plans."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class ICudaEngine(Protocol):
    """A loaded plan."""

    num_io_tensors: int
    num_optimization_profiles: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Any: ...
    def get_tensor_dtype(self, name: str) -> Any: ...
    def get_tensor_shape(self, name: str) -> Iterable[int]: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Iterable[int]]: ...
    def create_execution_context(self) -> IExecutionContext | None: ...
    def create_engine_inspector(self) -> EngineInspector | None: ...
    def create_serialization_config(self) -> ISerializationConfig | None: ...
    def serialize_with_config(self, config: ISerializationConfig) -> IHostMemory | None: ...


class IExecutionContext(Protocol):
    """Runs an engine."""

    profiler: Any
    nvtx_verbosity: Any

    def set_input_shape(self, name: str, shape: Shape) -> bool: ...
    def get_tensor_shape(self, name: str) -> Iterable[int]: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class EngineInspector(Protocol):
    """Describes an engine's layers."""

    def get_engine_information(self, format: Any) -> str: ...  # noqa: A002


class ISerializationConfig(Protocol):
    """What a serialized engine holds."""

    def set_flag(self, flag: Any) -> bool: ...


class Refitter(Protocol):
    """Replaces the weights of an engine."""

    def get_missing_weights(self) -> Iterable[str]: ...
    def refit_cuda_engine(self) -> bool: ...


class ParserError(Protocol):
    """One error of the ONNX parser."""

    def desc(self) -> str: ...


class OnnxParserRefitter(Protocol):
    """Feeds a refitter from an ONNX file."""

    num_errors: int

    def refit_from_file(self, model: str) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


class ITimingCache(Protocol):
    """Timings of kernels."""

    def serialize(self) -> IHostMemory | None: ...
    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool: ...


class IBuilderConfig(Protocol):
    """How an engine is built."""

    def get_flag(self, flag: Any) -> bool: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> ITimingCache | None: ...


# Inside the next class these names are its methods.
_Runtime: TypeAlias = Runtime
_Refitter: TypeAlias = Refitter
_OnnxParserRefitter: TypeAlias = OnnxParserRefitter


class Tensorrt(Protocol):
    """The module `tensorrt` (or `tensorrt_rtx`)."""

    __version__: str
    BuilderFlag: EnumType
    DataType: EnumType
    ILogger: Any
    IProfiler: Any
    LayerInformationFormat: Any
    MemoryPoolType: Any
    ProfilingVerbosity: Any
    TensorIOMode: Any

    def Runtime(self, logger: ILogger) -> _Runtime: ...
    def Refitter(self, engine: ICudaEngine, logger: ILogger) -> _Refitter: ...
    def OnnxParserRefitter(self, refitter: _Refitter, logger: ILogger) -> _OnnxParserRefitter: ...
