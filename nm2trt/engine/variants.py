"""The variants of one network: which engines are built, with what they share, and what is read from them afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts import VARIANTS, BatchRange, EngineRecord, Variant
from nm2trt.engine.builders import EngineBuilder
from nm2trt.engine.evidence import legal_nodes, read_evidence
from nm2trt.engine.job import BuildProgress, EngineJob
from nm2trt.engine.settings import EngineSettings
from nm2trt.errors import ConfigError
from nm2trt.evidence import OnnxNodes, read_onnx_nodes
from nm2trt.tensorrt_api import present_gpu
from nm2trt.verify import verify_path

TIMING_CACHE = "timing.cache"
Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What the variants are built from."""

    folder: Path
    """Build folder; it holds the ONNX files and gets the plans."""
    onnx: str
    """File with the sparse weights."""
    dense_onnx: str | None
    """File with the dense weights, if there are any."""
    profile: Profile
    batch: BatchRange | None
    sm: str | None


def check_settings(builder: EngineBuilder, settings: EngineSettings) -> None:
    """Refuse what a builder cannot do, before any work is done.

    Raises:
        ConfigError: Such a setting.
    """
    if builder.name == "tensorrt-rtx":
        if settings.refittable:
            raise ConfigError(
                "TensorRT-RTX cannot build refittable engines without a GPU",
                where="--refittable",
                hint="use --builder tensorrt",
            )
        if settings.timing_cache is not None:
            raise ConfigError(
                "TensorRT-RTX chooses no kernels when it builds, so it has no use for a timing cache",
                where="--timing-cache",
                hint="leave it out, or use --builder tensorrt",
            )


def build_variants(
    builder: EngineBuilder,
    network: Network,
    settings: EngineSettings,
    progress: Callable[[Variant, int, BuildProgress | None], None],
) -> list[EngineRecord]:
    """Build dense (where there are dense weights), control and sparse, as often as asked.

    The variants of one round share a timing cache, so that they time equal kernels once and differ by the flag alone.
    Each further round starts its own: a round that read the first one's timings would repeat its choices and hide how
    much builds differ.

    Args:
        builder: Compiles them.
        network: What to compile.
        settings: What the user set.
        progress: Called with the variant, the round (from 0) and the builder's own progress; None when a variant
        starts.

    Returns:
        Records in the order of building; a failed build has its error in it.

    Raises:
        ConfigError: The builder cannot do what the settings ask.
        InputError: An ONNX file cannot be read.
        OSError: A file cannot be written.
    """
    check_settings(builder, settings)
    seen = {name: _seen(network.folder / name) for name in {network.onnx, network.dense_onnx} - {None} if name}
    variants = [variant for variant in VARIANTS if variant != "dense" or network.dense_onnx is not None]
    gpu = present_gpu() if builder.name == "tensorrt" else ""
    records = []
    for rebuild, variant in itertools.product(range(settings.rebuilds), variants):
        onnx = str(network.dense_onnx) if variant == "dense" else network.onnx
        job = EngineJob(
            backend=builder.name,
            onnx=network.folder / onnx,
            folder=network.folder,
            variant=variant,
            rebuild=rebuild,
            sm=network.sm,
            gpu=gpu,
            profile=dict(network.profile),
            batch=network.batch,
            timing_cache=_cache(network.folder, settings, rebuild),
            workspace_bytes=settings.workspace,
            optimization_level=settings.optimization_level,
            refittable=settings.refittable,
        )
        progress(variant, rebuild, None)
        record = builder.build(job, lambda step, variant=variant, rebuild=rebuild: progress(variant, rebuild, step))  # type: ignore[misc]
        if record.file is not None:
            graph, legal = seen[onnx]
            layers = read_evidence(record, network.folder, graph, legal).layers
            record = record.model_copy(update={"layers": layers})
        records.append(record)
    return records


def _seen(onnx: Path) -> tuple[OnnxNodes, dict[str, str]]:
    return read_onnx_nodes(onnx), legal_nodes(verify_path(onnx))


def _cache(folder: Path, settings: EngineSettings, rebuild: int) -> Path:
    if rebuild:
        return folder / f"timing-{rebuild + 1}.cache"
    return settings.timing_cache.resolve() if settings.timing_cache is not None else folder / TIMING_CACHE
