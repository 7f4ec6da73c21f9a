"""From the SOURCE of `nm2trt profile --backend torch-sparse` to a network in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nm2trt.profile.torch_sparse import TorchNetwork


def torch_network(source: Path, options: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> TorchNetwork:
    """Load a run folder, a checkpoint with its --model, or the products of an ONNX file.

    Raises:
        ConfigError: Options that do not fit the source.
        InputError: The source cannot be used.
        MachineError: A package that --model asks for is not installed.
    """
    from nm2trt.errors import ConfigError
    from nm2trt.export.inputs import INPUT, InputSpec, parse_inputs
    from nm2trt.export.loading import source_kind
    from nm2trt.selectors import parse_shape

    kind = source_kind(source)
    names = {"model": "--model", "input_shape": "--input-shape", "inputs": "--input", "classes": "--classes"}
    given = [option for name, option in names.items() if options[name] not in (None, ())]
    if kind != "checkpoint" and given:
        raise ConfigError(f"{', '.join(given)}: for checkpoints only", where=source, hint="leave it out")
    if kind == "onnx":
        from nm2trt.profile.torch_sparse.onnx_products import load_products

        return load_products(source, shapes=shapes)
    from nm2trt.export.checkpoint import load_checkpoint
    from nm2trt.export.source import load_run

    if kind == "run":
        return _from_export(load_run(source), "run")
    if options["model"] is None:
        raise ConfigError(
            "a checkpoint holds weights and no network",
            where=source,
            hint="name it with --model: resnet50, timm:NAME, package.module:factory, transformers:CLASS",
        )
    specs = parse_inputs(options["inputs"])
    if options["input_shape"] is not None:
        specs = (InputSpec(name=INPUT, shape=parse_shape(options["input_shape"], "--input-shape")),)
    loaded = load_checkpoint(source, options["model"], inputs=specs, classes=options["classes"])
    return _from_export(loaded, "checkpoint")


def _from_export(loaded: Any, kind: Any) -> TorchNetwork:
    from nm2trt.artifacts import NetworkRecord
    from nm2trt.profile.torch_sparse import TorchNetwork

    record = loaded.record
    return TorchNetwork(
        module=loaded.module,
        inputs=loaded.inputs,
        record=NetworkRecord(
            kind=kind,
            name=record.name,
            sha256=record.sha256,
            method=record.method,
            pattern=record.pattern,
            model=record.model.name if record.model else None,
            zero_share=None,
        ),
    )
