"""`nm2trt refit`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import stderr_console
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from nm2trt.artifacts import BuildDocument, EngineRecord
    from nm2trt.engine import Refitter

MODEL = "model.onnx"


@click.command(name="refit")
@click.argument("build", type=click.Path(path_type=Path), metavar="BUILD")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CHECKPOINT")
@click.option(
    "--trust",
    is_flag=True,
    help="Load plans whose sha256 is not that of build.json, and import code that a file names: you made them.",
)
@json_option
def command(build: Path, checkpoint: Path, trust: bool, as_json: bool) -> int:
    """Put new weights into the engines of BUILD, without building them again.

    CHECKPOINT is what `nm2trt export` takes, or an ONNX file that was exported like BUILD's. It is exported as BUILD
    was and checked first: weights that break the pattern, or that belong to another network, are refused before an
    engine is touched. The control and sparse engines get the new weights, and BUILD is replaced as a whole.

    Needs TensorRT, its GPU, and engines of `nm2trt export --builder tensorrt --refittable`.

    \b
    Exit 1: the outputs of the new network differ from torch's by more than the tolerance.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK

    console = stderr_console()
    if console.is_terminal:
        with console.status("refitting"):
            document = refit_build(build, checkpoint, trust=trust)
    else:
        document = refit_build(build, checkpoint, trust=trust)
    if as_json:
        print_json(document.to_json())
    else:
        variants = ", ".join(engine.variant for engine in document.engines if engine.variant != "dense")
        click.echo(f"{build}: {variants} hold the weights of {checkpoint}; {document.facts.legal.evidence}")
        click.echo("no time was measured with them: run `nm2trt profile` again")
    return EXIT_OK if document.verdict == "pass" else EXIT_BAD_VERDICT


def refit_build(
    folder: Path, checkpoint: Path, *, trust: bool = False, refitter: Refitter | None = None, here: Here | None = None
) -> BuildDocument:
    """Give the engines of a build folder new weights.

    Args:
        folder: Build folder with refittable TensorRT engines.
        checkpoint: What `nm2trt export` takes, or an ONNX file.
        trust: Load plans that are not those of build.json.
        refitter: Puts weights into a plan; TensorRT by default.
        here: What will load the plans; this machine by default.

    Returns:
        The new build.json.

    Raises:
        ConfigError: BUILD is no folder that nm2trt wrote.
        InputError: The engines cannot be refitted, the network is another one, or its weights break the pattern.
        MachineError: TensorRT or its GPU is missing, or TensorRT refused the weights.
        OSError: The disk is full; BUILD is as it was.
    """
    from nm2trt.artifacts import BuildDocument, staged_folder
    from nm2trt.cli.export_engines import copy_onnx
    from nm2trt.engine import check_pattern, check_same_graph, renew_engine_cache, run_refit

    # The folder is replaced by another of its name, and "." is none.
    folder = folder.resolve()
    build = BuildDocument.read(folder, hint="name a folder that `nm2trt export` wrote")
    engines = _refittable(folder, build)
    with tempfile.TemporaryDirectory(prefix="nm2trt-refit-") as temporary:
        new, exported = _new_onnx(folder, build, checkpoint, Path(temporary), trust=trust)
        check_same_graph(folder / MODEL, new)
        check_pattern(folder / MODEL, new)
        # Only now does the machine matter, and only now is a plan opened.
        plans = _checked_plans(folder, engines, here or this_machine(), trust=trust)
        with staged_folder(folder, force=True) as staged:
            shutil.copytree(folder, staged, dirs_exist_ok=True)
            copy_onnx(new, staged / MODEL)
            renew_engine_cache(staged)
            records = [_refit(engine, plans, staged, refitter or run_refit, folder) for engine in build.engines]
            document = _updated(build, exported, records, staged)
            document.write(staged)
    return document


class Here:
    """What loads plans on this machine: plans know exactly one of each."""

    def __init__(self, *, tensorrt_version: str, sm: str, platform: str) -> None:
        self.tensorrt_version, self.sm, self.platform = tensorrt_version, sm, platform


def this_machine() -> Here:
    """Ask this machine for its TensorRT and its GPU.

    Raises:
        MachineError: One of them is missing.
    """
    from nm2trt.artifacts import this_platform
    from nm2trt.engine import TensorrtBuilder, run_probe
    from nm2trt.errors import MachineError

    builder = TensorrtBuilder()
    found = builder.availability()
    if not found.available:
        raise MachineError(f"refit needs TensorRT and its GPU: {found.why}", where="refit", hint=found.hint)
    # The library's own word: the package's version may carry more.
    version = run_probe(builder.name).version
    return Here(tensorrt_version=version, sm=str(builder.resolve_sm(None)), platform=this_platform())


def _refittable(folder: Path, build: BuildDocument) -> list[EngineRecord]:
    from nm2trt.errors import InputError

    engines = [engine for engine in build.engines if engine.variant != "dense" and engine.file is not None]
    fixed = [engine for engine in engines if "REFIT" not in engine.flags]
    if not engines:
        raise InputError("holds no engines with these weights", where=folder, hint="export it with --builder tensorrt")
    if fixed:
        raise InputError(
            f"the {fixed[0].variant} engine was not built to be refitted (flags: {' '.join(fixed[0].flags) or 'none'})",
            where=folder,
            hint="export it with --builder tensorrt --refittable",
        )
    return engines


def _new_onnx(
    folder: Path, build: BuildDocument, checkpoint: Path, temporary: Path, *, trust: bool
) -> tuple[Path, BuildDocument | None]:
    """The new network as ONNX, with the document of its export; None for an ONNX file, which is taken as it is."""
    from nm2trt.errors import InputError

    if not checkpoint.exists():
        raise InputError("does not exist", where=checkpoint, hint="CHECKPOINT is what `nm2trt export` takes")
    if checkpoint.suffix == ".onnx" and build.source.kind != "onnx":
        return checkpoint, None
    from nm2trt.artifacts.code_trust import check_code
    from nm2trt.cli.export import export_run

    options = export_options(build, checkpoint)
    if "model" in (about := options.setdefault("about", {})):
        check_code(folder / build.FILE, build.named_code(), trust=trust)
    about["trust"] = trust
    exported = export_run(checkpoint, temporary / "build", builder="none", **options)
    return temporary / "build" / MODEL, exported


def export_options(build: BuildDocument, checkpoint: Path) -> dict[str, Any]:
    """The options of `nm2trt.cli.export.export_run` that repeat a build's export with another checkpoint."""
    options: dict[str, Any] = {"io_dtype": "fp32" if build.io_dtype == "fp32" else "same"}
    if build.precision in ("fp32", "fp16", "bf16"):
        options["precision"] = build.precision
    if build.batch is not None:
        options["batch"] = f"{build.batch.min}:{build.batch.opt}:{build.batch.max}"
    model = build.source.model
    # A run folder names its own network; a bare checkpoint names none.
    if model is not None and checkpoint.is_file() and checkpoint.suffix != ".onnx":
        options["about"] = {
            "model": model.name,
            "input_shape": ",".join(map(str, model.input_shape)),
            "classes": model.classes,
            "data": build.source.data,
        }
    return options


def _checked_plans(folder: Path, engines: list[EngineRecord], here: Here, *, trust: bool) -> dict[str, Path]:
    from nm2trt.artifacts import check_plan

    return {
        str(engine.file): check_plan(
            folder,
            engine.variant,
            rebuild=engine.rebuild,
            tensorrt_version=here.tensorrt_version,
            sm=here.sm,
            platform=here.platform,
            trust=trust,
        )
        for engine in engines
    }


def _refit(
    engine: EngineRecord, plans: dict[str, Path], staged: Path, refitter: Refitter, folder: Path
) -> EngineRecord:
    from nm2trt.artifacts import sha256_of
    from nm2trt.engine import RefitJob
    from nm2trt.errors import MachineError

    if engine.file is None or engine.file not in plans:
        return engine
    plan = staged / engine.file
    log = staged / f"{plan.stem}.refit.log"
    answer = refitter(RefitJob(plan=plans[engine.file], onnx=staged / MODEL, output=plan, log=log))
    if answer.error is not None:
        # The staged folder goes, and with it the only account of what TensorRT said.
        kept = folder.with_name(f"{folder.name}-{log.name}")
        if log.is_file():
            shutil.copyfile(log, kept)
        raise MachineError(
            f"TensorRT refused: {answer.error}",
            where=f"{engine.variant} engine",
            hint=f"BUILD is as it was; {kept.name} beside it is the log; export again",
        )
    return engine.model_copy(update={"sha256": sha256_of(plan), "size_bytes": plan.stat().st_size})


def _updated(
    build: BuildDocument, exported: BuildDocument | None, records: list[EngineRecord], staged: Path
) -> BuildDocument:
    """The manifest of the refitted build: what the new weights changed is new, the rest stays."""
    from nm2trt.artifacts import BuildDocument, BuildSource, Fact, FactState, file_records, host_record, sha256_of
    from nm2trt.verify import verify_path
    from nm2trt.verify.verify_schema import document_of

    checked = verify_path(staged / MODEL, source=MODEL)
    pattern = document_of(checked).model_dump(mode="json", by_alias=True)
    (staged / BuildDocument.FILE).unlink()
    changes: dict[str, Any] = {"engines": records, "pattern": pattern, "host": host_record()}
    unmeasured = Fact(
        state=FactState.UNKNOWN, evidence="the engines were refitted; run `nm2trt profile` on this folder"
    )
    if exported is not None:
        changes |= {"source": exported.source, "numerics": exported.numerics, "verdict": exported.verdict}
        facts = build.facts.model_copy(update={"legal": exported.facts.legal, "eligible": exported.facts.eligible})
    else:
        name = f"ONNX of sha256 {sha256_of(staged / MODEL)[:12]}"
        changes |= {"source": BuildSource(kind="onnx", name=name, sha256=sha256_of(staged / MODEL)), "numerics": None}
        facts = build.facts
    changes["facts"] = facts.model_copy(update={"faster": unmeasured})
    changes["files"] = file_records(staged)
    return build.model_copy(update=changes)
