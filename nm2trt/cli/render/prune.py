"""A prune document for people: magnitude kept per layer, what stayed dense and why, one line that sums it up."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from nm2trt.cli.render.verify import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nm2trt.pipelines.prune import PrunedLayer, PruneDocument

_LOG_WIDTH = 120
_MOST_UNKNOWN = 8


def print_document(console: Console, document: PruneDocument) -> None:
    """Print table, what stayed dense, the permutation's findings and the summary line."""
    from rich.text import Text

    if not console.is_terminal:
        # A log or a pipe has no width of its own; 80 columns would fold every name.
        console.width = max(console.width, _LOG_WIDTH)
    console.print(_table(document))
    for line in (*_dense_lines(document.layers), *_permutation_lines(document)):
        console.print(Text("  " + line), soft_wrap=True)
    for note in document.notes:
        console.print(Text(f"  note: {plain(note)}"), soft_wrap=True)
    console.print(_summary(document), soft_wrap=True)


def _table(document: PruneDocument) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    permuted = document.permutation is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="magnitude kept, of sum |w|", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("shape", no_wrap=True)
    table.add_column("N:M", no_wrap=True)
    table.add_column("N:M kept", justify="right", no_wrap=True)
    if permuted:
        table.add_column("permuted", justify="right", no_wrap=True)
    table.add_column("unstructured", justify="right", no_wrap=True)
    for layer in document.layers:
        if layer.pattern is None:
            continue
        table.add_row(
            Text(plain(layer.name)),
            "x".join(map(str, layer.shape)),
            layer.pattern,
            _percent(layer.kept_unpermuted),
            *((_percent(layer.kept),) if permuted else ()),
            _percent(layer.kept_unstructured),
        )
    totals = document.totals
    table.add_section()
    table.add_row(
        "total",
        f"{totals.weights:,}",
        "",
        _percent(totals.kept_unpermuted),
        *((_percent(totals.kept),) if permuted else ()),
        _percent(totals.kept_unstructured),
    )
    return table


def _dense_lines(layers: list[PrunedLayer]) -> list[str]:
    """Products that stayed dense by name; all other tensors counted by reason."""
    dense = [layer for layer in layers if layer.pattern is None]
    unknown = [layer for layer in dense if layer.not_checked]
    dense = [layer for layer in dense if not layer.not_checked]
    lines = [f"dense: {plain(layer.name)}: {plain(layer.reason)}" for layer in dense if layer.axis is not None]
    lines += [
        f"left as it is: {plain(layer.name)} {list(layer.shape)}: {plain(layer.reason)}"
        for layer in unknown[:_MOST_UNKNOWN]
    ]
    if unknown:
        tensors = "1 tensor" if len(unknown) == 1 else f"{len(unknown)} tensors"
        lines.append(f"{tensors} of two and more dimensions left as they are, since they may be no weights")
    others = Counter(layer.why.summary() if layer.why else layer.reason for layer in dense if layer.axis is None)
    if others:
        lines.append("not prunable: " + ", ".join(f"{count} {plain(reason)}" for reason, count in others.most_common()))
    return lines


def _permutation_lines(document: PruneDocument) -> list[str]:
    found = document.permutation
    if found is None:
        return []
    lines = []
    for group in found.groups:
        if not group.permuted:
            words = ", ".join(plain(name) for name in group.weights[:3]) + (", ..." if len(group.weights) > 3 else "")
            lines.append(f"not permuted: {group.channels} input channels of {words}: {plain(group.reason)}")
    moved = [group for group in found.groups if group.permuted]
    tensors = sum(group.tensors for group in moved)
    difference = (
        "" if found.largest_difference is None else f" (largest relative difference {found.largest_difference:.1e})"
    )
    checked = {
        "agree": f"outputs agree with the original's in ONNX Runtime{difference}",
        "differ": f"outputs differ from the original's in ONNX Runtime{difference}",
        "unchecked": f"outputs not checked: {found.outputs_note}",
    }[found.outputs]
    gap = document.totals.kept_unstructured - document.totals.kept_unpermuted
    won = (
        f", {100 * (document.totals.kept - document.totals.kept_unpermuted) / gap:.1f} % of the gap to unstructured"
        if gap > 0
        else ""
    )
    return [*lines, f"permuted: {len(moved)} groups of channels, {tensors} tensors{won}; {checked}"]


def _summary(document: PruneDocument) -> Text:
    from rich.text import Text

    passed = document.verdict == "pass"
    totals = document.totals
    line = Text()
    line.append("PASS " if passed else "FAIL ", style="bold green" if passed else "bold red")
    if not passed:
        line.append(f"{plain(document.output)} was not written: " + "; ".join(map(plain, document.problems)))
        return line
    kinds = Counter(layer.pattern for layer in document.layers if layer.pattern is not None)
    line.append(
        f"{plain(document.output)}: {totals.tensors} tensors pruned to {', '.join(map(str, kinds))} and verified, "
        f"{100 * totals.kept:.1f} % of their magnitude kept; accuracy is not measured here"
    )
    return line


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
