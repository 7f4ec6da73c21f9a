"""What engine builds prove of the two facts `chosen` and `faster`. A flag proves neither."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nm2trt.artifacts import EngineRecord, Fact, FactState, LayerEvidence
from nm2trt.engine.plans import compare_plans
from nm2trt.errors import InputError
from nm2trt.evidence import EngineEvidence, OnnxNodes, engine_evidence, read_builder_log, read_inspection
from nm2trt.verify import CheckResult


def legal_nodes(checked: CheckResult) -> dict[str, str]:
    """ONNX node name -> "eligible", or why TensorRT does not consider a sparse kernel for it."""
    return {node: layer.tensorrt for layer in checked.layers for node in layer.node.split(", ") if node}


def read_evidence(
    record: EngineRecord, folder: Path, graph: OnnxNodes | None, legal: Mapping[str, str] | None
) -> EngineEvidence:
    """Read the log and the inspector file of one engine of a build folder; what cannot be read is noted.

    Args:
        record: The engine.
        folder: Where its files are.
        graph: The network that it was built from.
        legal: As `legal_nodes` gives it.
    """
    log_file = folder / record.log
    log = read_builder_log(log_file) if log_file.is_file() else None
    layers_file = folder / f"{Path(record.log).stem}.layers.json"
    inspection, trouble = None, ""
    if layers_file.is_file():
        try:
            inspection = read_inspection(layers_file)
        except InputError as error:
            trouble = f"{layers_file.name}: {error.what}"
    if record.variant != "sparse":
        legal = dict.fromkeys(legal or {}, "built without SPARSE_WEIGHTS")
    found = engine_evidence(inspection, log, graph, legal=legal)
    if not trouble:
        return found
    return replace(found, notes=(trouble, *found.notes))


def chosen_fact(engines: Sequence[EngineRecord], folder: Path, *, why_none: str) -> Fact:
    """Tell whether sparse kernels were chosen, as far as these builds show it.

    Args:
        engines: Records of one build folder, with their layers.
        folder: Where their files are.
        why_none: The sentence for a build without engines.
    """
    built = [engine for engine in engines if engine.file is not None and engine.rebuild == 0]
    sparse = next((engine for engine in built if engine.variant == "sparse"), None)
    if sparse is None:
        failed = [f"the {engine.variant} variant did not build: {engine.error}" for engine in engines if engine.error]
        return Fact(state=FactState.UNKNOWN, evidence="; ".join(failed) or why_none)
    weighted = [layer for layer in sparse.layers if layer.has_weights]
    # TensorRT-RTX chooses kernels on the GPU, after the build: whatever its layers say is no observation.
    if sparse.builder == "tensorrt" and any(layer.chosen is not None for layer in weighted):
        return _from_layers(sparse, weighted)
    prefix = f"{sparse.builder} {sparse.builder_version} compiles for SM{sparse.sm}; sparsity not observable"
    control = next((engine for engine in built if engine.variant == "control"), None)
    if control is None:
        return Fact(state=FactState.UNKNOWN, evidence=f"{prefix}: there is no control variant to compare with")
    compared = compare_plans(folder / str(control.file), folder / str(sparse.file))
    return Fact(state=FactState.UNKNOWN, evidence=f"{prefix}: {compared.sentence}")


def faster_fact() -> Fact:
    """Building measures nothing that a user would call speed."""
    return Fact(state=FactState.UNKNOWN, evidence="not measured by export; run `nm2trt profile` on this folder")


def _from_layers(engine: EngineRecord, weighted: Sequence[LayerEvidence]) -> Fact:
    counts = Counter(layer.chosen for layer in weighted)
    hidden = f", {counts[None]} do not show it" if counts[None] else ""
    evidence = (
        f"{engine.builder} {engine.builder_version} on SM{engine.sm}: {counts[True]} of {len(weighted)} layers with "
        f"weights run a sparse kernel, {counts[False]} a dense one{hidden} (nm2trt inspect)"
    )
    if counts[True]:
        return Fact(state=FactState.PROVED, evidence=evidence)
    return Fact(state=FactState.UNKNOWN if counts[None] else FactState.DISPROVED, evidence=evidence)
