"""Builder, network, parser, configuration, profile and timing cache."""

from __future__ import annotations

import time
from typing import Any

import onnx
import tensorrt_bindings

from tensorrt._model import WEIGHTED, Tensor, die_if_ordered, graph_inputs, load_model, pack_plan
from tensorrt._strict import HostMemory, Severity, Simulated, check_arguments, log
from tensorrt._version import VERSION, faulty

_CACHE_MAGIC = f"cache of {VERSION}\n".encode()
_STEP_S = 0.11


class NetworkDefinition(Simulated):
    """Holds the parsed ONNX model."""

    _real_name = "INetworkDefinition"

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._model = onnx.ModelProto()
        self._values = {"name": "", "num_layers": 0}

    def read_num_inputs(self) -> int:
        return len(graph_inputs(self._model))

    def read_num_outputs(self) -> int:
        return len(self._model.graph.output)

    def call_get_input(self, index: int) -> Tensor:
        return Tensor(graph_inputs(self._model)[index], is_input=True)

    def call_get_output(self, index: int) -> Tensor:
        return Tensor(self._model.graph.output[index], is_input=False)

    def call_get_flag(self, flag: Any) -> bool:
        return bool(self._flags >> int(flag) & 1)

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


class ParserError:
    """One error of the parser."""

    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def __str__(self) -> str:
        return self._text


class OnnxParser(Simulated):
    """Refuses operators of foreign domains, in the words of TensorRT's own parser."""

    def __init__(self, network: NetworkDefinition, logger: Any) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []
        self._values = {"flags": 1 << int(tensorrt_bindings.OnnxParserFlag.NATIVE_INSTANCENORM)}

    def read_num_errors(self) -> int:
        return len(self._errors)

    def call_get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def call_set_flag(self, flag: Any) -> None:
        self._values["flags"] |= 1 << int(flag)

    def call_parse_from_file(self, model: str) -> bool:
        try:
            self._network._model = load_model(model)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the parser refuses the file
            log(self._logger, Severity.ERROR, f"ModelImporter.cpp:1: cannot read the model: {error}")
            return False
        for index, node in enumerate(self._network._model.graph.node):
            if node.domain not in ("", "ai.onnx"):
                text = (
                    f"In node {index} with name: {node.name} and operator: {node.op_type} "
                    "(checkFallbackPluginImporter): "
                    'INVALID_NODE: creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
                )
                self._errors.append(ParserError(text))
                log(self._logger, Severity.ERROR, text)
        return not self._errors


class OptimizationProfile(Simulated):
    """Shapes of one profile."""

    _real_name = "IOptimizationProfile"

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def call_set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        low, best, high = (tuple(one) for one in (min, opt, max))
        if any(not a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
            raise ValueError("Shape provided for min/opt/max must satisfy min <= opt <= max")
        self._shapes[input] = (low, best, high)

    def __bool__(self) -> bool:
        return True


class TimingCache(Simulated):
    """A set of lines, one for each kernel that was timed."""

    _real_name = "ITimingCache"

    def __init__(self, lines: set[str]) -> None:
        self._lines = lines
        self._values: dict[str, Any] = {}

    def call_serialize(self) -> HostMemory:
        return HostMemory(_CACHE_MAGIC + "\n".join(sorted(self._lines)).encode())

    def call_combine(self, input_cache: TimingCache, ignore_mismatch: bool) -> bool:
        self._lines |= input_cache._lines
        return True


class BuilderConfig(Simulated):
    """Flags, limits, profiles and the timing cache."""

    _real_name = "IBuilderConfig"

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._flags = {tensorrt_bindings.BuilderFlag.TF32}
        self._cache: TimingCache | None = None
        self._profiles: list[OptimizationProfile] = []
        self._limits = dict.fromkeys(tensorrt_bindings.MemoryPoolType.__members__.values(), 1 << 36)
        self._values = {
            "profiling_verbosity": tensorrt_bindings.ProfilingVerbosity.LAYER_NAMES_ONLY,
            "builder_optimization_level": 3,
            "progress_monitor": None,
            "DLA_core": -1,
            "default_device_type": tensorrt_bindings.DeviceType.GPU,
            "engine_capability": tensorrt_bindings.EngineCapability.STANDARD,
            "int8_calibrator": None,
        }

    def read_num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def call_set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def call_clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def call_get_flag(self, flag: Any) -> bool:
        return flag in self._flags

    def call_add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def call_set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._limits[pool] = pool_size

    def call_get_memory_pool_limit(self, pool: Any) -> int:
        return self._limits[pool]

    def call_get_tactic_sources(self) -> int:
        return 24

    def call_get_preview_feature(self, feature: Any) -> bool:
        return False

    def call_get_quantization_flag(self, flag: Any) -> bool:
        return False

    def call_create_timing_cache(self, serialized_timing_cache: Any) -> TimingCache | None:
        data = bytes(serialized_timing_cache)
        if data and (faulty("cache_version") or not data.startswith(_CACHE_MAGIC)):
            log(self._logger, Severity.ERROR, "Error Code 4: API Usage Error (the timing cache will not be used!)")
            return None
        return TimingCache(set(data.removeprefix(_CACHE_MAGIC).decode().splitlines()))

    def call_set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if faulty("cache_device") and cache._lines:
            log(self._logger, Severity.WARNING, "the timing cache was made on another device")
            return False
        self._cache = cache
        return True

    def call_get_timing_cache(self) -> TimingCache | None:
        return self._cache


class Builder(Simulated):
    """Builds plans; with SPARSE_WEIGHTS it logs what TensorRT would, and every weighted layer takes a sparse kernel."""

    def __init__(self, logger: Any) -> None:
        check_arguments("Builder", logger=logger)
        if faulty("no_driver"):
            text = "createInferBuilder: Error Code 6: API Usage Error (CUDA initialization failure with error: 35)"
            log(logger, Severity.ERROR, text)
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger
        self._values = {"logger": logger, "max_threads": 1}

    def call_create_network(self, flags: int = 0) -> NetworkDefinition:
        return NetworkDefinition(flags)

    def call_create_builder_config(self) -> BuilderConfig:
        return BuilderConfig(self._logger)

    def call_create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def call_build_serialized_network(self, network: NetworkDefinition, config: BuilderConfig) -> HostMemory | None:
        if not _report_progress(config):
            return None
        die_if_ordered("crash_in_build")
        if faulty("no_plan"):
            log(self._logger, Severity.ERROR, "Error Code 10: Internal Error (Could not find any implementation)")
            return None
        names = [node.name for node in network._model.graph.node if node.op_type in WEIGHTED]
        sparse = tensorrt_bindings.BuilderFlag.SPARSE_WEIGHTS in config._flags
        if sparse:
            listed = ", ".join(names)
            text = f"(Sparsity) Found {len(names)} layer(s) eligible to use sparse tactics: {listed}"
            log(self._logger, Severity.INFO, text)
            log(self._logger, Severity.INFO, f"(Sparsity) Chose {len(names)} layer(s) using sparse tactics: {listed}")
        if config._cache is not None:
            config._cache._lines |= {f"{name} {'sparse' if sparse else 'dense'}" for name in names}
        header = {
            "version": VERSION,
            "refit": tensorrt_bindings.BuilderFlag.REFIT in config._flags,
            "sparse": sparse,
            "detailed": config._values["profiling_verbosity"] == tensorrt_bindings.ProfilingVerbosity.DETAILED,
            "profiles": [one._shapes for one in config._profiles],
        }
        return HostMemory(pack_plan(header, network._model))


def _report_progress(config: BuilderConfig) -> bool:
    monitor = config._values["progress_monitor"]
    if monitor is None:
        return True
    monitor.phase_start("Building Engine", None, 4)
    monitor.phase_start("Tactic Timing", "Building Engine", 2)
    for step in range(2):
        time.sleep(_STEP_S)
        if not monitor.step_complete("Tactic Timing", step):
            return False
    monitor.phase_finish("Tactic Timing")
    monitor.step_complete("Building Engine", 3)
    monitor.phase_finish("Building Engine")
    return True
