"""Prints a build for people."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nm2trt.artifacts import BuildDocument, FactState, NumericsRecord
from nm2trt.artifacts.build import CalibrationRecord
from nm2trt.cli.common import stdout_console
from nm2trt.cli.render.calibrate import agreement_lines

_STYLES = {FactState.PROVED.value: "green", FactState.DISPROVED.value: "red", FactState.UNKNOWN.value: "yellow"}


def print_build(document: BuildDocument, output: Path) -> None:
    """Print what was written, the checks, the engines and the four facts."""
    console = stdout_console()
    names = ", ".join([*document.files, document.FILE])
    console.print(f"wrote {escape(str(output))}: {escape(names)}", soft_wrap=True)
    batch = document.batch
    sizes = "fixed shapes" if batch is None else f"batch {batch.min} to {batch.max}, tuned for {batch.opt}"
    console.print(
        f"onnx: {escape(document.precision)}, inputs and outputs {escape(document.io_dtype)}, opset {document.opset}, "
        f"{sizes}, {escape(document.exporter)}",
        soft_wrap=True,
    )
    if document.numerics is not None:
        _print_numerics(console, document.numerics)
    if document.calibration is not None:
        _print_calibration(console, document.calibration)
    _print_pattern(console, document)
    _print_engines(console, document)
    _print_facts(console, document)
    console.print(f"verdict: [bold]{document.verdict}[/]")


def _print_numerics(console: Console, numerics: NumericsRecord) -> None:
    word = "[green]pass[/]" if numerics.passed else "[red]fail[/]"
    console.print(
        f"numerics: {word}, largest error {numerics.max_abs_error:.3g} ({numerics.max_rel_error:.2e} of the largest "
        f"output, bound {numerics.tolerance:.0e}) at {escape(numerics.max_abs_error_at)}; argmax agrees on "
        f"{numerics.argmax_agreement:.2%}; {escape(numerics.inputs)}"
        + (f", batches {', '.join(map(str, numerics.batches))}" if numerics.batches else ""),
        soft_wrap=True,
    )
    for output in numerics.outputs if len(numerics.outputs) > 1 else ():
        agreement = "" if output.argmax_agreement is None else f", argmax agrees on {output.argmax_agreement:.2%}"
        error = (
            f"{output.mismatches} of {output.elements} elements differ"
            if output.mismatches is not None
            else f"{output.max_rel_error:.2e} of its largest value"
        )
        state = "" if output.reason == "agree" else f" [red]({output.reason})[/]"
        console.print(f"  {escape(output.name)}: {error}{agreement}{state}", soft_wrap=True)
    for note in numerics.notes:
        console.print(f"  note: {escape(note)}", soft_wrap=True)


def _print_calibration(console: Console, found: CalibrationRecord) -> None:
    console.print(
        f"INT8: {found.int8_layers} of {found.layers} layers, {escape(found.method)}, placement {found.placement}, "
        f"calibrated on {escape(found.data)}",
        soft_wrap=True,
    )
    if found.kept_float:
        console.print(f"  kept in floating point by --max-drop: {escape(', '.join(found.kept_float))}", soft_wrap=True)
    for line in agreement_lines(found.agreement) if found.agreement is not None else ():
        console.print(escape(line), soft_wrap=True)


def _print_pattern(console: Console, document: BuildDocument) -> None:
    pattern = document.pattern
    verdicts = ", ".join(f"{count} {name}" for name, count in pattern["totals"]["verdicts"].items())
    meant = document.source.pattern or "dense, nothing is meant to be sparse"
    console.print(f"pattern: {escape(meant)}; layers of model.onnx: {escape(verdicts)}", soft_wrap=True)


def _print_engines(console: Console, document: BuildDocument) -> None:
    if document.engines:
        table = Table("engine", "flags", "builder", "SM", "size", "built in", title="engines", title_justify="left")
        for engine in document.engines:
            size = "failed" if engine.size_bytes is None else f"{engine.size_bytes / 1e6:.2f} MB"
            table.add_row(
                engine.file or engine.variant,
                ", ".join(engine.flags),
                f"{engine.builder} {engine.builder_version}",
                engine.sm,
                size,
                f"{engine.seconds:.2f} s",
            )
        console.print(table)
        for engine in document.engines:
            if engine.note:
                console.print(f"note: {escape(engine.variant)} engine: {escape(engine.note)}", soft_wrap=True)
    console.print(f"builder: {escape(document.engines_note)}", soft_wrap=True)


def _print_facts(console: Console, document: BuildDocument) -> None:
    table = Table("fact", "state", "evidence", title="what is proved", title_justify="left")
    for name, state, evidence in document.facts.rows():
        table.add_row(name, f"[{_STYLES[state]}]{state}[/]", escape(evidence))
    console.print(table)
