"""One network on its way to ONNX, whatever it came from: a run, a checkpoint, or an ONNX file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from nm2trt.artifacts import BatchRange, BuildSource, GraphPort, write_atomic
from nm2trt.errors import ConfigError, InputError
from nm2trt.export.foreign import ForeignGraph
from nm2trt.export.inputs import InputSpec, bounded
from nm2trt.export.numerics import TOLERANCES, tolerance_of
from nm2trt.export.onnx_graph import annotate, convert_model, exporter_version, float32_model, renamed_patterns
from nm2trt.export.quantized import ROUNDING_OPS, float_biases
from nm2trt.export.reference import OnnxReference, Reference, TorchReference
from nm2trt.export.source import ExportSource
from nm2trt.export.torch_graph import BATCH, silenced
from nm2trt.layers import PATTERNS_KEY
from nm2trt.onnx_tools.convert_precision import Conversion, IoDtype, Precision, convert
from nm2trt.onnx_tools.node_names import name_nodes
from nm2trt.onnx_tools.writing import write_onnx
from nm2trt.ort.index_limits import index_limits

USUAL_PRECISION: Precision = "fp32"
_LISTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A network as ONNX, before it is written."""

    model: ir.Model
    inputs: tuple[InputSpec, ...]
    dynamic: bool
    """Whether the batch is free."""
    precision: str
    io_dtype: str
    opset: int
    exporter: str
    patterns: dict[str, str]
    """Initializer -> "N:M" of what is meant to be sparse."""
    reference: Reference
    tolerance: float
    """The usual bound on the relative error."""
    converted_to: Precision | None
    """The type that it was given here; None where it is as found."""
    data: str | None
    record: BuildSource
    macs: float | None
    """Multiply-accumulates of one sample in layers with stored weights; None where shapes do not tell."""
    verbatim: Path | None = None
    """The file that is copied byte by byte, where nothing was changed."""
    notes: list[str] = field(default_factory=list)

    def write(self, path: Path, *, external: bool = False) -> list[Path]:
        """Write the ONNX file, with external data beside it where it needs them.

        Raises:
            OSError: The disk is full or the folder cannot be written.
        """
        if self.verbatim is not None and not external:
            write_atomic(path, self.verbatim.read_bytes())
            return [path]
        return write_onnx(self.model, path, external=external)


def export_torch(source: ExportSource, *, precision: Precision | None, io_dtype: IoDtype) -> Exported:
    """Export a torch network.

    Raises:
        ConfigError: It takes no such inputs.
        InputError: As `nm2trt.export.onnx_from_module`.
    """
    wanted = precision or USUAL_PRECISION
    model, renamed = float32_model(source.module, source.inputs, precision=wanted)
    known: dict[str, str] = dict(source.patterns)
    if not source.claimed:
        known = {
            name: pattern
            for name, pattern in known.items()
            if all(new in model.graph.initializers for new in renamed.get(name, (name,)))
        }
    patterns = renamed_patterns(model, known, renamed) or {}
    annotate(model, patterns=patterns, method=source.record.method)
    macs = macs_per_sample(model)
    inputs = bounded(source.inputs, index_limits(model))
    done = convert_model(model, source.module, precision=wanted, io_dtype=io_dtype)
    return Exported(
        model=model,
        inputs=inputs,
        dynamic=True,
        precision=wanted,
        io_dtype=_io_name(io_dtype, wanted),
        opset=model.opset_imports[""],
        exporter=exporter_version(),
        patterns=patterns,
        reference=TorchReference(source.module, source.inputs),
        tolerance=TOLERANCES[wanted],
        converted_to=wanted,
        data=source.data,
        record=source.record,
        macs=macs,
        notes=_notes(done),
    )


def export_onnx(
    graph: ForeignGraph, *, precision: Precision | None, io_dtype: IoDtype, float_bias: bool = False
) -> Exported:
    """Take an ONNX file as it is, or give it another type.

    Args:
        graph: The file.
        precision: None takes it as it is.
        io_dtype: Of a converted graph.
        float_bias: Store INT32 biases behind DequantizeLinear as floats.

    Raises:
        InputError: Its arithmetic is not float32 and cannot become `precision`, a weight is beyond that type's range,
            or its opset is too old for it.
    """
    model = graph.model
    floats = graph.precision.split("+")[-1]
    done, converted = Conversion(), False
    nameless = name_nodes(model)
    biases = float_biases(model, graph.path) if float_bias else 0
    if precision is not None and precision != floats:
        if floats != "fp32":
            raise InputError(
                f"computes in {graph.precision}, and only fp32 is converted to {precision}",
                where=graph.path,
                hint="leave --precision out to take it as it is",
            )
        with silenced():
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            common.ShapeInferencePass()(model)
        done = convert(model, precision, io_dtype=io_dtype)
        converted = True
    named = "+".join([*graph.precision.split("+")[:-1], precision if converted and precision else floats])
    if not graph.claimed and graph.patterns and converted:
        model.metadata_props[PATTERNS_KEY] = json.dumps(graph.patterns, sort_keys=True)
    return Exported(
        model=model,
        inputs=bounded(graph.inputs, index_limits(model)),
        dynamic=graph.dynamic,
        precision=named,
        io_dtype=_io_name(io_dtype, precision or USUAL_PRECISION) if converted else _found_io(graph),
        opset=model.opset_imports.get("", 0),
        exporter=f"{graph.record.name} as found" if not converted else f"{graph.record.name}, converted to {precision}",
        patterns=graph.patterns,
        reference=OnnxReference(graph.path, converted=converted or biases > 0),
        tolerance=tolerance_of(named, quantized=any(node.op_type in ROUNDING_OPS for node in model.graph.all_nodes())),
        converted_to=precision if converted else None,
        data=None,
        record=graph.record,
        macs=macs_per_sample(model),
        verbatim=None if converted or nameless or biases or _edited(graph) else graph.path,
        notes=[*_edits(nameless, biases), *_notes(done)],
    )


def settle_batch(exported: Exported, batch: BatchRange | None, *, usual: BatchRange) -> BatchRange | None:
    """Bring the user's batch range and the graph together.

    Args:
        exported: The graph.
        batch: What the user asked for; None where nothing was.
        usual: Taken then, where the batch is free.

    Returns:
        None where the graph's shapes are fixed.

    Raises:
        ConfigError: A range was asked for and the graph's batch is fixed at another size.
    """
    if exported.dynamic:
        return batch or usual
    sizes = {one.shape[0] if one.shape else 1 for one in exported.inputs}
    if batch is not None and {batch.min, batch.opt, batch.max} != sizes:
        shapes = ", ".join(f"{one.name} {list(one.shape)}" for one in exported.inputs)
        raise ConfigError(
            f"the graph's shapes are fixed ({shapes}), so batches {batch.min} to {batch.max} do not fit",
            where="--batch",
            hint="leave --batch out, or export the network again with a free batch",
        )
    return None


def graph_ports(model: ir.Model) -> tuple[tuple[GraphPort, ...], tuple[GraphPort, ...]]:
    """Inputs and outputs of a graph, for build.json; a dimension without a name is the batch."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    return tuple(map(_port, inputs)), tuple(map(_port, model.graph.outputs))


def _port(value: ir.Value) -> GraphPort:
    sizes = value.shape or ()
    shape = tuple(size if isinstance(size, int) else str(size.value or BATCH) for size in sizes)
    return GraphPort(name=str(value.name), dtype=str(value.dtype.numpy()) if value.dtype else "", shape=shape)


def macs_per_sample(model: ir.Model) -> float | None:
    """Multiply-accumulates of one sample in convolutions and products with stored weights."""
    total = 0.0
    for node in model.graph:
        weight = next((v for v in node.inputs[1:2] if v is not None and v.is_initializer()), None)
        if node.op_type not in ("Conv", "Gemm", "MatMul") or weight is None or weight.shape is None:
            continue
        shape = node.outputs[0].shape
        if shape is None:
            return None
        sizes = [size for size in list(shape)[1:] if isinstance(size, int)]
        places = math.prod(sizes[1:]) if node.op_type == "Conv" else math.prod(sizes[:-1])
        total += math.prod(size for size in weight.shape if isinstance(size, int)) * places
    return total


def _io_name(io_dtype: IoDtype, precision: Precision) -> str:
    return precision if io_dtype == "same" else "fp32"


def _found_io(graph: ForeignGraph) -> str:
    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    found = {names[one.dtype] for one in graph.inputs if one.dtype in names}
    return "+".join(sorted(found)) or "fp32"


def _edited(graph: ForeignGraph) -> bool:
    """Whether reading settled a shape or cut a weight into its parts, or the weights lie beside the file."""
    external = any(isinstance(v.const_value, ir.ExternalTensor) for v in graph.model.graph.initializers.values())
    if external:
        return True
    given = ir.load(graph.path).graph
    if not set(graph.model.graph.initializers) <= set(given.initializers):
        return True
    found = {str(v.name): v.shape for v in (*given.inputs, *given.outputs)}
    return any(v.shape is not None and found.get(str(v.name)) is None for v in graph.model.graph.outputs) or any(
        found.get(str(v.name)) != v.shape for v in graph.model.graph.inputs
    )


def _edits(nameless: int, biases: int) -> list[str]:
    notes = []
    if nameless:
        notes.append(
            f"nodes without a name, named after their outputs so that the engine's layers can be told: {nameless}"
        )
    if biases:
        notes.append(f"INT32 biases, stored as the floats that they stand for: {biases}")
    return notes


def _notes(done: Conversion) -> list[str]:
    notes = []
    if done.clamped:
        notes.append(f"constants beyond the type's range were set to its largest: {_some(done.clamped)}")
    if done.kept_float32:
        notes.append(f"left in float32, since ONNX knows them only so: {_some(done.kept_float32)}")
    return notes


def _some(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
