"""Prune a file once, by magnitude."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nm2trt.pattern import NMPattern
from nm2trt.prune import PermuteOptions, PrunedLayer, PruneDocument, Request, prune_path

__all__ = ["PruneConfig", "PruneDocument", "PrunedLayer", "prune_file"]

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
    force: bool = False
    """Replace the output file."""


def prune_file(
    source: Path | str,
    output: Path | str,
    config: PruneConfig | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> PruneDocument:
    """Prune by magnitude into a new file of the same format, and check what was written.

    Args:
        source: A .safetensors, .pt or .onnx file, or a folder that holds one.
        output: File to write; a folder where `source` is a Hugging Face folder.
        config: Patterns and exclusions.
        progress: Told what is being done.

    Returns:
        What was pruned. Where its `verdict` is "fail", `output` was not written.

    Raises:
        ConfigError: Wrong output path or options.
        InputError: The source cannot be read or pruned.
    """
    config = config or PruneConfig()
    pattern = config.pattern
    logger.debug("prune %s to %s", source, pattern)
    return prune_path(
        Path(source),
        Path(output),
        Request(
            pattern=NMPattern.parse(pattern) if isinstance(pattern, str) else pattern,
            layer_patterns=dict(config.layer_patterns),
            exclude=config.exclude,
        ),
        permute=None if config.permute_s is None else PermuteOptions(config.permute_s),
        force=config.force,
        watch=progress or (lambda _: None),
    )
