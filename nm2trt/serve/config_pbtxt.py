"""Triton's config.pbtxt for one model.

The fields are those of Triton's `model_config.proto`; the tests parse every file with that protobuf. Written as text
and not through the protobuf: packaging needs no client library, and a comment stands where a reader would ask why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nm2trt.artifacts import BatchRange, GraphPort
from nm2trt.artifacts.package import KEPT_LOADED, Platform
from nm2trt.serve.ports import batched_ports

PLAN = "model.plan"
LABELS = "labels.txt"
ENGINE_CACHES = "/tmp/nm2trt-engines-"  # noqa: S108 -- in the server's container
"""Each network's folder begins with this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """All that config.pbtxt says of a model."""

    name: str
    platform: Platform
    inputs: tuple[GraphPort, ...]
    outputs: tuple[GraphPort, ...]
    batch: BatchRange | None
    """Sizes that the engine was tuned for; None: fixed shapes."""
    max_batch: int
    """Largest batch that the server may make; 0: it does not batch."""
    queue_delay_us: int
    """How long a request may wait for others to share its batch, microseconds."""
    precision: str
    gpu: bool
    instances: int = 1
    cuda_graphs: bool = False
    versions: tuple[int, ...] = ()
    """Versions to load; empty: the latest two."""
    labels: bool = False
    engine_key: str = ""
    """What tells this version's network from others: ONNX Runtime's own cache key has no weights in it."""
    warmup_files: Mapping[str, str] = field(default_factory=dict)
    """Input -> file in the folder `warmup` with one sample; the other inputs are warmed up with zeros."""
    warm_up: bool = True
    """Whether inputs are known that the network takes."""
    warmup_dims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Input -> dims of its warm-up, where some are free; empty: such a network is not warmed up."""
    plans_by_sm: dict[str, str] = field(default_factory=dict)
    """Compute capability "80" -> file name, where a version holds plans for several GPUs."""


class Word(str):
    """A value that protobuf text writes without quotes: an enumeration's name."""

    __slots__ = ()


Message = list[tuple[str, Any]]
"""Field name and value: text, a Word, a number, a flag, a list of numbers, or a message in it."""


def config_pbtxt(spec: ModelSpec) -> str:
    """Write the file's text."""
    lines = [f'name: "{spec.name}"', _runs_on(spec), f"max_batch_size: {spec.max_batch}"]
    if spec.max_batch == 0:
        lines.append("# The graph's shapes are fixed: dims hold the batch, and the server cannot batch.")
    lines += _render(_ports("input", spec.inputs, spec), 0)
    lines += _render(_ports("output", spec.outputs, spec), 0)
    lines += version_policy(spec.versions)
    kind = Word("KIND_GPU" if spec.gpu else "KIND_CPU")
    lines += _render([("instance_group", [("count", spec.instances), ("kind", kind)])], 0)
    lines += _batching(spec)
    if spec.platform == "tensorrt_plan":
        lines += _tensorrt(spec)
    elif spec.platform == "onnxruntime" and spec.gpu:
        lines += _onnxruntime_gpu(spec)
    lines += _warmup(spec)
    return "\n".join(lines) + "\n"


def version_policy(versions: Sequence[int]) -> list[str]:
    """Lines that say which versions Triton loads; empty: the latest ones."""
    if not versions:
        comment = "# The version before stays loaded, so that a request may still name it."
        policy: Message = [("latest", [("num_versions", KEPT_LOADED)])]
    else:
        comment = (
            "# Versions by number: others that lie here were rolled back, are damaged, or cannot run beside these."
        )
        policy = [("specific", [("versions", list(versions))])]
    return [comment, *_render([("version_policy", policy)], 0)]


def engine_cache(name: str, key: str) -> str:
    """Folder where ONNX Runtime keeps the engines that it builds for one network.

    It hashes a graph's names but no weights, so two versions of a model must not share a folder. One level below /tmp:
    ONNX Runtime makes no folder above it (tensorrt_execution_provider.cc, fs::create_directory).
    """
    return f"{ENGINE_CACHES}{name}-{key[:16]}"


def profile_names_readable(names: Sequence[str]) -> bool:
    """Whether ONNX Runtime can read an input's name in its list of profile shapes.

    It splits "name:1x3,name:1x3" at commas and each entry at its first colon (MakeInputNameShapePair).
    """
    return not any(set(name) & {":", ","} for name in names)


def tuned_batches(spec: ModelSpec) -> list[int]:
    """Batch sizes worth preparing: the profile's corners that the server can make."""
    if spec.batch is None or spec.max_batch == 0:
        return []
    sizes = (spec.batch.min, spec.batch.opt, spec.batch.max, spec.max_batch)
    return sorted({size for size in sizes if 1 <= size <= spec.max_batch})


def _runs_on(spec: ModelSpec) -> str:
    if spec.platform == "tensorrt_plan":
        return 'platform: "tensorrt_plan"'
    return f'backend: "{spec.platform}"'


def _ports(key: str, ports: Sequence[GraphPort], spec: ModelSpec) -> Message:
    message: Message = []
    classes = ports[0].shape[-1:]
    for port, (name, dtype, dims) in zip(ports, batched_ports(ports, batched=spec.max_batch > 0), strict=True):
        entry: Message = [("name", name), ("data_type", Word(f"TYPE_{dtype}")), ("dims", dims or [1])]
        if not dims:
            # One number per sample. Triton has no dims: [], so clients see [batch, 1], and the network [batch].
            entry.append(("reshape", [("shape", [])]))
        if key == "output" and spec.labels and port.shape[-1:] == classes:
            # The labels are of the first output's classes.
            entry.append(("label_filename", LABELS))
        message.append((key, entry))
    return message


def _batching(spec: ModelSpec) -> list[str]:
    if spec.max_batch == 0:
        return []
    return [
        f"# A request waits at most {spec.queue_delay_us} us for others to share its batch. No preferred sizes: with",
        "# one profile they only keep batches small.",
        *_render([("dynamic_batching", [("max_queue_delay_microseconds", spec.queue_delay_us)])], 0),
    ]


def _tensorrt(spec: ModelSpec) -> list[str]:
    lines = []
    if len(spec.plans_by_sm) > 1:
        lines.append("# Triton picks the plan by the GPU's compute capability; there is no plan for any other.")
        for sm, file in sorted(spec.plans_by_sm.items(), key=lambda item: int(item[0])):
            entry: Message = [("key", f"{sm[:-1]}.{sm[-1]}"), ("value", file)]
            lines += _render([("cc_model_filenames", entry)], 0)
    elif spec.plans_by_sm:
        lines.append(f'default_model_filename: "{PLAN}"')
    if not spec.cuda_graphs:
        return lines
    cuda: Message = [("graphs", True), ("busy_wait_events", True), ("output_copy_stream", True)]
    for size in tuned_batches(spec):
        graph: Message = [("batch_size", size)]
        for name, _dtype, dims in batched_ports(spec.inputs, batched=True):
            graph.append(("input", [("key", name), ("value", [("dim", dims)])]))
        cuda.append(("graph_spec", graph))
    lines.append("# One launch per batch of these sizes instead of one per kernel; other sizes run without a graph.")
    return [*lines, *_render([("optimization", [("cuda", cuda)])], 0)]


def _onnxruntime_gpu(spec: ModelSpec) -> list[str]:
    """TensorRT's execution provider inside ONNX Runtime builds the engine where it is served."""
    parameters = {"trt_sparsity_enable": "1", "trt_engine_cache_enable": "1"}
    parameters["trt_engine_cache_path"] = engine_cache(spec.name, spec.engine_key)
    precisions = {"fp16": "FP16", "int8": "INT8", "int8+fp16": "INT8"}
    if spec.precision in precisions:
        parameters["precision_mode"] = precisions[spec.precision]
    batches = tuned_batches(spec)
    names = [port.name for port in spec.inputs]
    comment = []
    if batches and not profile_names_readable(names):
        comment = [
            "# No profile: ONNX Runtime cannot read an input's name with ':' or ',' there, and takes the first shapes."
        ]
    elif batches and any(size < 0 for _, _, dims in batched_ports(spec.inputs, batched=True) for size in dims):
        comment = [
            "# No profile: an input has a free dimension besides the batch; TensorRT builds for the shapes that come."
        ]
    elif spec.batch is not None and batches:
        for corner, size in (("min", batches[0]), ("opt", min(spec.batch.opt, spec.max_batch)), ("max", batches[-1])):
            shapes = [
                f"{name}:{'x'.join(map(str, (size, *dims)))}"
                for name, _, dims in batched_ports(spec.inputs, batched=True)
            ]
            parameters[f"trt_profile_{corner}_shapes"] = ",".join(shapes)
    provider: Message = [("name", "tensorrt")]
    for key, value in sorted(parameters.items()):
        provider.append(("parameters", [("key", key), ("value", value)]))
    return [
        *comment,
        "# trt_sparsity_enable lets the builder consider sparse kernels. Whether it chose any is in its log, not here.",
        *_render([("optimization", [("execution_accelerators", [("gpu_execution_accelerator", provider)])])], 0),
    ]


def _warmup(spec: ModelSpec) -> list[str]:
    if not spec.warm_up:
        return ["# No warm-up: no inputs are known that the network certainly takes."]
    ports = batched_ports(spec.inputs, batched=spec.max_batch > 0)
    ports = [(name, dtype, list(spec.warmup_dims.get(name, dims))) for name, dtype, dims in ports]
    if any(size < 0 for _, _, dims in ports for size in dims):
        return ["# No warm-up: an input has a free dimension besides the batch."]
    lines = ["# The model is not ready before these have run."]
    for size in tuned_batches(spec) or [0]:
        entry: Message = [("name", f"batch {size}" if size else "fixed shapes"), ("batch_size", size)]
        for name, dtype, dims in ports:
            # Not random_data: that is any bits, and so no token's number and often no number at all.
            file = spec.warmup_files.get(name)
            data: tuple[str, Any] = ("zero_data", True) if file is None else ("input_data_file", file)
            sample: Message = [("data_type", Word(f"TYPE_{dtype}")), ("dims", dims or [1]), data]
            entry.append(("inputs", [("key", name), ("value", sample)]))
        lines += _render([("model_warmup", entry)], 0)
    return lines


def _render(message: Message, depth: int) -> list[str]:
    """Write protobuf text, a field a line."""
    pad = "  " * depth
    lines = []
    for key, value in message:
        if isinstance(value, Word):
            lines.append(f"{pad}{key}: {value}")
        elif isinstance(value, str):
            lines.append(f"{pad}{key}: {_quoted(value)}")
        elif isinstance(value, bool):
            lines.append(f"{pad}{key}: {'true' if value else 'false'}")
        elif isinstance(value, int):
            lines.append(f"{pad}{key}: {value}")
        elif all(isinstance(one, int) for one in value):
            lines.append(f"{pad}{key}: [ {', '.join(map(str, value))} ]" if value else f"{pad}{key}: []")
        else:
            lines += [f"{pad}{key} {{", *_render(value, depth + 1), f"{pad}}}"]
    return lines


def _quoted(text: str) -> str:
    """A string of protobuf text: names in graphs may hold quotes, backslashes and line breaks."""
    octal = "".join(chr(b) if 32 <= b < 127 and b not in (34, 92) else f"\\{b:03o}" for b in text.encode())
    return f'"{octal}"'
