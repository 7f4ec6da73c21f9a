"""An estimate for people: a row per layer, totals with their range, and what the figures do not say."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from nm2trt.pipelines.estimate import LayerEstimate, NetworkEstimate, Range

_LEAST_SHARE = 0.005
_WIDE = 110
_COLUMNS = ("layer", "work", "dense us", "range", "sparse us", "range", "gain", "bound by", "sparse kernel", "share")
_LEFT = ("layer", "work", "bound by", "sparse kernel")
_NARROW_DROPS = (1, 3, 5)
_LONGEST_NAME = 44


def print_estimate(
    console: Console, source: str, estimate: NetworkEstimate, *, assumed: str | None, show_all: bool
) -> None:
    """Print table, totals and caveats."""
    import click

    head = f"{plain(source)} on {estimate.gpu.name}, {estimate.precision}, {_inputs(estimate)}"
    head += f", pattern {assumed} assumed" if assumed else ", pattern counted in the weights"
    rows, hidden = _rows(estimate, show_all)
    if console.is_terminal:
        _print_rich(console, head, rows)
    else:
        click.echo(head + "\n")
        click.echo("\n".join(aligned([_COLUMNS, *rows], _LEFT)))
    for line in (*([hidden] if hidden else []), "", *summary_lines(estimate)):
        click.echo(line)


def _print_rich(console: Console, head: str, rows: list[tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = [i for i in range(len(_COLUMNS)) if console.width >= _WIDE or i not in _NARROW_DROPS]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(head), title_justify="left")
    for index in shown:
        side: Literal["left", "right"] = "left" if _COLUMNS[index] in _LEFT else "right"
        folds = _COLUMNS[index] in ("layer", "sparse kernel")
        table.add_column(_COLUMNS[index], justify=side, no_wrap=not folds, overflow="fold")
    for row in rows:
        cells = [Text(cell) for cell in row]
        cells[8].stylize("green" if row[8].startswith("likely") else "yellow" if row[8].startswith("open") else "dim")
        table.add_row(*(cells[index] for index in shown))
    console.print(table)


def aligned(rows: list[tuple[str, ...]], left: tuple[str, ...]) -> list[str]:
    """Columns as wide as their longest cell; those named in `left` start at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if name in left else cell.rjust(width)
            for name, cell, width in zip(rows[0], row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "─" * (sum(widths) + 2 * (len(widths) - 1)))
    return lines


def _rows(estimate: NetworkEstimate, show_all: bool) -> tuple[list[tuple[str, ...]], str]:
    total = sum(layer.dense.total_us for layer in estimate.layers)
    rows, hidden = [], []
    for layer in estimate.layers:
        share = layer.dense.total_us / total
        if share < _LEAST_SHARE and not show_all and layer.sparse is None:
            hidden.append(share)
            continue
        rows.append(_cells(layer, share))
    text = ""
    if hidden:
        text = (
            f"... and {len(hidden)} small layers without a sparse kernel, {100 * sum(hidden):.1f} % (--all shows them)"
        )
    return rows, text


def _cells(layer: LayerEstimate, share: float) -> tuple[str, ...]:
    sparse = layer.sparse_us
    return (
        layer_name(layer),
        _work(layer),
        f"{layer.dense_us.value:.1f}",
        _span(layer.dense_us),
        f"{sparse.value:.1f}" if sparse else "",
        _span(sparse) if sparse else "",
        f"{layer.gain:.2f}x" if sparse else "",
        layer.dense.bound,
        _verdict(layer),
        f"{100 * share:.1f} %",
    )


def _verdict(layer: LayerEstimate) -> str:
    if layer.sparse is None:
        return "" if not layer.geometry.weight or layer.against is None else f"no: {layer.against.summary()}"
    words = layer.expectation
    return f"{words}: {layer.why.summary()}" if layer.why and words != "likely" else words


def layer_name(layer: LayerEstimate) -> str:
    """The weight's name where it tells something, else the node's; the middle is cut out of long ones."""
    shape = layer.geometry
    name = plain(shape.torch_name or shape.weight.removesuffix(".weight") or shape.name)
    if len(name) > _LONGEST_NAME:
        half = (_LONGEST_NAME - 3) // 2
        name = f"{name[:half]}...{name[-half:]}"
    return name if shape.weight else f"{name} ({shape.op_types[0]}{'...' if len(shape.op_types) > 1 else ''})"


def _work(layer: LayerEstimate) -> str:
    shape = layer.geometry
    if shape.kind == "memory":
        return "memory only"
    groups = f" x {shape.groups}" if shape.groups > 1 else ""
    kernel = " " + "x".join(map(str, shape.kernel)) if shape.kernel else ""
    return f"{shape.kind}{kernel} {shape.m} x {shape.n} x {shape.k}{groups}"


def _span(value: Range) -> str:
    return f"{value.low:.1f}-{value.high:.1f}"


def summary_lines(estimate: NetworkEstimate) -> list[str]:
    """Totals with their range, how many sparse kernels, and the caveats."""
    eligible = sum(layer.sparse is not None for layer in estimate.layers)
    weighted = sum(bool(layer.geometry.weight) for layer in estimate.layers)
    words = Counter(layer.expectation for layer in estimate.layers if layer.sparse)
    speedup = estimate.speedup
    profiling = f"(the layers' sum less {estimate.profile_us:.1f} us each that only profiling costs)"
    kernels = f"{weighted} layers with weights, {eligible} eligible; a sparse kernel is likely for {words['likely']}"
    lines = [
        f"end to end   dense {_ms(estimate.dense_ms)}, sparse {_ms(estimate.sparse_ms)} {profiling}",
        f"speed-up     {speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}] from sparse kernels",
    ]
    if eligible and estimate.clock_gain > 1:
        seen = "was seen on this board in layers whose kernels were the same: clocks and power, not sparsity"
        lines.append(f"beside it    up to {estimate.clock_gain:.3f}x more {seen}")
    lines.append(f"kernels      {kernels}, open for {words['open']}, unlikely for {words['unlikely']}")
    if not eligible:
        lines.append(_why_none(estimate))
    lines += [f"note         {note}" for note in estimate.notes]
    caveat = (
        "estimate, nothing was measured; which kernel runs and what it gains only a build and `nm2trt profile` tell"
    )
    if estimate.outside:
        lines.append(f"outside the data: {', '.join(estimate.outside)}; its ranges are wider")
    return [*lines, caveat]


def _why_none(estimate: NetworkEstimate) -> str:
    against = [layer.against for layer in estimate.layers if layer.geometry.weight and layer.against is not None]
    reasons = Counter(reason.summary() for reason in against)
    if not reasons:
        return "why none     no layer has weights"
    said = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    hint = (
        "; --assume 2:4 asks what pruning would bring" if any(reason.code == "not-legal" for reason in against) else ""
    )
    return f"why none     {said}{hint}"


def _ms(value: Range) -> str:
    return f"{value.value:.3f} ms [{value.low:.3f}, {value.high:.3f}]"


def _inputs(estimate: NetworkEstimate) -> str:
    return ", ".join(f"{plain(name)} {'x'.join(map(str, shape))}" for name, shape in estimate.inputs.items())


def plain(text: str) -> str:
    """Make control characters visible, so that a name from a file cannot steer the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
