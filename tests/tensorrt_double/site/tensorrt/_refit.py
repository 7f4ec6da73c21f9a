"""Refitter and the parser that feeds it."""

from __future__ import annotations

from typing import Any

import onnx

from tensorrt._model import load_model
from tensorrt._run import CudaEngine
from tensorrt._strict import Severity, Simulated, check_arguments, log
from tensorrt._version import faulty


class Refitter(Simulated):
    """Replaces the initializers of a plan's ONNX."""

    def __init__(self, engine: CudaEngine, logger: Any) -> None:
        check_arguments("Refitter", engine=engine, logger=logger)
        if not engine.refittable:
            log(logger, Severity.ERROR, "createInferRefitter: Error Code 3: API Usage Error (engine is not refittable)")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._engine, self._logger = engine, logger
        self._new: dict[str, onnx.TensorProto] = {}
        self._values = {"weights_validation": True, "logger": logger}

    def call_get_missing_weights(self) -> list[str]:
        return [one.name for one in self._engine._model.graph.initializer if one.name not in self._new]

    def call_refit_cuda_engine(self) -> bool:
        if faulty("refit_refused"):
            text = "IRefitter::refitCudaEngine: Error Code 4: Internal Error (conv1.weight is not 2:4 sparse)"
            log(self._logger, Severity.ERROR, text)
            return False
        for one in self._engine._model.graph.initializer:
            one.CopyFrom(self._new[one.name])
        return True


class OnnxParserRefitter(Simulated):
    """Reads new weights from an ONNX file."""

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self._refitter, self._logger = refitter, logger
        self._values: dict[str, Any] = {}

    def read_num_errors(self) -> int:
        return 0

    def call_get_error(self, index: int) -> Any:
        raise IndexError(index)

    def call_refit_from_file(self, model: str) -> bool:
        self._refitter._new = {one.name: one for one in load_model(model).graph.initializer}
        return True
