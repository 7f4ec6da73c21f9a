"""`nm2trt inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nm2trt.cli.common import stdout_console
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from nm2trt.artifacts import LayerEvidence
    from nm2trt.evidence.evidence_schema import InspectDocument, InspectedEngine

_FILE = click.Path(path_type=Path)


@click.command(name="inspect")
@click.argument("build", type=_FILE, metavar="[BUILD | FILE]", required=False)
@click.option(
    "--layers", type=_FILE, metavar="F.json", help="Engine inspector's or trtexec --exportLayerInfo's output."
)
@click.option("--log", type=_FILE, metavar="F.log", help="Build log of TensorRT, trtexec or polygraphy.")
@click.option("--onnx", type=_FILE, metavar="M.onnx", help="The network, to name nodes and weights and judge patterns.")
@click.option(
    "--variant", metavar="VARIANT", help="Table of this engine only: dense, control, sparse. Default: sparse."
)
@click.option("--all-layers", is_flag=True, help="Also list layers that have no weights.")
@click.option(
    "--require", "least", type=click.IntRange(min=0), metavar="N", help="Exit 1 unless N layers run a sparse kernel."
)
@json_option
def command(
    build: Path | None,
    layers: Path | None,
    log: Path | None,
    onnx: Path | None,
    variant: str | None,
    all_layers: bool,
    least: int | None,
    as_json: bool,
) -> int:
    """Show of each engine layer whether it may be sparse, whether it is, and which kernel runs.

    Takes a folder of `nm2trt export`, or the output of others' builds: one FILE, or --layers, --log or both. What a
    file is, its content decides. No plan is loaded and no GPU is needed. Sparse is what the kernel's name or the
    builder's (Sparsity) log lines show; the inspector's HasSparseWeights tells of the weights alone and proves nothing.

    \b
    Exit 1: with --require N, fewer layers of the (sparse) engine run a sparse kernel.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK, ConfigError

    if build is not None and build.is_file():
        build, layers, log = _placed(build, layers, log)
    given = [option for option, value in (("--layers", layers), ("--log", log), ("--onnx", onnx)) if value is not None]
    if build is not None and given:
        raise ConfigError(f"BUILD brings its own files; leave out {', '.join(given)}", where="inspect")
    if build is None and layers is None and log is None:
        raise ConfigError(
            "nothing to inspect", where="inspect", hint="name a BUILD, or --layers F.json, or --log F.log"
        )
    if build is None and variant is not None:
        raise ConfigError("single files have no variants; leave it out", where="--variant")
    document = inspect_build(build) if build is not None else inspect_files(layers, log, onnx)
    shown = _shown(document, variant)
    if as_json:
        print_json(document.to_json())
    else:
        for engine in shown:
            _print_engine(engine, all_layers=all_layers)
    if least is None:
        return EXIT_OK
    short = [engine for engine in shown if engine.sparse_at_least < least]
    for engine in short:
        found = f"{engine.sparse_at_least} layers run a sparse kernel, and --require asks for {least}"
        click.echo(f"nm2trt: error: {engine.name}: {found}", err=True)
    return EXIT_BAD_VERDICT if short else EXIT_OK


def _placed(file: Path, layers: Path | None, log: Path | None) -> tuple[None, Path | None, Path | None]:
    """Take a file that was named without an option for what it is."""
    from nm2trt.errors import ConfigError
    from nm2trt.evidence.recognize import FileKind, recognize

    content = recognize(file)
    if content.kind not in (FileKind.LAYERS, FileKind.LOG):
        raise content.refuse("a layer file or a log", "nm2trt profile reads times; nm2trt export writes build folders")
    option, taken = ("--layers", layers) if content.kind is FileKind.LAYERS else ("--log", log)
    if taken is not None:
        raise ConfigError(f"{file} is {content.words}, and {option} names another", where="inspect")
    return (None, file, log) if content.kind is FileKind.LAYERS else (None, layers, file)


def inspect_build(folder: Path) -> InspectDocument:
    """Read the logs and inspector files of a build folder again, each checked against build.json.

    Raises:
        InputError: No build folder, or a file was changed.
    """
    from nm2trt.artifacts import BuildDocument, sha256_of
    from nm2trt.engine import read_evidence
    from nm2trt.errors import InputError
    from nm2trt.evidence import read_onnx_nodes
    from nm2trt.evidence.evidence_schema import InspectDocument, InspectedEngine, InspectTotals

    build = BuildDocument.read(folder, hint="name a folder that `nm2trt export` wrote")
    for name, record in build.files.items():
        path = folder / name
        if name.endswith((".log", ".layers.json")) and path.is_file() and sha256_of(path) != record.sha256:
            raise InputError("is not as build.json records it: it was changed", where=path, hint="export it again")
    legal = {
        node: str(layer.get("tensorrt", ""))
        for layer in build.pattern.get("layers", [])
        for node in str(layer.get("node", "")).split(", ")
        if node
    }
    engines = []
    for engine in build.engines:
        name = f"{engine.variant} {engine.rebuild + 1}" if engine.rebuild else engine.variant
        builder = f"{engine.builder} {engine.builder_version}, SM{engine.sm}"
        if engine.file is None:
            none = InspectTotals(layers=0, with_weights=0, eligible=0, sparse=0, dense=0, hidden=0)
            failed = InspectedEngine(
                name=name, builder=builder, flags=tuple(engine.flags), totals=none, log_eligible=None, log_chosen=None,
                layers=(), notes=(), error=engine.error or "it was not built",
            )  # fmt: skip
            engines.append(failed)
            continue
        onnx = folder / Path(engine.onnx).name
        graph = read_onnx_nodes(onnx) if onnx.is_file() else None
        found = read_evidence(engine, folder, graph, legal)
        engines.append(InspectedEngine.of(found, name=name, builder=builder, flags=tuple(engine.flags)))
    return InspectDocument(kind="build", source=folder.resolve().name, engines=tuple(engines))


def inspect_files(layers: Path | None, log: Path | None, onnx: Path | None) -> InspectDocument:
    """Read what others' tools wrote.

    Raises:
        InputError: A file cannot be read.
    """
    from nm2trt.engine import legal_nodes
    from nm2trt.evidence import engine_evidence, read_inspection, read_log, read_onnx_nodes
    from nm2trt.evidence.evidence_schema import InspectDocument, InspectedEngine
    from nm2trt.verify import verify_path

    inspection = read_inspection(layers) if layers is not None else None
    build_log = read_log(log) if log is not None else None
    graph = read_onnx_nodes(onnx) if onnx is not None else None
    legal = legal_nodes(verify_path(onnx)) if onnx is not None else None
    found = engine_evidence(inspection, build_log, graph, legal=legal)
    names = [path.name for path in (layers, log) if path is not None]
    return InspectDocument(
        kind="files", source=" ".join(names), engines=(InspectedEngine.of(found, name=" and ".join(names)),)
    )


def _shown(document: InspectDocument, variant: str | None) -> list[InspectedEngine]:
    from nm2trt.errors import ConfigError, InputError

    if document.kind == "files":
        return list(document.engines)
    if not document.engines:
        raise InputError("holds no engines", where=document.source, hint="export it with --builder")
    wanted = variant or "sparse"
    found = [engine for engine in document.engines if engine.name.split()[0] == wanted]
    if not found:
        listed = ", ".join(dict.fromkeys(engine.name.split()[0] for engine in document.engines))
        raise ConfigError(
            f"no such engine in {document.source}: {wanted}", where="--variant", hint=f"choose from {listed}"
        )
    return found


def _print_engine(engine: InspectedEngine, *, all_layers: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = stdout_console()
    about = ", ".join(filter(None, (engine.builder, " ".join(engine.flags))))
    console.print(f"[bold]{escape(engine.name)}[/]{escape(f' ({about})' if about else '')}", soft_wrap=True)
    if engine.error is not None:
        console.print(f"no engine: {escape(engine.error)}", soft_wrap=True)
        return
    rows = [layer for layer in engine.layers if all_layers or layer.has_weights]
    if rows:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("layer", overflow="fold", ratio=4)
        for name in ("eligible", "kernel"):
            table.add_column(name, no_wrap=True)
        table.add_column("the kernel's name, or what shows it", overflow="fold", ratio=6)
        for layer in rows:
            table.add_row(*_cells(layer))
        console.print(table)
    totals = engine.totals
    unknown = f" ({totals.weights_unknown} do not show whether they have any)" if totals.weights_unknown else ""
    unsure = f", {totals.eligible_unknown} not known" if totals.eligible_unknown else ""
    counts = "no file lists the engine's layers, so nothing shows which kernels run"
    if totals.layers:
        counts = (
            f"{totals.layers} layers, {totals.with_weights} with weights{unknown}: {totals.eligible} eligible{unsure}; "
            f"{totals.sparse} run a sparse kernel, {totals.dense} a dense one, {totals.hidden} do not show it"
        )
    elif engine.log_eligible is not None:
        counts = "no file lists the engine's layers"
    console.print(counts, soft_wrap=True)
    if engine.log_eligible is not None:
        chosen = "not said" if engine.log_chosen is None else engine.log_chosen
        bound = "" if engine.log_is_exact else "at least "
        console.print(f"the log: {bound}{engine.log_eligible} found eligible, {chosen} chosen", soft_wrap=True)
    for note in engine.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)


def _cells(layer: LayerEvidence) -> tuple[str, ...]:
    from rich.markup import escape

    from nm2trt.evidence import tactic_verdict

    name = escape(", ".join(layer.torch_names) or layer.name)
    if layer.weighted is False:
        return name, "", "", escape(layer.why)
    if layer.weighted is None:
        return name, "not seen", "not seen", "nothing shows whether it has weights"
    named = tactic_verdict(layer.kernel) != "unknown"
    return (
        name,
        {True: "yes", False: "no", None: "not seen"}[layer.eligible],
        {True: "[green]sparse[/]", False: "dense", None: "[yellow]not seen[/]"}[layer.chosen],
        escape(str(layer.kernel) if named else layer.why.rpartition("; ")[2]),
    )
