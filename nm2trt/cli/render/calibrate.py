"""A calibration for people: what it cost, what became of every layer, what was proved."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from nm2trt.artifacts.calibration import Agreement, CalibrationDocument, LayerRecord, OutputAgreement, document_path
from nm2trt.cli.common import stdout_console

_MOST_ROWS = 40
_MOST_RANKED = 10


def print_calibration(document: CalibrationDocument, output: Path) -> None:
    """Print layers, agreement, pattern and compile check."""
    console = stdout_console()
    console.print(layer_table(document))
    for line in summary_lines(document):
        console.print(escape(line), soft_wrap=True)
    for note in document.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)
    console.print(f"wrote {escape(str(output))} and {document_path(output).name}", soft_wrap=True)
    console.print(f"verdict: [bold {'green' if document.verdict == 'pass' else 'red'}]{document.verdict}[/]")


def layer_table(document: CalibrationDocument) -> Table:
    """One row per layer; those that are not INT8 from end to end come first, and a long list is cut."""
    order = sorted(document.layers, key=lambda layer: (layer.end_to_end, layer.int8))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", "op", "shape", "computes in", "output", "N:M before", "after"):
        table.add_column(column, overflow="fold" if column == "layer" else "ellipsis", no_wrap=column != "layer")
    for layer in order[:_MOST_ROWS]:
        table.add_row(*(escape(cell) for cell in _cells(layer)))
    if len(order) > _MOST_ROWS:
        table.add_row(f"... and {len(order) - _MOST_ROWS} more, INT8 from end to end or listed in the JSON document")
    return table


def summary_lines(document: CalibrationDocument) -> list[str]:
    """The findings, a line each."""
    layers = document.layers
    int8 = [layer for layer in layers if layer.int8]
    sparse = [layer for layer in layers if layer.verdict_before == "conforms"]
    kept = [layer for layer in sparse if layer.verdict_after == "conforms"]
    whole = [layer for layer in sparse if layer.end_to_end]
    whole_count = sum(layer.end_to_end for layer in layers)
    count = len(document.tensors)
    how = f"{document.method}, placement {document.placement}, {document.samples} samples"
    lines = [f"INT8: {len(int8)} of {len(layers)} layers, {whole_count} from end to end; {count} tensors, {how}"]
    lines += [
        f"  floating point: {layer.name}: {layer.why_not}" for layer in layers if not layer.int8 and layer.why_not
    ]
    if sparse:
        lines.append(
            f"pattern: {len(kept)} of {len(sparse)} sparse layers still hold it; {len(whole)} of them are INT8 from "
            "end to end" + ("" if len(whole) == len(sparse) else "; --placement sparse adds what the others lack")
        )
    else:
        lines.append("pattern: no layer holds one; nothing was there to lose")
    if document.agreement is not None:
        lines += agreement_lines(document.agreement)
    lines += _sensitivity_lines(document)
    lines.append(_compile_line(document))
    return lines


def agreement_lines(found: Agreement) -> list[str]:
    """The score before and after, and how far the outputs lie apart."""
    lines = []
    if found.score_before is not None and found.score_after is not None:
        lines.append(
            f"{found.score_name}: {found.score_before:.2%} before, {found.score_after:.2%} after "
            f"({found.score_after * 100 - found.score_before * 100:+.2f} points) on {found.samples} held-out samples"
        )
    agree = "" if found.argmax_agreement is None else f", argmax agrees on {found.argmax_agreement:.2%}"
    lines.append(
        f"outputs: cosine {found.cosine:.5f}, SQNR {found.sqnr_db:.1f} dB{agree} ({found.samples} held-out samples, "
        "against the model as given)"
    )
    if len(found.outputs) > 1:
        lines += [f"  {_output(one)}" for one in found.outputs]
    return lines


def _output(one: OutputAgreement) -> str:
    parts = [
        f"cosine {one.cosine:.5f}" if one.cosine is not None else "",
        f"SQNR {one.sqnr_db:.1f} dB" if one.sqnr_db is not None else "",
        f"{one.equal_share:.2%} of the elements equal" if one.equal_share is not None else "",
        f"{one.nan_count} NaN and {one.infinity_count} infinite elements, as given"
        if one.nan_count or one.infinity_count
        else "",
    ]
    return f"{one.name}: {', '.join(filter(None, parts)) or 'empty, nothing compared'}"


def _sensitivity_lines(document: CalibrationDocument) -> list[str]:
    if not document.sensitivity:
        return []
    lines = ["most sensitive layers (each quantized alone, calibration samples):"]
    for entry in document.sensitivity[:_MOST_RANKED]:
        drop = "" if entry.score_drop_points is None else f", score {0 - entry.score_drop_points:+.2f} points"
        lines.append(f"  {entry.sqnr_db:6.1f} dB  {entry.layer}{drop}")
    return lines


def _compile_line(document: CalibrationDocument) -> str:
    found = document.compiled
    if found is None:
        return "compile check: not done (no builder, or an input whose free sizes no sample tells)"
    if found.error is not None:
        return f"compile check: {found.builder} {found.version} fails for SM{found.sm}: {found.error}"
    adds = (
        f", {found.residual_adds_fused} of {found.residual_adds} residual additions fused with their quantization"
        if found.residual_adds
        else ""
    )
    return (
        f"compile check: {found.builder} {found.version} builds it for SM{found.sm} in {found.seconds:.1f} s; "
        f"{found.int8_layers} of {found.layers} layers of its dump read INT8 data and weights{adds} ({found.note})"
    )


def _cells(layer: LayerRecord) -> tuple[str, ...]:
    held = layer.pattern if layer.verdict_before == "conforms" else layer.verdict_before
    after = layer.verdict_after if layer.verdict_before == "conforms" else ""
    return (
        layer.name,
        layer.op,
        "x".join(map(str, layer.shape)),
        "INT8" if layer.int8 else "float",
        "INT8" if layer.output_int8 else "float",
        held,
        after,
    )
