"""Check a file against N:M patterns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nm2trt.layers import LayerWeight
from nm2trt.pattern import NMPattern
from nm2trt.verify import (
    BAD_VERDICTS,
    UNREAD_VERDICTS,
    CheckResult,
    LayerVerdict,
    group_histograms,
    parse_pattern,
    verify_path,
)

__all__ = [
    "UNREAD_VERDICTS",
    "CheckResult",
    "LayerVerdict",
    "VerifyConfig",
    "draw_sparsity",
    "results_json",
    "verify_file",
]

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig:
    """What a file is checked against."""

    pattern: NMPattern | str | None = None
    """For every layer: a pattern, "N:M", or "auto" for the strongest that a layer holds. None: what the file's own
    metadata says, else 2:4."""
    layer_patterns: Mapping[str, NMPattern] = field(default_factory=dict)
    """Glob of layer names -> another pattern for those."""
    exclude: tuple[str, ...] = ()
    """Globs of layers that are not checked."""
    require: tuple[str, ...] = ()
    """Globs of layers that must conform."""
    strict: bool = False
    """Every prunable layer must conform, and every weight be checked."""


def verify_file(
    path: Path | str, config: VerifyConfig | None = None, *, progress: Progress | None = None
) -> CheckResult:
    """Check every layer of a checkpoint, an ONNX file, or a folder that holds one.

    Args:
        path: A .safetensors, .pt, .npz or .onnx file, a run, build or Hugging Face folder. No code in it is run.
        config: What to check against.
        progress: Told what is being done.

    Returns:
        One verdict per layer; `verdict` of the whole is "pass" or "fail".

    Raises:
        ConfigError: A pattern or glob is wrong.
        InputError: The path cannot be read or checked.

    Example:
        >>> result = verify_file("model.onnx", VerifyConfig(pattern="2:4", strict=True))
        >>> result.verdict, [(layer.name, layer.verdict) for layer in result.layers]
        ('pass', [('w0', 'conforms'), ('w1', 'conforms')])
    """
    config = config or VerifyConfig()
    logger.debug("verify %s", path)

    def watch(layer: LayerWeight) -> None:
        if progress is not None:
            progress(f"checking {layer.name}")

    return verify_path(
        path,
        parse_pattern(config.pattern) if isinstance(config.pattern, str) else config.pattern,
        layer_patterns=config.layer_patterns,
        exclude=config.exclude,
        require=config.require,
        strict=config.strict,
        watch=None if progress is None else watch,
    )


def results_json(results: list[CheckResult]) -> str:
    """The JSON document of one result, or of several in one."""
    # Only those who want JSON pay for pydantic.
    from nm2trt.verify.verify_schema import json_of

    return json_of(results)


def draw_sparsity(path: Path | str, result: CheckResult, output: Path) -> None:
    """Draw the non-zeros per group of every checked layer into a PNG.

    Args:
        path: What was checked.
        result: What the check found.
        output: File to write.
    """
    from nm2trt.report.sparsity import SparsityRow, write_sparsity_png

    rows = [
        SparsityRow(
            name=printable(layer.name),
            n=NMPattern.parse(layer.pattern).n,
            groups=groups.tolist(),
            verdict=layer.verdict,
            bad=layer.verdict in BAD_VERDICTS,
        )
        for layer, groups in group_histograms(Path(path), result)
    ]
    write_sparsity_png(rows, output, f"{printable(result.source)}: non-zeros per group, layer by layer")


def printable(text: str) -> str:
    """A name with its control characters made visible."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
