"""torch module -> ONNX that TensorRT 10, 11 and RTX take alike: strongly typed, dynamic batch, plain initializers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
from torch import nn

from nm2trt.errors import InputError
from nm2trt.export.folding import simplify
from nm2trt.export.inputs import INPUT, InputSpec
from nm2trt.export.torch_graph import float32_graph
from nm2trt.layers import METHOD_KEY, PATTERNS_KEY
from nm2trt.library_errors import one_line
from nm2trt.onnx_tools.convert_precision import Conversion, IoDtype, Precision, convert

OPSET = {"fp32": 20, "fp16": 20, "bf16": 22}
"""20 is what the ONNX parsers of TensorRT 10.0 and newer all take; Conv knows bfloat16 only since 22."""


def exporter_version() -> str:
    """Name of the exporter, for build.json."""
    return f"torch.onnx {torch.__version__} (torch.export)"


def onnx_from_module(
    module: nn.Module,
    inputs: Sequence[InputSpec] | tuple[int, ...],
    *,
    precision: Precision = "fp32",
    io_dtype: IoDtype = "fp32",
    patterns: Mapping[str, str] | None = None,
    method: str | None = None,
) -> ir.Model:
    """Export a network; the batch is the named dimension "batch" of every input.

    BatchNorm is folded into convolutions in float32 before weights are rounded to `precision`. Weights are plain
    initializers with their state dict names, transposed where ONNX wants [K, N]; the operator that consumes
    `layer.weight` is named `layer`, every other after its module, which the node's metadata `nm2trt.module` holds.

    Args:
        module: On the CPU; it is not changed.
        inputs: What it takes; or the shape of one float32 sample, without the batch.
        precision: Type of weights and arithmetic.
        io_dtype: "fp32" keeps floating-point inputs and outputs in float32, "same" gives them `precision`.
        patterns: Parameter name -> "N:M" of what is meant to be sparse, stored in the file for `nm2trt verify`;
            None where that is not known.
        method: How the weights were trained, stored in the file.

    Raises:
        ConfigError: The network takes no such inputs.
        InputError: torch cannot export the network, a weight of `patterns` is no plain initializer afterwards, or a
            weight is beyond the range of `precision`.
    """
    model, renamed = float32_model(module, _specs(inputs), precision=precision)
    annotate(model, patterns=renamed_patterns(model, patterns, renamed), method=method)
    convert_model(model, module, precision=precision, io_dtype=io_dtype)
    return model


def float32_model(
    module: nn.Module, inputs: Sequence[InputSpec], *, precision: Precision
) -> tuple[ir.Model, dict[str, list[str]]]:
    """Export in float32, with the opset that `precision` needs, folded and named.

    Returns:
        The model, and old -> new names of the parameters that a weight was computed from.

    Raises:
        ConfigError: As `onnx_from_module`.
        InputError: As `onnx_from_module`.
    """
    plain = module
    if module.training or any(one.dtype in (torch.float16, torch.bfloat16) for one in module.parameters()):
        import copy

        plain = copy.deepcopy(module).float().eval()
    model = float32_graph(plain, inputs, opset=OPSET[precision])
    return model, simplify(model)


def convert_model(model: ir.Model, module: nn.Module, *, precision: Precision, io_dtype: IoDtype) -> Conversion:
    """Give an exported float32 graph its type; errors as `nm2trt.onnx_tools.convert_precision.convert`."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return convert(model, precision, io_dtype=io_dtype, parameters=names)


def renamed_patterns(
    model: ir.Model, patterns: Mapping[str, str] | None, renamed: Mapping[str, Sequence[str]]
) -> dict[str, str] | None:
    """Patterns by the names of the graph's initializers.

    Raises:
        InputError: A weight has no initializer.
    """
    if patterns is None:
        return None
    named = {new: pattern for name, pattern in patterns.items() for new in renamed.get(name, (name,))}
    for name in sorted(named.keys() - model.graph.initializers.keys()):
        raise InputError(
            "the exporter left no plain initializer of this name, so its pattern cannot be checked in the ONNX",
            where=name,
        )
    return named


def annotate(model: ir.Model, *, patterns: Mapping[str, str] | None, method: str | None) -> None:
    """Store in the file what is meant to be sparse."""
    if patterns is not None:
        model.metadata_props[PATTERNS_KEY] = json.dumps(dict(patterns), sort_keys=True)
    if method:
        model.metadata_props[METHOD_KEY] = method


def ports(model: ir.Model) -> list[tuple[str, str, tuple[int | str, ...]]]:
    """Name, element type ("float32") and shape of the graph's inputs, then of its outputs; dynamic sizes are named."""
    described = []
    for value in (*model.graph.inputs, *model.graph.outputs):
        dtype = "" if value.dtype is None else str(value.dtype.numpy())
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape or ())
        described.append((str(value.name), dtype, shape))
    return described


def onnx_bytes(model: ir.Model) -> bytes:
    """Serialize, after the ONNX checker with shape inference has agreed.

    Raises:
        InputError: The model breaks the ONNX standard.
    """
    import onnx

    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(f"the exported ONNX is invalid: {one_line(error)}", where="export") from None
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _specs(inputs: Sequence[InputSpec] | tuple[int, ...]) -> tuple[InputSpec, ...]:
    specs = [one for one in inputs if isinstance(one, InputSpec)]
    if specs:
        return tuple(specs)
    return (InputSpec(name=INPUT, shape=tuple(size for size in inputs if isinstance(size, int))),)
