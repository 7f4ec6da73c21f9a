"""Show each engine layer's sparsity eligibility and kernel, from what a build left behind."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from nm2trt.artifacts import BuildDocument, EngineRecord, LayerEvidence, sha256_of
from nm2trt.engine import legal_nodes, read_evidence
from nm2trt.errors import ConfigError, InputError
from nm2trt.evidence import engine_evidence, read_inspection, read_log, read_onnx_nodes, tactic_verdict
from nm2trt.evidence.evidence_schema import InspectDocument, InspectedEngine, InspectTotals
from nm2trt.evidence.recognize import FileKind, recognize
from nm2trt.verify import verify_path

__all__ = [
    "InspectConfig",
    "InspectDocument",
    "InspectedEngine",
    "LayerEvidence",
    "choose_engines",
    "inspect_build",
    "is_kernel_named",
]

logger = logging.getLogger(__name__)

_EVIDENCE = (".log", ".layers.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectConfig:
    """Files of others' builds, or which engine of a build folder is asked about."""

    layers: Path | None = None
    """What the engine inspector or `trtexec --exportLayerInfo` wrote."""
    log: Path | None = None
    """Build log of TensorRT, trtexec or polygraphy."""
    onnx: Path | None = None
    """The network of `layers` and `log`, to name nodes and weights and to judge patterns."""
    variant: str | None = None
    """Engine that the build folder must hold; see `choose_engines`."""


def inspect_build(source: Path | str | None = None, config: InspectConfig | None = None) -> InspectDocument:
    """Say of each engine layer whether it may be sparse, whether it is, and which kernel runs.

    No plan is loaded and no GPU is needed. A build folder's files are each checked against build.json.

    Args:
        source: A folder of `export_network`, or one file of another's build: its content decides what it is. None:
            the files of `config` alone.
        config: More files, or the variant.

    Returns:
        The layers of every engine, with what shows of each.

    Raises:
        ConfigError: Nothing to inspect, files beside a build folder, or it has no such variant.
        InputError: No build folder, a file cannot be read, or one of the build was changed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = Path(folder, "build.log")
        ...     _ = log.write_text("[I] [TRT] (Sparsity) Found 1 layer(s) eligible to use sparse tactics: conv1\\n")
        ...     document = inspect_build(log)
        >>> document.engines[0].log_eligible
        1
    """
    config = config or InspectConfig()
    folder = None if source is None else Path(source)
    if folder is not None and folder.is_file():
        config = _with_file(folder, config)
        folder = None
    _check(folder, config)
    if folder is None:
        return _inspect_files(config)
    document = _inspect_folder(folder)
    if config.variant is not None:
        choose_engines(document, config.variant)
    return document


def choose_engines(document: InspectDocument, variant: str | None = None) -> list[InspectedEngine]:
    """The engines of one variant, each repetition of it; of single files whatever they tell of.

    Args:
        document: What `inspect_build` found.
        variant: dense, control or sparse; None: sparse.

    Raises:
        ConfigError: The build has no such engine.
        InputError: It has none at all.
    """
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


def is_kernel_named(layer: LayerEvidence) -> bool:
    """Whether the kernel's own name tells if it is sparse."""
    return tactic_verdict(layer.kernel) != "unknown"


def _check(folder: Path | None, config: InspectConfig) -> None:
    files = (("--layers", config.layers), ("--log", config.log), ("--onnx", config.onnx))
    given = [option for option, value in files if value is not None]
    if folder is not None and given:
        raise ConfigError(f"BUILD brings its own files; leave out {', '.join(given)}", where="inspect")
    if folder is None and config.layers is None and config.log is None:
        raise ConfigError(
            "nothing to inspect", where="inspect", hint="name a BUILD, or --layers F.json, or --log F.log"
        )
    if folder is None and config.variant is not None:
        raise ConfigError("single files have no variants; leave it out", where="--variant")


def _with_file(file: Path, config: InspectConfig) -> InspectConfig:
    """Take a file that was named without an option for what it is."""
    content = recognize(file)
    if content.kind not in (FileKind.LAYERS, FileKind.LOG):
        raise content.refuse("a layer file or a log", "nm2trt profile reads times; nm2trt export writes build folders")
    is_layers = content.kind is FileKind.LAYERS
    option, taken = ("--layers", config.layers) if is_layers else ("--log", config.log)
    if taken is not None:
        raise ConfigError(f"{file} is {content.words}, and {option} names another", where="inspect")
    return replace(config, layers=file) if is_layers else replace(config, log=file)


def _inspect_folder(folder: Path) -> InspectDocument:
    """Read the logs and inspector files of a build folder again, each checked against build.json."""
    build = BuildDocument.read(folder, hint="name a folder that `nm2trt export` wrote")
    logger.debug("inspect %s: %d engines", folder, len(build.engines))
    for name, record in build.files.items():
        path = folder / name
        if name.endswith(_EVIDENCE) and path.is_file() and sha256_of(path) != record.sha256:
            raise InputError("is not as build.json records it: it was changed", where=path, hint="export it again")
    legal = {
        node: str(layer.get("tensorrt", ""))
        for layer in build.pattern.get("layers", [])
        for node in str(layer.get("node", "")).split(", ")
        if node
    }
    engines = tuple(_inspect_engine(engine, folder, legal) for engine in build.engines)
    return InspectDocument(kind="build", source=folder.resolve().name, engines=engines)


def _inspect_engine(engine: EngineRecord, folder: Path, legal: dict[str, str]) -> InspectedEngine:
    name = f"{engine.variant} {engine.rebuild + 1}" if engine.rebuild else engine.variant
    builder = f"{engine.builder} {engine.builder_version}, SM{engine.sm}"
    if engine.file is None:
        none = InspectTotals(layers=0, with_weights=0, eligible=0, sparse=0, dense=0, hidden=0)
        return InspectedEngine(
            name=name, builder=builder, flags=tuple(engine.flags), totals=none, log_eligible=None, log_chosen=None,
            layers=(), notes=(), error=engine.error or "it was not built",
        )  # fmt: skip
    onnx = folder / Path(engine.onnx).name
    graph = read_onnx_nodes(onnx) if onnx.is_file() else None
    found = read_evidence(engine, folder, graph, legal)
    return InspectedEngine.of(found, name=name, builder=builder, flags=tuple(engine.flags))


def _inspect_files(config: InspectConfig) -> InspectDocument:
    """Read what others' tools wrote."""
    inspection = read_inspection(config.layers) if config.layers is not None else None
    build_log = read_log(config.log) if config.log is not None else None
    graph = read_onnx_nodes(config.onnx) if config.onnx is not None else None
    legal = legal_nodes(verify_path(config.onnx)) if config.onnx is not None else None
    found = engine_evidence(inspection, build_log, graph, legal=legal)
    names = [path.name for path in (config.layers, config.log) if path is not None]
    engine = InspectedEngine.of(found, name=" and ".join(names))
    return InspectDocument(kind="files", source=" ".join(names), engines=(engine,))
