"""torch module -> ONNX that TensorRT 10, 11 and RTX take alike: strongly typed, dynamic batch, plain initializers."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from nm2trt.errors import InputError
from nm2trt.layers import METHOD_KEY, PATTERNS_KEY

Precision = Literal["fp32", "fp16", "bf16"]

OPSET = {"fp32": 20, "fp16": 20, "bf16": 22}
"""20 is what the ONNX parsers of TensorRT 10.0 and newer all take; Conv knows bfloat16 only since 22."""
INPUT, OUTPUT, BATCH = "input", "logits", "batch"

_TORCH_DTYPE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_IR_DTYPE = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_NUMPY_DTYPE = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
# torch.export specialises a batch of 1, so the example has 2.
_EXAMPLE_BATCH = 2
_WRAPPED = "net."


class _Float32Edges(nn.Module):
    """Casts at the boundary, so that callers feed and read float32 whatever runs inside."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = net
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.net(x.to(self.dtype))
        return y.float()


def exporter_version() -> str:
    """Name of the exporter, for build.json."""
    return f"torch.onnx {torch.__version__} (torch.export)"


def onnx_from_module(
    module: nn.Module,
    input_shape: tuple[int, ...],
    *,
    precision: Precision = "fp32",
    patterns: dict[str, str] | None = None,
    method: str | None = None,
) -> ir.Model:
    """Export a network that maps one tensor [batch, *input_shape] to one tensor.

    BatchNorm is folded into convolutions in float32 before weights are rounded to `precision`. Initializers keep
    their state dict names, and the operator that consumes `layer.weight` is named `layer`.

    Args:
        module: In float32 on the CPU; it is not changed.
        input_shape: One sample, without the batch.
        precision: Type of weights and arithmetic; input and output stay float32.
        patterns: Parameter name -> "N:M" of what is meant to be sparse, stored in the file for `nm2trt verify`;
            None where that is not known.
        method: How the weights were trained, stored in the file.

    Returns:
        The model; the batch is the named dimension "batch".

    Raises:
        InputError: torch cannot export the network, or a weight of `patterns` is no plain initializer afterwards.
    """
    graph_module = _folded(module)
    if precision != "fp32":
        dtype = _TORCH_DTYPE[precision]
        graph_module = _Float32Edges(graph_module.to(dtype), dtype).eval()
    model = _exported(graph_module, input_shape, OPSET[precision])
    _strip_metadata(model)
    _name_as_torch(model, "" if precision == "fp32" else _WRAPPED)
    _retype(model, precision)
    for name in sorted((patterns or {}).keys() - model.graph.initializers.keys()):
        raise InputError(
            "the exporter left no plain initializer of this name, so its pattern cannot be judged in the ONNX",
            where=name,
        )
    if patterns is not None:
        model.metadata_props[PATTERNS_KEY] = json.dumps(patterns, sort_keys=True)
    if method:
        model.metadata_props[METHOD_KEY] = method
    return model


def ports(model: ir.Model) -> list[tuple[str, str, tuple[int | str, ...]]]:
    """Name, element type ("float32") and shape of the graph's inputs, then of its outputs; dynamic sizes are named."""
    described = []
    for value in (*model.graph.inputs, *model.graph.outputs):
        dtype = "" if value.dtype is None else str(value.dtype.numpy())
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape or ())
        described.append((str(value.name), dtype, shape))
    return described


def onnx_bytes(model: ir.Model) -> bytes:
    """Serialise, after the ONNX checker with shape inference has agreed.

    Raises:
        InputError: The model breaks the ONNX standard.
    """
    import onnx

    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(f"the exported ONNX is invalid: {error}", where="export") from None
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _folded(module: nn.Module) -> nn.Module:
    """Copy of the network with BatchNorm folded in float32; what torch.fx cannot trace is left to the exporter."""
    from torch.fx.experimental.optimization import fuse

    plain = copy.deepcopy(module).float().eval()
    try:
        folded: nn.Module = fuse(plain).eval()
    except Exception:  # noqa: BLE001 -- tracing fails in many ways on data-dependent code; folding is only earlier then
        return plain
    return folded


def _exported(module: nn.Module, input_shape: tuple[int, ...], opset: int) -> ir.Model:
    example = torch.zeros(_EXAMPLE_BATCH, *input_shape)
    try:
        with _silenced(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim(BATCH, min=1)},),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        cause = error.__cause__ or error
        first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise InputError(f"torch cannot export the network: {first}", where="export") from error
    if program is None:
        raise InputError("torch returned no ONNX program", where="export")
    model: ir.Model = program.model
    return model


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep the exporter's prints, warnings and log lines off the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _strip_metadata(model: ir.Model) -> None:
    """Remove what torch.export notes on every node and value: stack traces with this machine's paths."""
    graph = model.graph
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def _name_as_torch(model: ir.Model, prefix: str) -> None:
    """Name initializers as the state dict does, and each operator after the layer whose weight it takes."""
    for name in list(model.graph.initializers):
        if prefix and name.startswith(prefix):
            model.graph.initializers[name].name = name.removeprefix(prefix)
    taken = {node.name for node in model.graph}
    for node in model.graph:
        for value in node.inputs:
            if value is None or not value.is_initializer() or not (value.name or "").endswith(".weight"):
                continue
            layer = str(value.name).removesuffix(".weight")
            if layer not in taken:
                taken.add(layer)
                node.name = layer


def _retype(model: ir.Model, precision: Precision) -> None:
    """Give every floating-point initializer the graph's type.

    The exporter's own BatchNorm fold computes bfloat16 in numpy and leaves float32 behind (torch 2.14), which a
    strongly typed graph refuses.
    """
    for value in model.graph.initializers.values():
        if precision != "fp32" and value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            array = value.const_value.numpy().astype(_NUMPY_DTYPE[precision])
            value.const_value = ir.tensor(array, dtype=_IR_DTYPE[precision], name=value.name)
            value.dtype = _IR_DTYPE[precision]
