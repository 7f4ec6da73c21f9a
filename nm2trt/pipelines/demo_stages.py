"""The demo's work: every stage in turn, through the folders that they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts import BuildDocument, ReportDocument, RunDocument
from nm2trt.pipelines.export import export_network
from nm2trt.pipelines.export_config import ExportConfig, SourceOptions
from nm2trt.profile import profile
from nm2trt.profile.config import profile_config
from nm2trt.report.profile_page import profile_page
from nm2trt.training.config import TrainConfig
from nm2trt.training.run import train
from nm2trt.verify import CheckResult, verify_path

BATCHES = "1,8,32"

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo is asked to do; `config` is the sparse run of seed 0."""

    config: TrainConfig
    seeds: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What every stage found, one entry per seed where there are several."""

    settings: DemoSettings
    dense: list[RunDocument]
    sparse: list[RunDocument]
    verified: list[CheckResult]
    """Of the sparse checkpoints."""
    build: BuildDocument
    """fp16, with engines where there is a builder."""
    dense_fp32: BuildDocument
    sparse_fp32: BuildDocument
    report: ReportDocument


def run_stages(settings: DemoSettings, folder: Path, *, say: Say, doing: Say) -> Stages:
    """Train, verify, export and profile into subfolders of `folder`.

    Args:
        settings: What to train and how long to time.
        folder: An empty folder.
        say: Called with a line when a step is done.
        doing: Called with what is being done.
    """
    runs = _train(settings, folder / "runs", say, doing)
    sparse_folders = [folder / "runs" / f"sr-ste-{seed}" for seed in range(settings.seeds)]
    verified = [verify_path(path, source=f"runs/{path.name}") for path in sparse_folders]
    for document in verified:
        conform = sum(layer.verdict == "conforms" for layer in document.layers)
        say(f"verify {document.source}: {document.verdict}, {conform} layers conform")
    builds = _export(settings, folder, say, doing)
    doing("profile: dense against sparse")
    report = profile(
        folder / "builds" / "sparse-fp32",
        profile_config(backend="onnxruntime", batches=BATCHES, duration_s=settings.duration_s, seed=0),
        dense=folder / "builds" / "dense-fp32",
        progress=_profiling(doing),
    )
    profile_folder = folder / "profile"
    profile_folder.mkdir()
    report.write(profile_folder)
    (profile_folder / "report.html").write_text(profile_page(report), encoding="utf-8")
    say(f"profile: {report.headline}")
    return Stages(
        settings=settings,
        dense=runs["dense"],
        sparse=runs["sr-ste"],
        verified=verified,
        build=builds["sparse-fp16"],
        dense_fp32=builds["dense-fp32"],
        sparse_fp32=builds["sparse-fp32"],
        report=report,
    )


def _train(settings: DemoSettings, folder: Path, say: Say, doing: Say) -> dict[str, list[RunDocument]]:
    folder.mkdir()
    runs: dict[str, list[RunDocument]] = {"dense": [], "sr-ste": []}
    for seed in range(settings.seeds):
        for method, documents in runs.items():
            name = f"{method}-{seed}"
            config = settings.config.model_copy(update={"method": method, "seed": seed})
            document = train(config, folder / name, progress=_training(doing, name))
            documents.append(document)
            threads = f" with {document.threads.threads} CPU thread(s)" if document.threads else ""
            say(f"train {name}: {document.result.score} in {document.result.seconds:.1f} s{threads}")
    return runs


def _export(settings: DemoSettings, folder: Path, say: Say, doing: Say) -> dict[str, BuildDocument]:
    (folder / "builds").mkdir()
    builds = {}
    for name, run, precision, builder in (
        ("sparse-fp16", "sr-ste-0", "fp16", "auto"),
        ("sparse-fp32", "sr-ste-0", "fp32", "none"),
        ("dense-fp32", "dense-0", "fp32", "none"),
    ):
        config = ExportConfig.model_validate(
            {
                "precision": precision,
                "builder": builder,
                "source": SourceOptions(data_dir=settings.config.data_dir),
            }
        )
        build = export_network(
            folder / "runs" / run, folder / "builds" / name, config, progress=_exporting(doing, name)
        )
        error = f"error {build.numerics.max_rel_error:.1e} of the largest output" if build.numerics else "not compared"
        engines = f", {sum(engine.file is not None for engine in build.engines)} engines" if build.engines else ""
        say(f"export {name}: {build.verdict}, {error}{engines}")
        builds[name] = build
    return builds


def _training(doing: Say, name: str) -> Callable[[int, int, str], None]:
    def move(_done: int, _of: int, words: str) -> None:
        doing(f"train {name}: {words}")

    return move


def _exporting(doing: Say, name: str) -> Callable[[str], None]:
    def move(words: str) -> None:
        doing(f"export {name}: {words}")

    return move


def _profiling(doing: Say) -> Callable[[str, float], None]:
    def move(what: str, share: float) -> None:
        doing(f"profile: {what}, {share:.0%}")

    return move


def commands(settings: DemoSettings) -> tuple[str, ...]:
    """The demo step by step, for seed 0, as a user would type it."""
    config = settings.config
    options = f"--data {config.data} --model {config.model} --epochs {config.epochs}"
    return (
        f"nm2trt train {options} --method dense -o runs/dense",
        f"nm2trt train {options} --method sr-ste --pattern {config.pattern} -o runs/sparse",
        "nm2trt verify runs/sparse",
        "nm2trt export runs/sparse -o builds/sparse-fp16 --precision fp16",
        "nm2trt export runs/sparse -o builds/sparse --builder none",
        "nm2trt export runs/dense -o builds/dense --builder none",
        f"nm2trt profile builds/sparse --dense builds/dense --batch {BATCHES} -o report",
    )
