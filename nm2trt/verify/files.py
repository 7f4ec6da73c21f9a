"""Check a file or folder on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from nm2trt.layers import LayerSource, LayerWeight, open_source
from nm2trt.pattern import TENSORRT_PATTERN, NMPattern
from nm2trt.verify.check import Auto, check_layers
from nm2trt.verify.verdicts import CheckResult


def verify_path(
    path: Path | str,
    pattern: NMPattern | Auto | None = None,
    *,
    layer_patterns: Mapping[str, NMPattern] | None = None,
    exclude: Sequence[str] = (),
    require: Sequence[str] = (),
    strict: bool = False,
    source: str | None = None,
    watch: Callable[[LayerWeight], None] | None = None,
) -> CheckResult:
    """Check a checkpoint, an ONNX file, a run folder or a build folder.

    Args:
        path: As `nm2trt.layers.open_source` takes it.
        pattern: Check every layer by it, or "auto". None: by the patterns in nm2trt's own metadata, and 2:4 where
            there are none.
        layer_patterns: As `check_layers` takes it.
        exclude: As `check_layers` takes it.
        require: As `check_layers` takes it.
        strict: As `check_layers` takes it.
        source: Name for the document; `path` by default.
        watch: Called with every layer before it is checked, to show progress.

    Raises:
        InputError: The path cannot be read or checked.
    """
    opened = open_source(path)
    claims = _claims(opened) if pattern is None else None
    return check_layers(
        _watched(opened.layers(), watch),
        pattern or _usual(claims),
        layer_patterns=layer_patterns,
        exclude=exclude,
        require=require,
        strict=strict,
        source=str(path) if source is None else source,
        kind=opened.kind,
        claims=claims,
        method=opened.method,
        left_out=opened.left_out,
    )


def _claims(opened: LayerSource) -> dict[str, NMPattern] | None:
    if opened.patterns is None:
        return None
    return {name: NMPattern.parse(text) for name, text in opened.patterns.items()}


def _usual(claims: Mapping[str, NMPattern] | None) -> NMPattern:
    """The pattern that most layers have."""
    return Counter(claims.values()).most_common(1)[0][0] if claims else TENSORRT_PATTERN


def _watched(layers: Iterator[LayerWeight], watch: Callable[[LayerWeight], None] | None) -> Iterator[LayerWeight]:
    for layer in layers:
        if watch is not None:
            watch(layer)
        yield layer
