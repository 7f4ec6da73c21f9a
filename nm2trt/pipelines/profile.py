"""Time a dense network against a sparse one on this machine, or make the same report of what others measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nm2trt.artifacts import BatchRecord, ReportDocument
from nm2trt.artifacts.files import check_output, staged_folder
from nm2trt.artifacts.report_layers import LayersRecord, LoadRecord
from nm2trt.errors import ConfigError, InputError
from nm2trt.evidence.recognize import FileKind, recognize
from nm2trt.pipelines.progress import ignore_progress
from nm2trt.pipelines.torch_network import CheckpointConfig, load_torch_network
from nm2trt.profile.config import ProfileConfig, profile_config

if TYPE_CHECKING:
    from nm2trt.report.latency_section import VARIANT_COLUMNS, setting, variant_cells

__all__ = [
    "VARIANT_COLUMNS",
    "BatchRecord",
    "CheckpointConfig",
    "LayersRecord",
    "LoadRecord",
    "MeasuredFiles",
    "ProfileConfig",
    "ProfileSources",
    "ReportDocument",
    "profile_build",
    "profile_config",
    "setting",
    "variant_cells",
]

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Called with (what is measured, share of it done)."""

PAGE = "report.html"
_NOT_OF_TORCH = {
    "provider": "--provider",
    "rebuilds": "--rebuilds",
    "streams": "--streams",
    "rates": "--rate",
    "reference": "--reference",
    "trust": "--trust",
}
_OF_TORCH = {"modes": "--mode", "precision": "--precision"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFiles:
    """What others measured: folders or PREFIXes of trtexec's files, or a table of layer times."""

    sparse: Path | None = None
    dense: Path | None = None
    again: Path | None = None
    """A second run of the sparse engine: the noise."""
    layer_times: Path | None = None

    @property
    def has_runs(self) -> bool:
        """Whether a run of trtexec is named."""
        return any((self.sparse, self.dense, self.again))

    def __bool__(self) -> bool:
        return self.has_runs or self.layer_times is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSources:
    """What a measurement is of, beside the network itself."""

    dense: Path | None = None
    """The dense-trained network: same graph, same precision. None: the sparse network's zeros are filled, or on
    TensorRT the sparse weights run without the flag."""
    reference: Path | None = None
    """Run folder whose network is timed in PyTorch, too."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Of the torch-sparse backend."""
    files: MeasuredFiles = field(default_factory=MeasuredFiles)
    """Read instead of running anything."""


def __getattr__(name: str) -> object:
    """What the report's tables are made of; loaded late, since the pages need more than a mistake's error line."""
    if name not in ("VARIANT_COLUMNS", "setting", "variant_cells"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nm2trt.report import latency_section

    return getattr(latency_section, name)


def profile_build(
    source: Path | str | Sequence[Path | str],
    output: Path | str,
    config: ProfileConfig | None = None,
    sources: ProfileSources | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> ReportDocument:
    """Time a sparse-trained network against a dense one, and write the report.

    The variants run in turns, in shuffled order; the sparse one twice, which is the noise floor: a difference counts
    only where it is larger than the difference of a network to itself.

    Args:
        source: Build folder or ONNX file; a run or checkpoint, too, on the torch-sparse backend. Or the dense and the
            sparse run of trtexec; empty where `sources.files` names them.
        output: Folder for report.json and report.html, whole or not at all.
        config: Backend, batch sizes, duration in seconds, seed, and what else to measure.
        sources: The dense network, or the files to read instead.
        force: Replace a folder that nm2trt wrote.
        progress: Called with what is measured and the share of it that is done.

    Returns:
        The report: times in milliseconds, ratios with their intervals, the four facts.

    Raises:
        ConfigError: Settings that do not go together, or the output exists.
        InputError: A source cannot be used, or the two networks are not the same graph.
        MachineError: The backend is not on this machine.

    Example:
        >>> from nm2trt.errors import ConfigError
        >>> try:
        ...     profile_build("build", "report", ProfileConfig(modes=("eager",)))
        ... except ConfigError as error:
        ...     print(error.what)
        --mode does not go with --backend auto
    """
    config = config or ProfileConfig()
    paths = [source] if isinstance(source, (str, Path)) else source
    network, sources = _place(tuple(map(Path, paths)), sources or ProfileSources())
    _check_source(network, sources)
    _check_backend(config, sources)
    check_output(Path(output), force=force)
    report = _report(network, config, sources, progress or ignore_progress)
    from nm2trt.report.profile_page import profile_page

    with staged_folder(Path(output), force=force) as folder:
        report.write(folder)
        (folder / PAGE).write_text(profile_page(report), encoding="utf-8")
    return report


def _place(paths: tuple[Path, ...], sources: ProfileSources) -> tuple[Path | None, ProfileSources]:
    """Tell the paths apart: one network to run, or the files of trtexec's dense and sparse runs."""
    files = sources.files
    if len(paths) > 2:
        raise ConfigError(
            f"{len(paths)} arguments: name one network, or the dense and the sparse run of trtexec", where="profile"
        )
    if len(paths) < 2 and not (paths and _is_measurement(paths[0])):
        return (paths[0] if paths else None), sources
    if files.dense or files.sparse or files.layer_times is not None:
        raise ConfigError("two runs as arguments and --trtexec-* or --layer-times exclude each other", where="profile")
    network = next((path for path in paths if path.suffix == ".onnx" or (path / "build.json").exists()), None)
    if network is not None:
        raise ConfigError(f"{network} is a network, no run of trtexec", hint="give the dense network with --dense")
    files = replace(files, dense=paths[0] if len(paths) == 2 else files.dense, sparse=paths[-1])
    return None, replace(sources, files=files)


def _is_measurement(path: Path) -> bool:
    """Whether a file is one that trtexec writes; a network is none."""
    if not path.is_file() or path.suffix == ".onnx":
        return False
    try:
        return recognize(path).kind not in (FileKind.OTHER_JSON, FileKind.OTHER_TEXT)
    except InputError:
        return False


def _check_source(network: Path | None, sources: ProfileSources) -> None:
    files = sources.files
    if not files and network is None:
        raise ConfigError("nothing to profile", hint="name a build folder or ONNX file, or --trtexec-sparse PREFIX")
    if files.layer_times is not None and files.has_runs:
        raise ConfigError("--layer-times and --trtexec-* exclude each other", hint="make two reports")
    if files and (sources.dense is not None or sources.reference is not None):
        raise ConfigError("--dense and --reference are run, --trtexec-* and --layer-times are read", hint="choose one")


def _check_backend(config: ProfileConfig, sources: ProfileSources) -> None:
    in_torch = config.backend == "torch-sparse"
    given = config.model_fields_set | ({"reference"} if sources.reference is not None else set())
    wrong = [option for name, option in (_NOT_OF_TORCH if in_torch else _OF_TORCH).items() if name in given]
    if not in_torch:
        wrong += sources.checkpoint.given
    if wrong:
        words = "does not go" if len(wrong) == 1 else "do not go"
        raise ConfigError(
            f"{', '.join(wrong)} {words} with --backend {config.backend}",
            hint="leave it out" if in_torch else "use --backend torch-sparse, or leave it out",
        )


def _report(network: Path | None, config: ProfileConfig, sources: ProfileSources, progress: Progress) -> ReportDocument:
    if sources.files:
        return _read_files(network, config, sources.files)
    assert network is not None  # _check_source
    if config.backend == "torch-sparse":
        return _measure_in_torch(network, config, sources, progress)
    from nm2trt.profile import profile

    report = profile(network, config, dense=sources.dense, reference=sources.reference, progress=progress)
    threads = "" if report.runner.threads is None else f"; CPU threads: {report.runner.threads}"
    logger.info("backend: %s%s", report.backend_choice, threads)
    return report


def _read_files(model: Path | None, config: ProfileConfig, files: MeasuredFiles) -> ReportDocument:
    from nm2trt.profile.importers.trtexec import TrtexecPaths, import_table, import_trtexec

    is_given = "batches" in config.model_fields_set
    if is_given and len(config.batches) != 1:
        raise ConfigError("--batch: others' files hold one batch size", hint="name that one")
    batch = config.batches[0] if is_given else None
    if files.layer_times is not None:
        if batch is None:
            raise ConfigError("a table does not tell its batch size", where="--layer-times", hint="add --batch N")
        return import_table(files.layer_times, batch=batch, seed=config.seed)
    paths = TrtexecPaths(sparse=files.sparse, dense=files.dense, again=files.again)
    return import_trtexec(paths, model=model, batch=batch, seed=config.seed)


def _measure_in_torch(
    network: Path, config: ProfileConfig, sources: ProfileSources, progress: Progress
) -> ReportDocument:
    from nm2trt.profile.torch_sparse import profile_torch_sparse

    loaded = load_torch_network(network, sources.checkpoint, config.shapes)
    dense = None if sources.dense is None else load_torch_network(sources.dense, sources.checkpoint, config.shapes)
    return profile_torch_sparse(loaded, config, dense=dense, progress=progress)
