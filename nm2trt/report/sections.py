"""Sections that follow from a document alone, for every report that shows one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nm2trt.artifacts import BuildDocument, Facts, HostRecord
from nm2trt.report.latency_section import latency_section as latency_section
from nm2trt.report.page import (
    Badge,
    Block,
    Callout,
    Cell,
    Commands,
    FactList,
    Properties,
    Prose,
    Section,
    Table,
    Tone,
)

_VERDICT_TONES: dict[str, Tone] = {
    "conforms": "good",
    "pass": "good",
    "violates": "bad",
    "wrong-axis": "bad",
    "zero-point": "bad",
    "fail": "bad",
}


def facts_section(facts: Facts, *, title: str = "Four facts, kept apart") -> Section:
    """Legal, eligible, chosen, faster: each with its state and evidence."""
    lead = (
        "A legal pattern does not make a layer eligible, an eligible layer need not get a sparse kernel, "
        "and a sparse kernel need not be faster."
    )
    return Section(title, (FactList(facts),), lead=lead)


def environment_section(host: HostRecord, *, title: str = "Environment") -> Section:
    """Machine and versions, folded."""
    items = [
        ("Processor", host.processor),
        ("CPUs available", str(host.cpu_count)),
        ("Platform", host.platform),
        ("Python", host.python),
        *sorted(host.packages.items()),
    ]
    return Section(title, (Properties(tuple(items)),), folded=True)


def commands_section(lines: tuple[str, ...], *, title: str = "Repeat it") -> Section:
    """The lines that make the same again."""
    return Section(title, (Commands(lines),))


def layers_section(verdict: Mapping[str, Any], *, title: str = "Layers") -> Section:
    """Verdict per layer, from the JSON of `nm2trt verify` (also `BuildDocument.pattern`)."""
    layers: list[Mapping[str, Any]] = list(verdict.get("layers", ()))
    totals: Mapping[str, Any] = verdict.get("totals", {})
    conform = sum(layer.get("verdict") == "conforms" for layer in layers)
    prunable = totals.get(
        "prunable", sum(layer.get("verdict") not in ("not-prunable", "not-checked") for layer in layers)
    )
    eligible = totals.get("eligible", sum(layer.get("tensorrt") == "eligible" for layer in layers))
    where = verdict.get("source") or "the file"
    lead = (
        f"{conform} of {prunable} prunable weights hold their pattern, counted in {where}; "
        f"TensorRT may consider sparse kernels for {eligible}."
    )
    columns = ("layer", "verdict", "pattern", "density", "operator", "shape", "TensorRT")
    table = Table(columns, tuple(map(_layer_row, layers)), numeric=frozenset({3}), code=frozenset({0, 5}))
    problems = [Callout(str(problem), "bad") for problem in verdict.get("problems", ())]
    return Section(title, (*problems, table), lead=lead)


def _layer_row(layer: Mapping[str, Any]) -> tuple[Cell, ...]:
    state = str(layer.get("verdict", ""))
    density = layer.get("density")
    tensorrt = layer.get("tensorrt") or ""
    return (
        str(layer.get("name", "")),
        Badge(state, _VERDICT_TONES.get(state, "plain")),
        str(layer.get("pattern") or ""),
        "" if density is None else f"{100 * float(density):.1f} %",
        str(layer.get("op", "")),
        "x".join(map(str, layer.get("shape", ()))),
        str(tensorrt),
    )


def build_section(build: BuildDocument, *, title: str = "Export") -> Section:
    """The ONNX file's agreement with its reference, and what became of the engines."""
    blocks: list[Block] = []
    numerics = build.numerics
    if numerics is not None:
        bound = f"{numerics.max_rel_error:.2e} of the largest output (bound {numerics.tolerance:.0e})"
        absolute = f"absolute {numerics.max_abs_error:.2e} at {numerics.max_abs_error_at}"
        blocks.append(
            Properties(
                (
                    ("Reference", f"{numerics.reference}, {numerics.samples} samples of {numerics.inputs}"),
                    ("Largest error", f"{bound}; {absolute}"),
                    ("Same class", f"{100 * numerics.argmax_agreement:.2f} % of the samples"),
                    ("Numerics", "within the bound" if numerics.passed else "outside the bound"),
                )
            )
        )
    else:
        blocks.append(Prose("Outputs were not compared: the source has no reference to run.", quiet=True))
    if build.engines:
        blocks.append(_engine_table(build))
    blocks.append(Prose(build.engines_note, quiet=True))
    batch = build.batch
    sizes = f"batch {batch.min} to {batch.max}, tuned for {batch.opt}" if batch is not None else "fixed shapes"
    return Section(title, tuple(blocks), lead=f"{build.precision}, opset {build.opset}, {sizes}, by {build.exporter}.")


def _engine_table(build: BuildDocument) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for engine in build.engines:
        state = Badge("compiles", "good") if engine.file else Badge("no engine", "bad")
        size = f"{engine.size_bytes / 1e6:.2f} MB" if engine.size_bytes is not None else ""
        rows.append(
            (
                engine.variant,
                state,
                f"{engine.builder} {engine.builder_version}",
                engine.sm,
                ", ".join(engine.flags) or "none",
                size,
                f"{engine.seconds:.1f} s",
                engine.error or "",
            )
        )
    columns: tuple[str, ...] = ("engine", "state", "builder", "for", "flags", "size", "took", "error")
    if not any(engine.error for engine in build.engines):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(columns, tuple(rows), numeric=frozenset({5, 6}))
