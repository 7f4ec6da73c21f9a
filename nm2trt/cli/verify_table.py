"""A verify document for people: worst layers first, what broke, one line that sums it up."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nm2trt.verify import LayerVerdict, VerifyDocument

_WORST_FIRST = ("violates", "wrong-axis", "zero-point", "dense", "indivisible", "conforms", "not-prunable")
_ON_PURPOSE = "left dense on purpose"
_LOG_WIDTH = 120
_WIDE = 105
_STYLES = {
    "violates": "bold red",
    "wrong-axis": "bold red",
    "zero-point": "bold red",
    "dense": "yellow",
    "indivisible": "yellow",
    "conforms": "green",
    "not-prunable": "dim",
}


def print_document(console: Console, document: VerifyDocument) -> None:
    """Print table, details of what broke, notes and the summary line."""
    from rich.text import Text

    if not console.is_terminal:
        # A log or a pipe has no width of its own; 80 columns would fold every name.
        console.width = max(console.width, _LOG_WIDTH)
    if any(layer.verdict != "not-prunable" for layer in document.layers):
        console.print(verdict_table(document, narrow=console.width < _WIDE))
    for line in detail_lines(document):
        console.print(Text("  " + line), soft_wrap=True)
    console.print(summary_line(document), soft_wrap=True)


def verdict_table(document: VerifyDocument, *, narrow: bool = False) -> Table:
    """One row per layer that could be sparse, worst first; `narrow` leaves shape and density out."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=plain(document.source), title_justify="left")
    table.add_column("layer", overflow="fold")
    if not narrow:
        table.add_column("shape", no_wrap=True)
    table.add_column("N:M", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    if not narrow:
        table.add_column("density", justify="right", no_wrap=True)
    table.add_column("broken groups", justify="right", no_wrap=True)
    table.add_column("TensorRT", overflow="fold")
    for layer in worst_first(document.layers):
        if layer.verdict == "not-prunable":
            continue
        density = "" if layer.density is None else f"{layer.density:.3f}"
        table.add_row(
            Text(plain(layer.name)),
            *(() if narrow else ("x".join(map(str, layer.shape)),)),
            layer.pattern,
            Text(layer.verdict, style=_STYLES[layer.verdict]),
            *(() if narrow else (density,)),
            f"{layer.violations:,} of {layer.groups:,}" if layer.groups else "",
            Text(_short(layer.tensorrt)),
        )
    return table


def worst_first(layers: list[LayerVerdict]) -> list[LayerVerdict]:
    """Sort by verdict; among those that break the pattern, by the share of broken groups."""

    def rank(layer: LayerVerdict) -> tuple[int, float]:
        broken = layer.violations / layer.groups if layer.groups else 0.0
        return _WORST_FIRST.index(layer.verdict), -broken

    return sorted(layers, key=rank)


def detail_lines(document: VerifyDocument) -> list[str]:
    """Where the pattern breaks, what the short words in the table mean, and the document's notes."""
    lines = []
    for layer in worst_first(document.layers):
        bad = layer.verdict in ("violates", "wrong-axis", "zero-point")
        if not bad and (
            not layer.note or layer.note == _ON_PURPOSE or layer.verdict in ("indivisible", "not-prunable")
        ):
            continue
        parts = [part for part in (layer.note, first_violation_words(layer) if bad else "") if part]
        lines.append(f"{plain(layer.name)}: {'; '.join(parts)}")
    reasons = Counter(
        layer.tensorrt for layer in document.layers if ": " in layer.tensorrt and layer.verdict == "conforms"
    )
    lines += [f"TensorRT, {count} conforming: {reason}" for reason, count in reasons.most_common()]
    unprunable = Counter(layer.note for layer in document.layers if layer.verdict == "not-prunable")
    if unprunable:
        words = ", ".join(f"{count} {_short(reason)}" for reason, count in unprunable.most_common())
        lines.append(f"not prunable: {words}")
    return lines + [f"note: {note}" for note in document.notes]


def summary_line(document: VerifyDocument) -> Text:
    """Verdict, how much conforms, how much is eligible, and why it failed."""
    from rich.text import Text

    totals = document.totals
    conforming = totals.verdicts.get("conforms", 0)
    passed = document.verdict == "pass"
    line = Text()
    line.append("PASS " if passed else "FAIL ", style="bold green" if passed else "bold red")
    patterns = Counter(layer.pattern for layer in document.layers if layer.verdict == "conforms")
    kinds = ", ".join(pattern for pattern, _ in patterns.most_common()) or document.pattern
    line.append(f"{plain(document.source)}: {conforming} of {totals.prunable} prunable layers conform to {kinds}")
    if totals.weights:
        line.append(f" ({100 * totals.weights_in_conforming / totals.weights:.1f} % of their weights)")
    line.append(f"; {totals.eligible} eligible in TensorRT")
    if document.problems:
        line.append("; " + "; ".join(plain(problem) for problem in document.problems))
    return line


def plain(text: str) -> str:
    """Make control characters visible, so that a tensor's name cannot steer the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _short(reason: str) -> str:
    return reason.partition(": ")[0]


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
