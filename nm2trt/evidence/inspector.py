"""The engine inspector's JSON, in every form that TensorRT 8.5 to 11 and TensorRT-RTX are known to write.

8.5: `Layers` and `Bindings`, tensors with `Format/Datatype`. 10: the same with `Metadata` and `StreamId`. 11: `I/O
Tensors` in place of `Bindings`, `Format` and `Datatype` apart. Layers are bare names where the engine was built without
DETAILED profiling verbosity. `trtexec --exportLayerInfo` and trex's graph.json are the same JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nm2trt.errors import InputError
from nm2trt.evidence.names import metadata_nodes
from nm2trt.evidence.recognize import parse_json, restore_backslashes

_HINT = "write one with `trtexec --profilingVerbosity=detailed --dumpLayerInfo --exportLayerInfo=F.json`"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input, output or constant of a layer; empty where the file does not say."""

    name: str
    dimensions: tuple[int, ...] = ()
    format: str = ""
    """In the inspector's words; 8.5 to 10 name the type here, too."""
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class InspectedLayer:
    """One layer of an engine."""

    name: str
    type: str = ""
    tactic: str = ""
    """TacticName; empty where the engine names none."""
    has_sparse_weights: bool | None = None
    """The weights have the 2:4 pattern: no word about the kernel."""
    groups: int | None = None
    weights_count: int | None = None
    weights_type: str = ""
    onnx_nodes: tuple[str, ...] = ()
    """From Metadata."""
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    constants: tuple[TensorInfo, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Everything else, as it stands in the file."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """An engine's layers in the order in which they run."""

    layers: tuple[InspectedLayer, ...]
    detailed: bool
    """False where layers are bare names."""
    bindings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What in the file was passed over, and why."""


def parse_inspection(raw: object, *, where: object = "") -> Inspection:
    """Take parsed inspector JSON apart; what has no known form is noted and passed over.

    Raises:
        InputError: It holds no list of layers.
    """
    layers = raw.get("Layers", [raw] if "LayerType" in raw else None) if isinstance(raw, dict) else raw
    if not isinstance(layers, list):
        raise InputError('holds no list "Layers"', where=where, hint=_HINT)
    found, strange = [], 0
    for one in layers:
        if isinstance(one, str) and one.startswith("{") and isinstance(layer := parse_json(one), dict):
            # What get_layer_information gives, one string a layer.
            found.append(layer_of(layer))
        elif isinstance(one, str):
            found.append(InspectedLayer(name=restore_backslashes(one)))
        elif isinstance(one, dict) and isinstance(one.get("Name"), str):
            found.append(layer_of(one))
        else:
            strange += 1
    detailed = any(layer.type or layer.fields for layer in found)
    notes = []
    if strange:
        notes.append(f"{strange} entries of Layers are neither a name nor a layer with one")
    if found and not detailed:
        notes.append("the engine was built without detailed profiling verbosity, so its layers are bare names")
    return Inspection(layers=tuple(found), detailed=detailed, bindings=_bindings(raw), notes=tuple(notes))


def layer_of(raw: Mapping[str, Any]) -> InspectedLayer:
    """One layer from its JSON object; fields of a strange type count as missing."""
    weights = _first(raw, "Weights", "ConvWeights")
    weights = weights if isinstance(weights, dict) else {}
    metadata = raw.get("Metadata")
    groups = _first(raw, "Groups", "ConvGroups")
    return InspectedLayer(
        name=restore_backslashes(str(raw.get("Name", ""))),
        type=_text(raw.get("LayerType")),
        tactic=_text(raw.get("TacticName")),
        has_sparse_weights=_flag(_first(raw, "HasSparseWeights", "ConvHasSparseWeights", "AllowSparse")),
        groups=_number(groups),
        weights_count=_number(weights.get("Count")),
        weights_type=_text(weights.get("Type")),
        onnx_nodes=metadata_nodes(metadata) if isinstance(metadata, str) else (),
        inputs=_tensors(raw.get("Inputs")),
        outputs=_tensors(raw.get("Outputs")),
        constants=_tensors(raw.get("Constants")),
        fields=raw,
    )


def _tensors(raw: object) -> tuple[TensorInfo, ...]:
    return tuple(_tensor(one) for one in raw if isinstance(one, dict)) if isinstance(raw, list) else ()


def _tensor(raw: Mapping[str, Any]) -> TensorInfo:
    sizes = raw.get("Dimensions")
    dimensions = tuple(size for size in sizes if type(size) is int) if isinstance(sizes, list) else ()
    return TensorInfo(
        name=_text(raw.get("Name")),
        dimensions=dimensions,
        format=_text(_first(raw, "Format", "Format/Datatype")),
        dtype=_text(_first(raw, "Datatype", "DataType")),
    )


def _bindings(raw: object) -> tuple[str, ...]:
    listed = _first(raw, "Bindings", "I/O Tensors") if isinstance(raw, dict) else None
    if not isinstance(listed, list):
        return ()
    names = (one.get("Name") if isinstance(one, dict) else one for one in listed)
    return tuple(name for name in names if isinstance(name, str))


def _first(raw: Mapping[str, Any], *keys: str) -> Any:
    return next((raw[key] for key in keys if key in raw), None)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    return value if type(value) is int else None


def _flag(value: object) -> bool | None:
    return bool(value) if value in (0, 1, True, False) else None
