"""From a run, a checkpoint or an ONNX file to a network in PyTorch, to profile it or to prune it with data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nm2trt.artifacts import NetworkRecord
from nm2trt.errors import ConfigError
from nm2trt.selectors import parse_shape

if TYPE_CHECKING:
    from nm2trt.export.source import ExportSource
    from nm2trt.profile.torch_sparse import TorchNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """What a checkpoint itself does not tell."""

    model: str | None = None
    """Its network, as `nm2trt export --model` takes it."""
    input_shape: str | None = None
    """One sample of a network with one input: "3,224,224"."""
    inputs: tuple[str, ...] = ()
    """NAME=SHAPE[:DTYPE], one input of several."""
    classes: int | None = None
    """None: as many as its weights have."""

    @property
    def given(self) -> tuple[str, ...]:
        """Options that say something."""
        options = {
            "--model": self.model,
            "--input-shape": self.input_shape,
            "--input": self.inputs,
            "--classes": self.classes,
        }
        return tuple(option for option, value in options.items() if value not in (None, ()))


def load_torch_network(source: Path, checkpoint: CheckpointConfig, shapes: Mapping[str, Sequence[int]]) -> TorchNetwork:
    """Load a run folder, a checkpoint with its network's name, or the products of an ONNX file.

    Args:
        source: Which of them it is, it tells itself.
        checkpoint: For a checkpoint only.
        shapes: For ONNX: whole shapes of inputs with dynamic dimensions.

    Raises:
        ConfigError: Options that do not fit the source.
        InputError: The source cannot be used.
        MachineError: A package that the network's name asks for is not installed.
    """
    from nm2trt.export.loading import source_kind

    kind = source_kind(source)
    if kind != "checkpoint" and checkpoint.given:
        raise ConfigError(f"{', '.join(checkpoint.given)}: for checkpoints only", where=source, hint="leave it out")
    if kind == "onnx":
        from nm2trt.profile.torch_sparse.onnx_products import load_products

        return load_products(source, shapes=shapes)
    return _from_export(load_export_source(source, checkpoint), "run" if kind == "run" else "checkpoint")


def load_export_source(source: Path, checkpoint: CheckpointConfig) -> ExportSource:
    """Load the network of a run folder, or of a checkpoint with its network's name.

    Args:
        source: Which of them it is, it tells itself.
        checkpoint: For a checkpoint only.

    Raises:
        ConfigError: Options that do not fit the source; a checkpoint's network is not named.
        InputError: The source cannot be used.
        MachineError: A package that the network's name asks for is not installed.
    """
    from nm2trt.export.checkpoint import load_checkpoint
    from nm2trt.export.inputs import INPUT, InputSpec, parse_inputs
    from nm2trt.export.loading import source_kind
    from nm2trt.export.source import load_run

    if source_kind(source) == "run":
        if checkpoint.given:
            raise ConfigError(f"{', '.join(checkpoint.given)}: for checkpoints only", where=source, hint="leave it out")
        return load_run(source)
    if checkpoint.model is None:
        raise ConfigError(
            "a checkpoint holds weights and no network",
            where=source,
            hint="name it with --model: resnet50, timm:NAME, package.module:factory, transformers:CLASS",
        )
    specs = parse_inputs(checkpoint.inputs)
    if checkpoint.input_shape is not None:
        specs = (InputSpec(name=INPUT, shape=parse_shape(checkpoint.input_shape, "--input-shape")),)
    return load_checkpoint(source, checkpoint.model, inputs=specs, classes=checkpoint.classes)


def _from_export(loaded: ExportSource, kind: Literal["run", "checkpoint"]) -> TorchNetwork:
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
