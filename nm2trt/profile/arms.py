"""Which arms are timed on which backend, and how each is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nm2trt.artifacts import BuildDocument, LayerEvidence
from nm2trt.artifacts.build import Arm
from nm2trt.artifacts.report import ArmName
from nm2trt.errors import InputError
from nm2trt.profile.config import Backend, ProfileConfig
from nm2trt.profile.graph import precision_of
from nm2trt.profile.onnxruntime_providers import best_device, require_device
from nm2trt.profile.onnxruntime_runner import OnnxRuntimeRunner
from nm2trt.profile.runner import Runner
from nm2trt.profile.source import Source
from nm2trt.tensorrt_api import Flavor, explain_missing

Opener = Callable[[int], Runner]
"""Build number -> runner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    """The arms of one measurement."""

    openers: Mapping[ArmName, Opener]
    """In the order of the report; `sparse` and `sparse-again` are always among them."""
    baseline: ArmName
    precision: str
    """Types that the weights are computed in, "fp16+int8"."""
    tuned_for: int | None = None
    """Batch that the engines were tuned for."""
    evidence: Mapping[ArmName, tuple[LayerEvidence, ...]] = field(default_factory=dict)
    """What the builds show of the engines' layers."""
    notes: tuple[str, ...] = ()

    @property
    def contrasts(self) -> tuple[tuple[ArmName, ArmName], ...]:
        """Pairs (over, under) beside baseline against sparse."""
        if "control" in self.openers and self.baseline == "dense":
            return ("dense", "control"), ("control", "sparse")
        return ()


def choose_backend(wanted: str, source: Source | None = None) -> tuple[Backend, str]:
    """Return the backend that will run and the reason in words.

    Args:
        wanted: As `--backend`.
        source: The sparse network; "auto" takes TensorRT only where it is a build folder with engines.

    Raises:
        MachineError: TensorRT was asked for; the line says what is missing.
    """
    if wanted in ("tensorrt", "tensorrt-rtx"):
        from nm2trt.profile.tensorrt_engine import require_tensorrt

        flavor: Flavor = "tensorrt" if wanted == "tensorrt" else "tensorrt-rtx"
        require_tensorrt(flavor)
        return flavor, f"{wanted} was asked for"
    if wanted == "onnxruntime":
        return "onnxruntime", "onnxruntime was asked for"
    missing = " and ".join(one.what for one in explain_missing("tensorrt"))
    if not missing and source is not None and not _has_engine(source.build):
        missing = f"{source.record.name} holds no sparse engine (nm2trt export --builder tensorrt)"
    if missing:
        return "onnxruntime", f"auto picked onnxruntime: TensorRT cannot be used, since {missing}"
    return "tensorrt", "auto picked tensorrt: it is installed, and there is a GPU"


def _has_engine(build: BuildDocument | None) -> bool:
    return build is not None and any(
        one.arm == "sparse" and one.file is not None and one.builder == "tensorrt" for one in build.engines
    )


def lineup(backend: Backend, sparse: Source, dense: Source | None, config: ProfileConfig) -> Lineup:
    """Decide on the arms.

    Args:
        backend: From `choose_backend`.
        sparse: The sparse network.
        dense: The dense one; None where none was given and the backend needs none.
        config: Provider, seed, shapes, rebuilds.

    Raises:
        InputError: A build folder lacks an engine or a rebuild.
        MachineError: The provider cannot be opened.
    """
    if backend == "onnxruntime":
        if dense is None:
            raise ValueError("ONNX Runtime needs a dense network")
        return _onnxruntime(sparse, dense, config)
    return _tensorrt(backend, sparse, dense, config)


def _onnxruntime(sparse: Source, dense: Source, config: ProfileConfig) -> Lineup:
    device = best_device() if config.provider == "auto" else config.provider
    require_device(device)

    def opener(source: Source, *, sparsity: bool) -> Opener:
        return lambda _build: OnnxRuntimeRunner(
            source.model,
            name=source.record.name,
            device=device,
            seed=config.seed,
            sparsity=sparsity,
            shapes=config.shapes,
        )

    openers: dict[ArmName, Opener] = {"dense": opener(dense, sparsity=False)}
    if device == "tensorrt":
        openers["control"] = opener(sparse, sparsity=False)
    openers["sparse"] = opener(sparse, sparsity=True)
    openers["sparse-again"] = opener(sparse, sparsity=True)
    precision = precision_of(sparse.model)
    notes = (_FP16_ON_CPU,) if device == "cpu" and ("fp16" in precision or "bf16" in precision) else ()
    return Lineup(openers=openers, baseline="dense", precision=precision, notes=notes)


_FP16_ON_CPU = (
    "ONNX Runtime's CPU provider computes in float32 where it has no 16-bit kernels, and casts around it: these times "
    "say nothing of 16-bit arithmetic."
)


def _tensorrt(backend: Backend, sparse: Source, dense: Source | None, config: ProfileConfig) -> Lineup:
    folder, build = sparse.folder, sparse.build
    if folder is None or build is None:
        raise InputError(
            "is an ONNX file, and TensorRT's arms are engines",
            where=sparse.record.name,
            mend="export it first (nm2trt export --builder tensorrt), or use --backend onnxruntime",
        )
    plans: dict[ArmName, tuple[Path, BuildDocument, Arm]] = {}
    if dense is not None:
        if dense.folder is None or dense.build is None:
            raise InputError("is no build folder with engines", where=dense.record.name, mend="export it first")
        # A dense network's own build knows no flag to leave out: its control engine is the dense engine.
        plans["dense"] = (dense.folder, dense.build, "control")
    elif any(one.arm == "dense" and one.file for one in build.engines):
        plans["dense"] = (folder, build, "dense")
    plans["control"] = (folder, build, "control")
    plans["sparse"] = plans["sparse-again"] = (folder, build, "sparse")
    _check_rebuilds(plans, config.rebuilds)
    opener = partial(_open_engine, backend, config)
    tuned = {one.batch.opt for one in build.engines if one.file and one.batch is not None}
    notes = () if "dense" in plans else (_NO_DENSE,)
    return Lineup(
        openers={name: partial(opener, place, arm) for name, (place, _, arm) in plans.items()},
        baseline="dense" if "dense" in plans else "control",
        precision=precision_of(sparse.model),
        tuned_for=tuned.pop() if len(tuned) == 1 else None,
        evidence={
            name: next((one.layers for one in document.engines if one.arm == arm), ())
            for name, (_, document, arm) in plans.items()
        },
        notes=notes,
    )


_NO_DENSE = (
    "No engine from dense weights was given, so the sparse arm is held against the same sparse weights built without "
    "the flag. A GPU draws less power on zeros: against dense weights the gain may be larger, for that reason alone."
)


def _check_rebuilds(plans: Mapping[ArmName, tuple[Path, BuildDocument, Arm]], wanted: int) -> None:
    for folder, document, arm in plans.values():
        there = {one.rebuild for one in document.engines if one.arm == arm and one.file is not None}
        missing = [number for number in range(wanted) if number not in there]
        if missing:
            raise InputError(
                f"holds {len(there)} build{'' if len(there) == 1 else 's'} of the {arm} engine, not {wanted}",
                where=folder,
                mend=f"export with --builder tensorrt --rebuilds {wanted}, or measure fewer",
            )


def _open_engine(backend: Backend, config: ProfileConfig, folder: Path, arm: Arm, rebuild: int) -> Runner:
    from nm2trt.profile.tensorrt_engine import Engine
    from nm2trt.profile.tensorrt_runner import TensorrtRunner

    flavor: Flavor = "tensorrt-rtx" if backend == "tensorrt-rtx" else "tensorrt"
    engine = Engine(folder, arm, flavor=flavor, rebuild=rebuild, trust=config.trust)
    return TensorrtRunner(engine, seed=config.seed, shapes=config.shapes)


def with_reference(lineup: Lineup, run: Path, config: ProfileConfig) -> Lineup:
    """Add PyTorch, eager and compiled, to the arms.

    Args:
        lineup: The other arms.
        run: Folder of `nm2trt train`.
        config: Its seed is used.

    Raises:
        InputError: The folder is no finished run.
    """
    from nm2trt.profile.torch_runner import TorchRunner, load_module

    module, shape = load_module(run, trust=config.trust)
    openers = dict(lineup.openers)
    openers["torch-eager"] = lambda _build: TorchRunner(module, shape, compiled=False, seed=config.seed)
    openers["torch-compiled"] = lambda _build: TorchRunner(module, shape, compiled=True, seed=config.seed)
    return Lineup(
        openers=openers,
        baseline=lineup.baseline,
        precision=lineup.precision,
        tuned_for=lineup.tuned_for,
        evidence=lineup.evidence,
        notes=(
            *lineup.notes,
            "The torch arms run in float32, whatever the precision of the others, and after the rounds of the others.",
        ),
    )
