"""Which variants are timed on which backend, and how each is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nm2trt.artifacts import BuildDocument, LayerEvidence
from nm2trt.artifacts.build import Variant
from nm2trt.artifacts.report import VariantName
from nm2trt.errors import InputError
from nm2trt.onnx_tools.graph_compare import precision_of
from nm2trt.profile.config import Backend, ProfileConfig
from nm2trt.profile.runners.onnxruntime_providers import best_device, require_device
from nm2trt.profile.runners.onnxruntime_runner import OnnxRuntimeRunner
from nm2trt.profile.runners.runner import Runner
from nm2trt.profile.source import Source
from nm2trt.tensorrt_api import Flavor, explain_missing

RunnerFactory = Callable[[int], Runner]
"""Build number -> runner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """The variants of one measurement."""

    factories: Mapping[VariantName, RunnerFactory]
    """In the order of the report; `sparse` and `sparse-repeat` are always among them."""
    baseline: VariantName
    precision: str
    """Types that the weights are computed in, "fp16+int8"."""
    tuned_for: int | None = None
    """Batch that the engines were tuned for."""
    evidence: Mapping[VariantName, tuple[LayerEvidence, ...]] = field(default_factory=dict)
    """What the builds show of the engines' layers."""
    notes: tuple[str, ...] = ()

    @property
    def contrasts(self) -> tuple[tuple[VariantName, VariantName], ...]:
        """Pairs (over, under) beside baseline against sparse."""
        if "control" in self.factories and self.baseline == "dense":
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
        from nm2trt.profile.runners.tensorrt_engine import require_tensorrt

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
        one.variant == "sparse" and one.file is not None and one.builder == "tensorrt" for one in build.engines
    )


def make_variants(backend: Backend, sparse: Source, dense: Source | None, config: ProfileConfig) -> Variants:
    """Decide on the variants.

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


def _onnxruntime(sparse: Source, dense: Source, config: ProfileConfig) -> Variants:
    device = best_device() if config.provider == "auto" else config.provider
    require_device(device)

    def factory(source: Source, *, sparsity: bool) -> RunnerFactory:
        return lambda _build: OnnxRuntimeRunner(
            source.model,
            name=source.record.name,
            device=device,
            seed=config.seed,
            sparsity=sparsity,
            shapes=config.shapes,
        )

    factories: dict[VariantName, RunnerFactory] = {"dense": factory(dense, sparsity=False)}
    if device == "tensorrt":
        factories["control"] = factory(sparse, sparsity=False)
    factories["sparse"] = factory(sparse, sparsity=True)
    factories["sparse-repeat"] = factory(sparse, sparsity=True)
    precision = precision_of(sparse.model)
    notes = (_FP16_ON_CPU,) if device == "cpu" and ("fp16" in precision or "bf16" in precision) else ()
    return Variants(factories=factories, baseline="dense", precision=precision, notes=notes)


_FP16_ON_CPU = (
    "ONNX Runtime's CPU provider computes in float32 where it has no 16-bit kernels, and casts around it: these times "
    "say nothing of 16-bit arithmetic."
)


def _tensorrt(backend: Backend, sparse: Source, dense: Source | None, config: ProfileConfig) -> Variants:
    folder, build = sparse.folder, sparse.build
    if folder is None or build is None:
        raise InputError(
            "is an ONNX file, and TensorRT's variants are engines",
            where=sparse.record.name,
            hint="export it first (nm2trt export --builder tensorrt), or use --backend onnxruntime",
        )
    plans: dict[VariantName, tuple[Path, BuildDocument, Variant]] = {}
    if dense is not None:
        if dense.folder is None or dense.build is None:
            raise InputError("is no build folder with engines", where=dense.record.name, hint="export it first")
        # A dense network's own build knows no flag to leave out: its control engine is the dense engine.
        plans["dense"] = (dense.folder, dense.build, "control")
    elif any(one.variant == "dense" and one.file for one in build.engines):
        plans["dense"] = (folder, build, "dense")
    plans["control"] = (folder, build, "control")
    plans["sparse"] = plans["sparse-repeat"] = (folder, build, "sparse")
    _check_rebuilds(plans, config.rebuilds)
    factory = partial(_open_engine, backend, config)
    tuned = {one.batch.opt for one in build.engines if one.file and one.batch is not None}
    notes = () if "dense" in plans else (_NO_DENSE,)
    return Variants(
        factories={name: partial(factory, place, variant) for name, (place, _, variant) in plans.items()},
        baseline="dense" if "dense" in plans else "control",
        precision=precision_of(sparse.model),
        tuned_for=tuned.pop() if len(tuned) == 1 else None,
        evidence={
            name: next((one.layers for one in document.engines if one.variant == variant), ())
            for name, (_, document, variant) in plans.items()
        },
        notes=notes,
    )


_NO_DENSE = (
    "No engine from dense weights was given, so the sparse variant is compared with the same sparse weights built "
    "without the flag. A GPU draws less power on zeros: against dense weights that alone may make the gain larger."
)


def _check_rebuilds(plans: Mapping[VariantName, tuple[Path, BuildDocument, Variant]], wanted: int) -> None:
    for folder, document, variant in plans.values():
        there = {one.rebuild for one in document.engines if one.variant == variant and one.file is not None}
        missing = [number for number in range(wanted) if number not in there]
        if missing:
            raise InputError(
                f"holds {len(there)} build{'' if len(there) == 1 else 's'} of the {variant} engine, not {wanted}",
                where=folder,
                hint=f"export with --builder tensorrt --rebuilds {wanted}, or measure fewer",
            )


def _open_engine(backend: Backend, config: ProfileConfig, folder: Path, variant: Variant, rebuild: int) -> Runner:
    from nm2trt.profile.runners.tensorrt_engine import Engine
    from nm2trt.profile.runners.tensorrt_runner import TensorrtRunner

    flavor: Flavor = "tensorrt-rtx" if backend == "tensorrt-rtx" else "tensorrt"
    engine = Engine(folder, variant, flavor=flavor, rebuild=rebuild, trust=config.trust)
    return TensorrtRunner(engine, seed=config.seed, shapes=config.shapes)


def with_reference(variants: Variants, run: Path, config: ProfileConfig) -> Variants:
    """Add PyTorch, eager and compiled, to the variants.

    Args:
        variants: The other variants.
        run: Folder of `nm2trt train`.
        config: Its seed is used.

    Raises:
        InputError: The folder is no finished run.
    """
    from nm2trt.profile.runners.torch_runner import TorchRunner, load_module

    module, shape = load_module(run, trust=config.trust)
    factories = dict(variants.factories)
    factories["torch-eager"] = lambda _build: TorchRunner(module, shape, compiled=False, seed=config.seed)
    factories["torch-compiled"] = lambda _build: TorchRunner(module, shape, compiled=True, seed=config.seed)
    return Variants(
        factories=factories,
        baseline=variants.baseline,
        precision=variants.precision,
        tuned_for=variants.tuned_for,
        evidence=variants.evidence,
        notes=(
            *variants.notes,
            "The torch variants run in float32, whatever the precision of the others, after the others' rounds.",
        ),
    )
