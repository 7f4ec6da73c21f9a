"""An ONNX file that others made, or that `nm2trt calibrate` wrote: read, checked, its shapes settled."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from nm2trt.artifacts import BuildSource, sha256_of
from nm2trt.errors import InputError
from nm2trt.export.facts import meant_sparse
from nm2trt.export.folding import constant_ancestors, split_weights, weight_values
from nm2trt.export.input_shapes import settle_inputs
from nm2trt.export.inputs import InputSpec
from nm2trt.export.quantized import check_integer_operators
from nm2trt.layers import METHOD_KEY, open_source
from nm2trt.onnx_tools.constants import one_line
from nm2trt.verify import verify_path

OLDEST_OPSET = 9
"""The oldest that TensorRT's ONNX parser takes."""
_LISTED = 20
_CONTRIB_PAIRS = ("(com.microsoft.QuantizeLinear)", "(com.microsoft.DequantizeLinear)")
_DEFAULT_DOMAINS = ("", "ai.onnx")
_QUANTIZED = {"INT8": "int8", "UINT8": "uint8", "FLOAT8E4M3FN": "fp8", "INT4": "int4", "UINT4": "uint4"}
_NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignGraph:
    """A file that was read and found usable."""

    path: Path
    model: ir.Model
    """Functions inlined; external data stay on disk until they are needed."""
    inputs: tuple[InputSpec, ...]
    dynamic: bool
    """Whether an input has a free batch."""
    precision: str
    """Types of its floating-point arithmetic as found: "fp32", "int8+fp16"."""
    patterns: dict[str, str]
    claimed: bool
    record: BuildSource


def load_onnx(path: Path, *, shapes: Sequence[InputSpec] = (), sizes: Mapping[str, int] | None = None) -> ForeignGraph:
    """Read an ONNX file and check all that would fail later.

    Args:
        path: The .onnx file, or a folder with a model.onnx.
        shapes: Sizes of dimensions that the file leaves open beside the batch, by input.
        sizes: The same by the name of the axis, for every input that has it.

    Raises:
        ConfigError: `shapes` names an input that the file does not have, or contradicts it.
        InputError: The file is no valid ONNX, its external data are missing, its opset is older than 9, it holds
            operators that no standard knows (all are named), weights that are computed when it runs, or dimensions
            without a size.
    """
    source = open_source(path)
    file = source.path
    # Reads every weight once, so that missing and cut external data are found before any work.
    checked = verify_path(file)
    model = _model(file)
    _check_opset(model, file)
    check_integer_operators(model, file)
    _check_operators(model, file)
    # torch's own exporter leaves the packed projection of a cross-attention so.
    split_weights(model)
    _check_weights(model, file)
    inputs, dynamic = settle_inputs(model, {one.name: one for one in shapes}, sizes or {}, file)
    patterns = meant_sparse(checked) if source.patterns is None else dict(source.patterns)
    shared = set(patterns.values())
    return ForeignGraph(
        path=file,
        model=model,
        inputs=inputs,
        dynamic=dynamic,
        precision=_precision(model),
        patterns=patterns,
        claimed=source.patterns is not None,
        record=BuildSource(
            kind="onnx",
            name=path.resolve().name,
            sha256=sha256_of(file),
            method=model.metadata_props.get(METHOD_KEY),
            pattern=shared.pop() if len(shared) == 1 else ("mixed" if shared else None),
        ),
    )


def _model(file: Path) -> ir.Model:
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        model = ir.load(file)
        if model.functions:
            common.InlinePass()(model)
        common.TopologicalSortPass()(model)
        _free_negative_sizes(model)
        if any(output.shape is None for output in model.graph.outputs):
            # The ONNX checker wants them, and runtimes do not.
            common.ShapeInferencePass()(model)
    except Exception as error:  # noqa: BLE001 -- whatever a broken graph makes the library raise
        raise InputError(
            f"is no valid ONNX model: {one_line(error)}", where=file, hint="check it with onnx.checker"
        ) from None
    finally:
        logger.setLevel(level)
    return model


def _free_negative_sizes(model: ir.Model) -> None:
    """Read a size of -1 as ONNX Runtime does: free. Paddle2ONNX writes it."""
    produced = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in (*model.graph.inputs, *model.graph.outputs, *produced):
        if value.shape is not None and any(isinstance(size, int) and size < 0 for size in value.shape):
            value.shape = ir.Shape([None if isinstance(size, int) and size < 0 else size for size in value.shape])


def _check_opset(model: ir.Model, file: Path) -> None:
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset < OLDEST_OPSET:
        raise InputError(
            f"opset {opset} is too old, TensorRT takes {OLDEST_OPSET} and newer",
            where=file,
            hint="raise it with onnx.version_converter.convert_version",
        )
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise InputError(
            f"opset {opset} is newer than {newest}, the newest that onnx {onnx.__version__} knows",
            where=file,
            hint="pip install -U onnx, or export with an older opset",
        )


def _check_operators(model: ir.Model, file: Path) -> None:
    unknown = []
    for node in model.graph.all_nodes():
        domain = "" if node.domain in _DEFAULT_DOMAINS else node.domain
        version = model.opset_imports.get(domain, model.opset_imports.get("", 1))
        try:
            known = not onnx.defs.get_schema(node.op_type, version, domain).deprecated
        except onnx.defs.SchemaError:
            known = False
        if not known:
            name = f"{domain}.{node.op_type}" if domain else node.op_type
            unknown.append(f"{node.name or node.outputs[0].name} ({name})")
    if unknown:
        hint = "replace them, or build with trtexec and its plugins and give what it writes to `nm2trt inspect`"
        if all(name.endswith(_CONTRIB_PAIRS) for name in unknown):
            hint = (
                "quantize again without UseQDQContribOps, or calibrate it anew with `nm2trt calibrate --resymmetrize`"
            )
        raise InputError(
            f"{len(unknown)} nodes with operators that ONNX does not know at this opset: {_list(unknown)}",
            where=file,
            hint=hint,
        )


def _check_weights(model: ir.Model, file: Path) -> None:
    """A convolution's weight has to be stored; so has that of a product that is computed from stored weights."""
    computed = []
    for node, index, value in weight_values(model):
        if value.is_initializer() or _layout_only(value):
            continue
        ancestors = constant_ancestors(value)
        if ancestors is not None and not any(_is_stored_weight(leaf) for leaf in ancestors[1]):
            # A table, such as the sines of a Fourier transform: it holds no weight, and the builder computes it once.
            continue
        if ancestors is not None or node.op_type in ("Conv", "ConvTranspose"):
            producer = value.producer()
            how = (
                f"by {producer.op_type} {producer.name or value.name}" if producer is not None else "outside the graph"
            )
            computed.append(f"{node.name or node.outputs[0].name} ({node.op_type} input {index}, {how})")
    if computed:
        raise InputError(
            f"weights that are computed while the graph runs: {_list(computed)}",
            where=file,
            hint="fold them into initializers, such as with `polygraphy surgeon sanitize --fold-constants`, or export "
            "the network with its masks and parametrizations removed",
        )


def _is_stored_weight(leaf: ir.Value) -> bool:
    tensor = leaf.const_value
    floating = leaf.dtype is None or leaf.dtype.is_floating_point() or leaf.dtype.name in _QUANTIZED
    # A row or a column is no matrix of weights.
    return tensor is None or (floating and sum(size != 1 for size in tensor.shape) > 1)


def _layout_only(value: ir.Value) -> bool:
    """Whether a weight is a constant behind nodes that only move, cast or quantize it, as Q/DQ graphs have."""
    found = constant_ancestors(value)
    if found is None:
        return False
    passing = {
        "Constant", "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze",
        "QuantizeLinear", "DequantizeLinear",
    }  # fmt: skip
    return all(node.op_type in passing for node in found[0])


def _precision(model: ir.Model) -> str:
    """Types of the arithmetic: those of the weights, where they are stored and where operators read them."""
    quantized: set[str] = set()
    floats: set[str] = set()
    for _, _, value in weight_values(model):
        found = constant_ancestors(value)
        if found is None:
            continue
        nodes, leaves = found
        behind_scales = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes)
        names = {leaf.dtype.name for leaf in leaves if leaf.dtype is not None}
        stored = {_QUANTIZED[name] for name in names & _QUANTIZED.keys()}
        quantized |= stored or ({"int8"} if behind_scales else set())
        floats |= {_NAMES[name] for name in names & _NAMES.keys()}
    return "+".join([*sorted(quantized), *sorted(floats)]) or "fp32"


def _list(entries: list[str]) -> str:
    more = f" and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
    return ", ".join(entries[:_LISTED]) + more
