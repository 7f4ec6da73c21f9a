"""Runtime, engine, execution context and inspector. An execution is ONNX Runtime's, on the bound addresses."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
from typing import Any

import numpy as np
import onnx
import tensorrt_bindings
from bfloat16 import widen_bfloat16

from tensorrt._model import MAGIC, WEIGHTED, data_type, graph_inputs, pack_plan, shape_of, unpack_plan
from tensorrt._strict import HostMemory, Severity, Simulated, check_arguments, log
from tensorrt._version import faulty

CAPTURES: list[list[Any]] = []
"""The captures that are open, innermost last: each is a list of the calls that a replay makes."""

_NUMPY = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "INT64": np.dtype(np.int64),
    "INT32": np.dtype(np.int32),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

if faulty("crash_after_answer"):
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV))


class Runtime(Simulated):
    """Deserializes plans of the double."""

    def __init__(self, logger: Any) -> None:
        check_arguments("Runtime", logger=logger)
        if faulty("no_driver"):
            text = "createInferRuntime: Error Code 6: API Usage Error (CUDA initialization failure with error: 35)"
            log(logger, Severity.ERROR, text)
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger
        self._values = {"engine_host_code_allowed": False, "max_threads": 1, "logger": logger}

    def call_deserialize_cuda_engine(self, serialized_engine: Any) -> CudaEngine | None:
        data = bytes(serialized_engine)
        if faulty("no_deserialize") or not data.startswith(MAGIC):
            text = "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (version tag does not match)"
            log(self._logger, Severity.ERROR, text)
            return None
        header, model = unpack_plan(data)
        return CudaEngine(header, model, self._logger)


class CudaEngine(Simulated):
    """A plan that was loaded."""

    _real_name = "ICudaEngine"

    def __init__(self, header: dict[str, Any], model: onnx.ModelProto, logger: Any) -> None:
        self._header, self._model, self._logger = header, model, logger
        self._session: Any = None
        self._ports = {one.name: one for one in [*graph_inputs(model), *model.graph.output]}
        self._values = {
            "name": "",
            "num_io_tensors": len(self._ports),
            "device_memory_size": 1 << 20,
            "device_memory_size_v2": 1 << 20,
            "refittable": header["refit"],
            "num_layers": len(model.graph.node),
            "num_optimization_profiles": max(1, len(header["profiles"])),
        }

    def _is_input(self, name: str) -> bool:
        return any(one.name == name for one in graph_inputs(self._model))

    def call_get_tensor_name(self, index: int) -> str:
        return list(self._ports)[index]

    def call_get_tensor_mode(self, name: str) -> Any:
        mode = tensorrt_bindings.TensorIOMode
        return mode.INPUT if self._is_input(name) else mode.OUTPUT

    def call_get_tensor_dtype(self, name: str) -> Any:
        return data_type(self._ports[name])

    def call_get_tensor_shape(self, name: str) -> Any:
        return tensorrt_bindings.Dims(shape_of(self._ports[name]))

    def call_get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        return [tensorrt_bindings.Dims(one) for one in self._header["profiles"][profile_index][name]]

    def call_create_execution_context(self, strategy: Any = None) -> ExecutionContext | None:
        if faulty("no_context"):
            log(self._logger, Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 17179869184 bytes.)")
            return None
        return ExecutionContext(self)

    def call_create_engine_inspector(self) -> Inspector | None:
        return None if faulty("no_inspector") else Inspector(self)

    def call_create_serialization_config(self) -> SerializationConfig:
        return SerializationConfig()

    def call_serialize_with_config(self, **_config: SerializationConfig) -> HostMemory | None:
        return None if faulty("no_serialize") else HostMemory(pack_plan(self._header, self._model))


class SerializationConfig(Simulated):
    """Flags of a serialization."""

    _real_name = "ISerializationConfig"

    def __init__(self) -> None:
        self._values = {"flags": 0}

    def call_set_flag(self, flag: Any) -> bool:
        self._values["flags"] |= 1 << int(flag)
        return True

    def call_clear_flag(self, flag: Any) -> bool:
        self._values["flags"] &= ~(1 << int(flag))
        return True


class Inspector(Simulated):
    """Layers of an engine as JSON, in the form of TensorRT's detailed verbosity."""

    _real_name = "EngineInspector"

    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine
        self._values = {"execution_context": None}

    def call_get_engine_information(self, format: Any) -> str:  # noqa: A002
        assert format == tensorrt_bindings.LayerInformationFormat.JSON
        if faulty("bad_inspector"):
            return '{"Layers": [nan,]'
        nodes, header = self._engine._model.graph.node, self._engine._header
        if not header["detailed"]:
            return json.dumps({"Layers": [node.name for node in nodes], "Bindings": list(self._engine._ports)})
        layers = [self._layer(node, sparse=header["sparse"]) for node in nodes]
        return json.dumps({"Layers": layers, "Bindings": list(self._engine._ports)})

    def _layer(self, node: onnx.NodeProto, *, sparse: bool) -> dict[str, Any]:
        layer = {"Name": node.name, "Inputs": [], "Outputs": [], "Metadata": f"[ONNX Layer: {node.name}]"}
        if node.op_type not in WEIGHTED:
            return layer | {"LayerType": "PointWiseV2", "TacticName": ""}
        kernel = "sm80_xmma_fprop_sparse_conv_f16f16" if sparse else "sm80_xmma_fprop_implicit_gemm_f16f16"
        return layer | {"LayerType": "CaskConvolution", "TacticName": kernel, "Weights": {"Type": "Half", "Count": 8}}


class ExecutionContext(Simulated):
    """Shapes, addresses and executions."""

    _real_name = "IExecutionContext"

    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine
        self._shapes = {one.name: shape_of(one) for one in graph_inputs(engine._model) if -1 not in shape_of(one)}
        self._addresses: dict[str, int] = {}
        self._ran = False
        self._values = {
            "profiler": None,
            "enqueue_emits_profile": True,
            "nvtx_verbosity": tensorrt_bindings.ProfilingVerbosity.DETAILED,
        }

    def _error(self, code: int, text: str) -> bool:
        log(self._engine._logger, Severity.ERROR, f"IExecutionContext: Error Code {code}: {text}")
        return False

    def call_set_input_shape(self, name: str, shape: Any) -> bool:
        wanted = tuple(shape)
        profiles = self._engine._header["profiles"]
        limits = profiles[0].get(name) if profiles else None
        if limits is None:
            return wanted == shape_of(self._engine._ports[name])
        low, _, high = limits
        if len(wanted) != len(low) or any(not a <= b <= c for a, b, c in zip(low, wanted, high, strict=True)):
            return self._error(3, f"API Usage Error (setInputShape: {wanted} is out of the profile's range)")
        self._shapes[name] = wanted
        self._ran = False
        return True

    def call_get_tensor_shape(self, name: str) -> Any:
        return tensorrt_bindings.Dims(self._all_shapes().get(name, shape_of(self._engine._ports[name])))

    def _all_shapes(self) -> dict[str, tuple[int, ...]]:
        if len(self._shapes) < len(graph_inputs(self._engine._model)):
            return dict(self._shapes)
        batch = next(iter(self._shapes.values()))[0]
        outputs = {
            one.name: tuple(batch if size == -1 else size for size in shape_of(one))
            for one in self._engine._model.graph.output
        }
        return self._shapes | outputs

    def call_set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._ports:
            return self._error(3, f"API Usage Error (setTensorAddress: no tensor {name})")
        self._addresses[name] = memory
        return True

    def call_execute_async_v3(self, stream_handle: int) -> bool:
        if set(self._addresses) != set(self._engine._ports):
            return self._error(3, "API Usage Error (enqueueV3: an address is not set)")
        if CAPTURES:
            refused = faulty("no_capture") or (faulty("no_capture_sparse") and self._engine._header["sparse"])
            if refused or not self._ran or not stream_handle:
                return self._error(1, "Cuda Runtime (operation not permitted when stream is capturing)")
            CAPTURES[-1].append(self._compute)
            return True
        self._compute()
        self._ran = True
        profiler = self._values["profiler"]
        if profiler is not None and self._values["enqueue_emits_profile"]:
            for node in self._engine._model.graph.node:
                profiler.report_layer_time(node.name, 0.01)
        return True

    def _compute(self) -> None:
        import onnxruntime

        engine = self._engine
        if engine._session is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            # Higher levels crash on Transpose, Cast and MatMul in a row (onnxruntime#28392).
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            content = widen_bfloat16(engine._model).SerializeToString()
            engine._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        shapes = self._all_shapes()
        feeds = {one.name: self._array(one.name, shapes) for one in graph_inputs(engine._model)}
        for port, found in zip(engine._session.get_outputs(), engine._session.run(None, feeds), strict=True):
            self._array(port.name, shapes)[...] = found

    def _array(self, name: str, shapes: dict[str, tuple[int, ...]]) -> Any:
        dtype = _NUMPY[data_type(self._engine._ports[name]).name]
        count = int(np.prod(shapes[name]))
        raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype=dtype).reshape(shapes[name])
