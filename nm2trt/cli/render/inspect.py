"""Engines and their layers on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nm2trt.cli.common import stdout_console

if TYPE_CHECKING:
    from rich.table import Table

    from nm2trt.pipelines.inspect import InspectedEngine, LayerEvidence


def print_engine(engine: InspectedEngine, *, all_layers: bool) -> None:
    """Print one engine: its layers, its totals, what the log counts."""
    from rich.markup import escape

    console = stdout_console()
    about = ", ".join(filter(None, (engine.builder, " ".join(engine.flags))))
    console.print(f"[bold]{escape(engine.name)}[/]{escape(f' ({about})' if about else '')}", soft_wrap=True)
    if engine.error is not None:
        console.print(f"no engine: {escape(engine.error)}", soft_wrap=True)
        return
    rows = [layer for layer in engine.layers if all_layers or layer.has_weights]
    if rows:
        console.print(_layer_table(rows))
    console.print(_counts_line(engine), soft_wrap=True)
    if engine.log_eligible is not None:
        chosen = "not said" if engine.log_chosen is None else engine.log_chosen
        bound = "" if engine.log_is_exact else "at least "
        console.print(f"the log: {bound}{engine.log_eligible} found eligible, {chosen} chosen", soft_wrap=True)
    for note in engine.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)


def _counts_line(engine: InspectedEngine) -> str:
    totals = engine.totals
    if not totals.layers:
        unlisted = "no file lists the engine's layers"
        return unlisted if engine.log_eligible is not None else f"{unlisted}, so nothing shows which kernels run"
    unknown = f" ({totals.weights_unknown} do not show whether they have any)" if totals.weights_unknown else ""
    unsure = f", {totals.eligible_unknown} not known" if totals.eligible_unknown else ""
    return (
        f"{totals.layers} layers, {totals.with_weights} with weights{unknown}: {totals.eligible} eligible{unsure}; "
        f"{totals.sparse} run a sparse kernel, {totals.dense} a dense one, {totals.hidden} do not show it"
    )


def _layer_table(layers: list[LayerEvidence]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("layer", overflow="fold", ratio=4)
    for name in ("eligible", "kernel"):
        table.add_column(name, no_wrap=True)
    table.add_column("the kernel's name, or what shows it", overflow="fold", ratio=6)
    for layer in layers:
        table.add_row(*_cells(layer))
    return table


def _cells(layer: LayerEvidence) -> tuple[str, ...]:
    from rich.markup import escape

    from nm2trt.pipelines.inspect import is_kernel_named

    name = escape(", ".join(layer.torch_names) or layer.name)
    if layer.weighted is False:
        return name, "", "", escape(layer.why)
    if layer.weighted is None:
        return name, "not seen", "not seen", "nothing shows whether it has weights"
    return (
        name,
        {True: "yes", False: "no", None: "not seen"}[layer.eligible],
        {True: "[green]sparse[/]", False: "dense", None: "[yellow]not seen[/]"}[layer.chosen],
        escape(str(layer.kernel) if is_kernel_named(layer) else layer.why_chosen or layer.why),
    )
