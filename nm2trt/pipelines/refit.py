"""New weights for the engines of a build, without building them again."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from nm2trt.artifacts import (
    BuildDocument,
    BuildSource,
    EngineRecord,
    Fact,
    FactState,
    check_plan,
    file_records,
    host_record,
    sha256_of,
    staged_folder,
    this_platform,
)
from nm2trt.artifacts.code_trust import check_code
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.engine import (
    RefitJob,
    Refitter,
    TensorrtBuilder,
    check_pattern,
    check_same_graph,
    renew_engine_cache,
    run_probe,
    run_refit,
)
from nm2trt.errors import InputError, MachineError
from nm2trt.pipelines.engines import copy_onnx
from nm2trt.pipelines.export import export_network
from nm2trt.pipelines.export_config import ExportConfig
from nm2trt.verify import verify_path
from nm2trt.verify.verify_schema import document_of


def refit_build(
    folder: Path,
    checkpoint: Path,
    *,
    trust: bool = False,
    refitter: Refitter | None = None,
    here: TargetPlatform | None = None,
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

    Example:
        A build without engines has none that could take new weights:

        >>> from nm2trt.errors import Nm2trtError
        >>> _ = export_network(Path("model.onnx"), Path("build"), ExportConfig(builder="none"))
        >>> try:
        ...     refit_build(Path("build"), Path("dense.onnx"))
        ... except Nm2trtError as error:
        ...     print(error.what)
        holds no engines with these weights
    """
    # The folder is replaced by another of its name, and "." is none.
    folder = folder.resolve()
    build = BuildDocument.read(folder, hint="name a folder that `nm2trt export` wrote")
    engines = _refittable(folder, build)
    with tempfile.TemporaryDirectory(prefix="nm2trt-refit-") as temporary:
        new, exported = _new_onnx(folder, build, checkpoint, Path(temporary), trust=trust)
        check_same_graph(folder / ONNX_FILE, new)
        check_pattern(folder / ONNX_FILE, new)
        # Only now does the machine matter, and only now is a plan opened.
        plans = _checked_plans(folder, engines, here or this_machine(), trust=trust)
        with staged_folder(folder, force=True) as staged:
            shutil.copytree(folder, staged, dirs_exist_ok=True)
            copy_onnx(new, staged / ONNX_FILE)
            renew_engine_cache(staged)
            records = [_refit(engine, plans, staged, refitter or run_refit, folder) for engine in build.engines]
            document = _updated(build, exported, records, staged)
            document.write(staged)
    return document


class TargetPlatform:
    """What loads plans on this machine: plans know exactly one of each."""

    def __init__(self, *, tensorrt_version: str, sm: str, platform: str) -> None:
        self.tensorrt_version, self.sm, self.platform = tensorrt_version, sm, platform


def this_machine() -> TargetPlatform:
    """Ask this machine for its TensorRT and its GPU.

    Raises:
        MachineError: One of them is missing.
    """
    builder = TensorrtBuilder()
    found = builder.availability()
    if not found.available:
        raise MachineError(f"refit needs TensorRT and its GPU: {found.why}", where="refit", hint=found.hint)
    # The library's own word: the package's version may carry more.
    version = run_probe(builder.name).version
    return TargetPlatform(tensorrt_version=version, sm=str(builder.resolve_sm(None)), platform=this_platform())


def _refittable(folder: Path, build: BuildDocument) -> list[EngineRecord]:

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
    if not checkpoint.exists():
        raise InputError("does not exist", where=checkpoint, hint="CHECKPOINT is what `nm2trt export` takes")
    if checkpoint.suffix == ".onnx" and build.source.kind != "onnx":
        return checkpoint, None

    config = export_config(build, checkpoint, trust=trust)
    if config.source.model is not None:
        check_code(folder / build.FILE, build.named_code(), trust=trust)
    return temporary / "build" / ONNX_FILE, export_network(checkpoint, temporary / "build", config)


def export_config(build: BuildDocument, checkpoint: Path, *, trust: bool = False) -> ExportConfig:
    """The settings that repeat a build's export with another checkpoint.

    Args:
        build: The build that is repeated.
        checkpoint: A run folder, a checkpoint or an ONNX file; a bare checkpoint is of the build's own network.
        trust: Import the code that the checkpoint's run.json names although this machine did not write it.
    """
    source: dict[str, Any] = {"trust": trust}
    model = build.source.model
    # A run folder names its own network; a bare checkpoint names none.
    if model is not None and checkpoint.is_file() and checkpoint.suffix != ".onnx":
        source |= {
            "model": model.name,
            "input_shape": ",".join(map(str, model.input_shape)),
            "classes": model.classes,
            "data": build.source.data,
        }
    return ExportConfig.model_validate(
        {
            "precision": build.precision if build.precision in ("fp32", "fp16", "bf16") else None,
            "io_dtype": "fp32" if build.io_dtype == "fp32" else "same",
            "batch": build.batch,
            "builder": "none",
            "source": source,
        }
    )


def _checked_plans(folder: Path, engines: list[EngineRecord], here: TargetPlatform, *, trust: bool) -> dict[str, Path]:

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

    if engine.file is None or engine.file not in plans:
        return engine
    plan = staged / engine.file
    log = staged / f"{plan.stem}.refit.log"
    answer = refitter(RefitJob(plan=plans[engine.file], onnx=staged / ONNX_FILE, output=plan, log=log))
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
    checked = verify_path(staged / ONNX_FILE, source=ONNX_FILE)
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
        name = f"ONNX of sha256 {sha256_of(staged / ONNX_FILE)[:12]}"
        changes |= {
            "source": BuildSource(kind="onnx", name=name, sha256=sha256_of(staged / ONNX_FILE)),
            "numerics": None,
        }
        facts = build.facts
    changes["facts"] = facts.model_copy(update={"faster": unmeasured})
    changes["files"] = file_records(staged)
    return build.model_copy(update=changes)
