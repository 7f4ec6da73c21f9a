"""SOURCE of an export: told apart, read, checked, and turned into ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nm2trt.artifacts import BuildDocument, RunDocument
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.errors import ConfigError, InputError
from nm2trt.export.checkpoint import load_checkpoint
from nm2trt.export.foreign import load_onnx
from nm2trt.export.inputs import InputSpec, with_values
from nm2trt.export.network import Exported, export_onnx, export_torch
from nm2trt.export.source import load_run
from nm2trt.layers.huggingface import INDEXES, SINGLE_FILES
from nm2trt.layers.sources import file_kind, foreign_error
from nm2trt.onnx_tools.convert_precision import IoDtype, Precision

_WHAT = "SOURCE is a run folder, a checkpoint with --model, or an ONNX file"


def export_source(
    path: Path,
    *,
    model: str | None = None,
    inputs: tuple[InputSpec, ...] = (),
    sizes: Mapping[str, int] | None = None,
    fixed: Mapping[str, tuple[float, ...]] | None = None,
    classes: int | None = None,
    precision: Precision | None = None,
    io_dtype: IoDtype = "fp32",
    float_bias: bool = False,
    trust: bool = False,
) -> Exported:
    """Turn a source into ONNX, in memory.

    Args:
        path: A folder of `nm2trt train`; a checkpoint (.safetensors, .pt, an index of shards, a Hugging Face folder);
            an ONNX file, or a folder of `nm2trt export`.
        model: Name of a checkpoint's network.
        inputs: Of a checkpoint's network; sizes of what an ONNX file leaves open.
        sizes: Of axes that an ONNX file leaves open, by their names.
        fixed: Input name -> what it always holds when outputs are compared.
        classes: Of a checkpoint's network; None reads them off its shapes.
        precision: None takes fp32 for torch networks and leaves ONNX as found.
        io_dtype: "fp32" or "same" as `precision`.
        float_bias: Store an ONNX file's INT32 biases behind DequantizeLinear as floats.
        trust: Import code that a run folder names although this machine did not write it.

    Raises:
        ConfigError: Options that do not fit the source, a checkpoint without `model` among them.
        InputError: The source cannot be used.
        MachineError: A package that `model` asks for is not installed.
    """
    exported = _exported(
        path, model, inputs, sizes or {}, classes, precision, io_dtype, float_bias=float_bias, trust=trust
    )
    return replace(exported, inputs=with_values(exported.inputs, fixed or {}, inputs))


def _exported(
    path: Path,
    model: str | None,
    inputs: tuple[InputSpec, ...],
    sizes: Mapping[str, int],
    classes: int | None,
    precision: Precision | None,
    io_dtype: IoDtype,
    *,
    float_bias: bool,
    trust: bool,
) -> Exported:
    kind = source_kind(path)
    if float_bias and kind != "onnx":
        raise ConfigError("is for a quantized ONNX file", where="--float-bias", hint="leave it out")
    if sizes and kind != "onnx":
        raise ConfigError("names axes of an ONNX file", where="--size", hint="leave it out")
    if kind != "onnx" and any(one.star for one in inputs):
        raise ConfigError("a torch network has its batch first", where="--input", hint="leave the star out")
    if kind == "run":
        if model is not None or inputs or classes is not None:
            raise ConfigError(
                "a run folder names its own network", where=path, hint="leave --model, --input and --classes out"
            )
        return export_torch(load_run(path, trust=trust), precision=precision, io_dtype=io_dtype)
    if kind == "onnx":
        if model is not None or classes is not None:
            raise ConfigError("an ONNX file needs no --model and no --classes", where=path, hint="leave them out")
        graph = load_onnx(path, shapes=inputs, sizes=sizes)
        return export_onnx(graph, precision=precision, io_dtype=io_dtype, float_bias=float_bias)
    if model is None:
        raise ConfigError(
            "a checkpoint holds weights and no network",
            where=path,
            hint="name it with --model: resnet50, timm:NAME, package.module:factory, transformers:CLASS",
        )
    source = load_checkpoint(path, model, inputs=inputs, classes=classes)
    return export_torch(source, precision=precision, io_dtype=io_dtype)


def source_kind(path: Path) -> str:
    """Tell a source: "run", "onnx" or "checkpoint".

    Raises:
        InputError: It is none of them.
    """
    if not path.exists():
        raise InputError("does not exist", where=path, hint=_WHAT)
    if path.is_file():
        try:
            kind = file_kind(path)
        except PermissionError:
            raise InputError("may not be read", where=path, hint="check its permissions") from None
        if (error := foreign_error(path)) is not None:
            raise error
        if kind == "unknown" or kind == "npz":
            raise InputError("is a file of an unknown kind", where=path, hint=_WHAT)
        return "onnx" if kind == "onnx" else "checkpoint"
    if (path / RunDocument.FILE).is_file():
        return "run"
    if (path / ONNX_FILE).is_file() or (path / BuildDocument.FILE).is_file():
        return "onnx"
    if any((path / name).is_file() for name in (*INDEXES, *SINGLE_FILES)):
        return "checkpoint"
    if path.is_dir() and (error := foreign_error(path)) is not None:
        raise error
    raise InputError(
        f"no {RunDocument.FILE}, no {ONNX_FILE} and no weights here",
        where=path,
        hint=f"{_WHAT}; a run folder is complete when `nm2trt train` wrote it to the end",
    )
