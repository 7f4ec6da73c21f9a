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
    console.print(_table(document) if document.calibrated is None else _error_table(document))
    for line in (*_dense_lines(document.layers), *_permutation_lines(document), *_data_lines(document)):
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


def _error_table(document: PruneDocument) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = "squared output error of each layer on the calibration samples, of the dense output's energy"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("shape", no_wrap=True)
    table.add_column("N:M", no_wrap=True)
    assert document.calibrated is not None
    method = document.calibrated.method
    for column in (method, *(("by magnitude",) if method != "magnitude" else ()), "of sum |w|"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in document.layers:
        if layer.output is None:
            continue
        table.add_row(
            Text(plain(layer.name) + (" (damped)" if layer.output.damped else "")),
            "x".join(map(str, layer.shape)),
            layer.pattern,
            _percent(layer.output.error),
            *((_percent(layer.output.magnitude_error),) if method != "magnitude" else ()),
            _percent(layer.kept),
        )
    return table


def _data_lines(document: PruneDocument) -> list[str]:
    found = document.calibrated
    if found is None:
        return []
    damping = f", damping {found.damping:g}" if found.method == "obs" else ""
    lines = [f"data: {plain(found.data)}; {found.method}{damping}, layer by layer on {found.samples} samples"]
    outputs = [layer.output for layer in document.layers if layer.output is not None]
    damped = sum(one.damped for one in outputs)
    if damped:
        layers = f"{damped} layer{'' if damped == 1 else 's'}"
        lines.append(
            f"damped: the Hessian of {layers} is singular (fewer samples than inputs, or inputs that depend on each "
            "other); more samples help"
        )
    lines += _norm_lines(document)
    if found.sensitivity:
        worst = ", ".join(f"{plain(one.layer)} ({one.sqnr_db:.1f} dB)" for one in found.sensitivity[:_MOST_UNKNOWN])
        lines.append(f"most sensitive layers, each pruned alone: {worst}")
    return [*lines, *_agreement_lines(document)]


def _norm_lines(document: PruneDocument) -> list[str]:
    norms = document.calibrated.norms if document.calibrated is not None else None
    if norms is None:
        return []
    if not norms.total:
        return [
            "batch norm: the graph holds no BatchNormalization (folded into the layers before), none to recalibrate"
        ]
    left = f"; {norms.shared} left, whose statistics others read or the graph computes" if norms.shared else ""
    return [f"batch norm: {norms.recalibrated} of {norms.total} recalibrated, those behind pruned layers{left}"]


def _agreement_lines(document: PruneDocument) -> list[str]:
    found = document.calibrated
    if found is None or found.agreement is None or found.relative_error is None:
        return []
    checked = found.agreement
    line = f"against the dense network on {checked.samples} held-out samples: relative error of the outputs "
    line += f"{_percent(found.relative_error)}, cosine {checked.cosine:.4f}"
    if checked.argmax_agreement is not None:
        line += f", same argmax {_percent(checked.argmax_agreement)}"
    if checked.score_before is None or checked.score_after is None:
        return [line]
    score = f"{checked.score_name}: dense {_percent(checked.score_before)}, pruned {_percent(checked.score_after)}"
    return [line, score]


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
        # With data, a mask that keeps less magnitude may keep more of the outputs.
        if gap > 0 and document.calibrated is None
        else ""
    )
    if found.scores != "magnitude" and found.kept_before is not None and found.kept_after is not None:
        won = f", {100 * found.kept_before:.2f} -> {100 * found.kept_after:.2f} % of the {found.scores} scores kept"
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
        + _result_words(document)
    )
    return line


def _result_words(document: PruneDocument) -> str:
    found = document.calibrated
    if found is None or found.agreement is None or found.relative_error is None:
        return f"{100 * document.totals.kept:.1f} % of their magnitude kept; accuracy is not measured here"
    before, after = found.agreement.score_before, found.agreement.score_after
    if before is None or after is None:
        return f"outputs differ by {_percent(found.relative_error)} from the dense network's"
    return f"{found.agreement.score_name} {_percent(before)} before, {_percent(after)} after"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
