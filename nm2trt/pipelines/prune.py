"""Prune a file once, by magnitude or with data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nm2trt.errors import ConfigError, InputError
from nm2trt.pattern import NMPattern
from nm2trt.pipelines.progress import ignore_progress
from nm2trt.prune import PermuteOptions, PrunedLayer, PruneDocument, Request, prune_path

if TYPE_CHECKING:
    from nm2trt.pipelines.prune_data import DataConfig, StepProgress
    from nm2trt.pipelines.torch_network import CheckpointConfig
    from nm2trt.prune.run import PruneWithData

__all__ = ["PruneConfig", "PruneDocument", "PrunedLayer", "draw_errors", "prune_file"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """Which weights stay."""

    pattern: NMPattern | str = "2:4"
    layer_patterns: Mapping[str, NMPattern] = field(default_factory=dict)
    """Glob of layer names -> another pattern for those."""
    exclude: tuple[str, ...] = ()
    """Globs of layers that stay as they are."""
    permute_s: float | None = None
    """ONNX: search for channel permutations first, for so many seconds of a usual core; None: do not."""
    data: DataConfig | None = None
    """Prune with samples (ONNX, and torch networks); None: by magnitude."""
    network: CheckpointConfig | None = None
    """With `data`, for a checkpoint: the network that it belongs to."""
    force: bool = False
    """Replace the output file."""


def prune_file(
    source: Path | str,
    output: Path | str,
    config: PruneConfig | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    steps: StepProgress | None = None,
) -> PruneDocument:
    """Prune into a new file of the same format, and check what was written; with data, OUT.prune.json is written, too.

    Args:
        source: A .safetensors, .pt or .onnx file, or a folder that holds one.
        output: File to write; a folder where `source` is a Hugging Face folder.
        config: Patterns and exclusions.
        progress: Told what is being done.
        steps: Told of layers and samples done while pruning with data.

    Returns:
        What was pruned. Where its `verdict` is "fail", `output` was not written.

    Raises:
        ConfigError: Wrong output path or options.
        InputError: The source or the samples cannot be used.
        MachineError: Pruning with data needs what is not installed.

    Example:
        With samples of the inputs, what stays makes up for what goes:

        >>> from nm2trt import DataConfig
        >>> document = prune_file("dense.onnx", "pruned.onnx", PruneConfig(data=DataConfig(data="samples.npz")))
        >>> layer = document.layers[0]
        >>> layer.name, layer.pattern, layer.output.error < layer.output.magnitude_error
        ('w0', '2:4', True)
    """
    config = config or PruneConfig()
    pattern = config.pattern
    logger.debug("prune %s to %s", source, pattern)
    with_data = None if config.data is None else _with_data(Path(source), Path(output), config, steps)
    document = prune_path(
        Path(source),
        Path(output),
        Request(
            pattern=NMPattern.parse(pattern) if isinstance(pattern, str) else pattern,
            layer_patterns=dict(config.layer_patterns),
            exclude=config.exclude,
        ),
        permute=_permute_options(Path(source), config, steps),
        with_data=with_data,
        force=config.force,
        watch=progress or ignore_progress,
    )
    if with_data is not None and document.verdict == "pass":
        from nm2trt.artifacts import write_atomic
        from nm2trt.prune.prune_schema import document_path

        write_atomic(document_path(Path(output)), document.without_folders().to_json())
    return document


def _permute_options(source: Path, config: PruneConfig, steps: StepProgress | None) -> PermuteOptions | None:
    if config.permute_s is None:
        return None
    if config.data is None or config.data.method == "magnitude":
        return PermuteOptions(config.permute_s)
    from nm2trt.pipelines.prune_onnx import score_onnx_weights

    scores = partial(score_onnx_weights, config=config.data, source=source, progress=steps or ignore_progress)
    return PermuteOptions(config.permute_s, scores=scores)


def _with_data(source: Path, output: Path, config: PruneConfig, steps: StepProgress | None) -> PruneWithData:
    """Check what can be checked before anything is copied."""
    from nm2trt.pipelines.prune_data import check_machine
    from nm2trt.pipelines.prune_onnx import prune_onnx_with_data
    from nm2trt.prune.prune_schema import document_path

    assert config.data is not None
    document = document_path(output)
    if document.is_dir() or (document.exists() and not config.force):
        raise ConfigError(
            "the file for the document exists", where=document, hint="choose another -o, or replace it with --force"
        )
    check_machine()
    if output.suffix.lower() != ".onnx":
        return _with_torch(source, config, steps)
    if config.network is not None and config.network.given:
        raise ConfigError(f"{', '.join(config.network.given)}: for checkpoints only", where=source, hint="leave it out")
    return partial(prune_onnx_with_data, config=config.data, source=source, progress=steps or ignore_progress)


def _with_torch(source: Path, config: PruneConfig, steps: StepProgress | None) -> PruneWithData:
    from nm2trt.layers import open_source
    from nm2trt.pipelines.prune_torch import prune_torch_with_data
    from nm2trt.pipelines.torch_network import CheckpointConfig, load_export_source

    assert config.data is not None
    file = open_source(source).path
    if file.suffix.lower() == ".onnx":
        raise ConfigError("-o is no .onnx file", where=source, hint="name the output OUT.onnx")
    if config.data.recalibrate_bn and file.suffix.lower() not in (".safetensors", ".json"):
        raise InputError(
            "batch norm statistics can be written into .safetensors only",
            where=source,
            hint="save it as .safetensors, or leave out --recalibrate-bn",
        )
    network = load_export_source(source, config.network or CheckpointConfig())
    return partial(prune_torch_with_data, config=config.data, network=network, progress=steps or ignore_progress)


def draw_errors(document: PruneDocument, output: Path) -> None:
    """Draw the output error of every layer that was pruned with data into a PNG."""
    from nm2trt.report.layer_errors import ErrorRow, write_errors_png

    rows = [
        ErrorRow(name=layer.name, error=layer.output.error, magnitude_error=layer.output.magnitude_error)
        for layer in document.layers
        if layer.output is not None
    ]
    write_errors_png(rows, output, f"{Path(document.source).name}: output error of each pruned layer")
