"""A verify document for people: worst layers first, what broke, one line that sums it up."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nm2trt.pipelines.verify import CheckResult, LayerVerdict

_WORST_FIRST = (
    "violates",
    "wrong-axis",
    "zero-point",
    "dense",
    "not-checked",
    "indivisible",
    "conforms",
    "not-prunable",
)
_UNREAD = ("not-prunable", "not-checked")
_MOST_UNCHECKED = 8
_WIDE = 105
_COLUMNS = ("layer", "shape", "N:M", "verdict", "density", "broken groups", "TensorRT")
_RIGHT = ("density", "broken groups")
_FOLDED = ("layer", "TensorRT")
_WIDE_ONLY = ("shape", "density")
_STYLES = {
    "violates": "bold red",
    "wrong-axis": "bold red",
    "zero-point": "bold red",
    "dense": "yellow",
    "indivisible": "yellow",
    "conforms": "green",
    "not-checked": "yellow",
    "not-prunable": "dim",
}


def print_check_result(document: CheckResult) -> None:
    """Print table, details of what broke, notes and the summary line."""
    import click

    if sys.stdout.isatty() or "FORCE_COLOR" in os.environ:
        from nm2trt.cli.common import stdout_console

        _print_rich(stdout_console(), document)
    else:
        # A log or a pipe has no width of its own, and drawing a table for it would take longer than the verdict.
        click.echo("\n".join(plain_lines(document)))


def _print_rich(console: Console, document: CheckResult) -> None:
    from rich.text import Text

    if any(layer.verdict not in _UNREAD for layer in document.layers):
        console.print(verdict_table(document, narrow=console.width < _WIDE))
    for line in detail_lines(document):
        console.print(Text("  " + line), soft_wrap=True)
    summary = Text(summary_line(document))
    summary.stylize("bold green" if document.verdict == "pass" else "bold red", 0, 4)
    console.print(summary, soft_wrap=True)


def plain_lines(document: CheckResult) -> list[str]:
    """The same without colors and without folding: columns as wide as their longest cell."""
    lines = []
    rows = [_COLUMNS, *(_cells(layer) for layer in worst_first(document.layers) if layer.verdict not in _UNREAD)]
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [plain(document.source), ""]
        for row in rows:
            cells = [
                cell.rjust(width) if name in _RIGHT else cell.ljust(width)
                for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
            ]
            lines.append("  ".join(cells).rstrip())
        lines.insert(3, "─" * (sum(widths) + 2 * (len(widths) - 1)))
        lines.append("")
    return [*lines, *("  " + line for line in detail_lines(document)), summary_line(document)]


def verdict_table(document: CheckResult, *, narrow: bool = False) -> Table:
    """One row per layer that could be sparse, worst first; `narrow` leaves shape and density out."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=plain(document.source), title_justify="left")
    shown = [index for index, name in enumerate(_COLUMNS) if not (narrow and name in _WIDE_ONLY)]
    for index in shown:
        name = _COLUMNS[index]
        folds = name in _FOLDED
        justify: Literal["left", "right"] = "right" if name in _RIGHT else "left"
        table.add_column(name, justify=justify, no_wrap=not folds, overflow="fold" if folds else "ellipsis")
    for layer in worst_first(document.layers):
        if layer.verdict in _UNREAD:
            continue
        cells = [Text(cell) for cell in _cells(layer)]
        cells[_COLUMNS.index("verdict")].stylize(_STYLES[layer.verdict])
        table.add_row(*(cells[index] for index in shown))
    return table


def _cells(layer: LayerVerdict) -> tuple[str, ...]:
    return (
        plain(layer.name),
        "x".join(map(str, layer.shape)),
        layer.pattern,
        layer.verdict,
        "" if layer.density is None else f"{layer.density:.3f}",
        f"{layer.violations:,} of {layer.groups:,}" if layer.groups else "",
        (layer.tensorrt_reason.summary() if layer.tensorrt_reason else layer.tensorrt)
        + (f", hint: {layer.hint}" if layer.hint else ""),
    )


def worst_first(layers: list[LayerVerdict]) -> list[LayerVerdict]:
    """Sort by verdict; among those that break the pattern, by the share of broken groups."""

    def rank(layer: LayerVerdict) -> tuple[int, float]:
        broken = layer.violations / layer.groups if layer.groups else 0.0
        return _WORST_FIRST.index(layer.verdict), -broken

    return sorted(layers, key=rank)


def detail_lines(document: CheckResult) -> list[str]:
    """Where the pattern breaks, what the short words in the table mean, and the document's notes."""
    lines = []
    for layer in worst_first(document.layers):
        bad = layer.verdict in ("violates", "wrong-axis", "zero-point")
        if not bad and (
            not layer.note or layer.packed or layer.reason is not None or layer.verdict in ("indivisible", *_UNREAD)
        ):
            continue
        parts = [part for part in (layer.note, first_violation_words(layer) if bad else "") if part]
        lines.append(f"{plain(layer.name)}: {'; '.join(parts)}")
    reasons = Counter(
        layer.tensorrt
        for layer in document.layers
        if layer.tensorrt_reason is not None and layer.tensorrt_reason.explained and layer.verdict == "conforms"
    )
    lines += [f"TensorRT, {count} conforming: {reason}" for reason, count in reasons.most_common()]
    packed = Counter(layer.packed for layer in document.layers if layer.packed)
    lines += [f"{count} unpacked from their {kind}" for kind, count in packed.items()]
    lines += _unchecked_lines([layer for layer in document.layers if layer.verdict == "not-checked"])
    unprunable = Counter(
        layer.reason.summary() if layer.reason else layer.note
        for layer in document.layers
        if layer.verdict == "not-prunable"
    )
    if unprunable:
        words = ", ".join(f"{count} {reason}" for reason, count in unprunable.most_common())
        lines.append(f"not prunable: {words}")
    return lines + [f"note: {note}" for note in document.notes]


def _unchecked_lines(layers: Sequence[LayerVerdict]) -> list[str]:
    """What was not checked, by name; the tail is counted."""
    lines = [
        f"not checked: {plain(layer.name)} {list(layer.shape)}"
        + (f" at {plain(layer.node)}" if layer.node else "")
        + f": {plain(layer.note)}"
        for layer in layers[:_MOST_UNCHECKED]
    ]
    if len(layers) > _MOST_UNCHECKED:
        lines.append(f"not checked: {len(layers) - _MOST_UNCHECKED} more (--json lists them)")
    return lines


def summary_line(document: CheckResult) -> str:
    """Verdict, how much conforms, how much is eligible, and why it failed."""
    totals = document.totals
    conforming = totals.verdicts.get("conforms", 0)
    patterns = Counter(layer.pattern for layer in document.layers if layer.verdict == "conforms")
    kinds = ", ".join(pattern for pattern, _ in patterns.most_common()) or document.pattern
    line = f"{document.verdict.upper()} {plain(document.source)}: "
    line += f"{conforming} of {totals.prunable} prunable layers conform to {kinds}"
    weights = totals.weights + totals.weights_not_checked
    if totals.weights:
        whose = "all weights, those not checked among them" if totals.not_checked else "their weights"
        line += f" ({100 * totals.weights_in_conforming / weights:.1f} % of {whose})"
    if totals.not_checked:
        line += f"; {totals.not_checked} not checked"
    line += f"; {totals.eligible} eligible in TensorRT"
    return "; ".join((line, *map(plain, document.problems)))


def plain(text: str) -> str:
    """Make control characters visible, so that a tensor's name cannot steer the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def first_violation_words(layer: LayerVerdict) -> str:
    """The first broken group as an index expression with its values; empty where there is none."""
    if layer.first_violation is None or layer.axis is None:
        return ""
    index: list[str] = [str(position) for position in layer.first_violation.index]
    start = layer.first_violation.index[layer.axis]
    values = layer.first_violation.values
    index[layer.axis] = f"{start}:{start + len(values)}"
    shown = ", ".join(f"{value:.4g}" for value in values[:8]) + (", ..." if len(values) > 8 else "")
    return f"first broken group [{', '.join(index)}] = ({shown})"
