"""What engine builds prove of the two facts `chosen` and `faster`. A flag proves neither."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nm2trt.artifacts import EngineRecord, Fact, FactState
from nm2trt.engine.plans import compare_plans

_SPARSE_TACTIC = re.compile(r"sparse|spmma|sptensor|sp_?gemm", re.IGNORECASE)


def chosen_fact(engines: Sequence[EngineRecord], folder: Path, *, why_none: str) -> Fact:
    """Tell whether sparse kernels were chosen, as far as these builds show it.

    Args:
        engines: Records of one build folder.
        folder: Where their files are.
        why_none: The sentence for a build without engines.
    """
    built = [engine for engine in engines if engine.file is not None]
    sparse = next((engine for engine in built if engine.arm == "sparse"), None)
    if sparse is None:
        failed = [f"the {engine.arm} arm did not build: {engine.error}" for engine in engines if engine.error]
        return Fact(state=FactState.UNKNOWN, evidence="; ".join(failed) or why_none)
    layers = folder / "sparse.layers.json"
    if layers.is_file():
        return _from_layers(layers, sparse)
    prefix = f"{sparse.builder} {sparse.builder_version} compiles for SM{sparse.sm}; sparsity not observable"
    control = next((engine for engine in built if engine.arm == "control"), None)
    if control is None:
        return Fact(state=FactState.UNKNOWN, evidence=f"{prefix}: there is no control arm to compare with")
    compared = compare_plans(folder / str(control.file), folder / str(sparse.file))
    return Fact(state=FactState.UNKNOWN, evidence=f"{prefix}: {compared.sentence}")


def faster_fact() -> Fact:
    """Building measures nothing that a user would call speed."""
    return Fact(state=FactState.UNKNOWN, evidence="not measured by export; run `nm2trt profile` on this folder")


def sparse_tactics(layers: list[dict[str, Any]]) -> list[str]:
    """Names of the layers whose kernel is a sparse one, by `TacticName` alone.

    `HasSparseWeights` tells that the weights have the pattern and not that a sparse kernel runs
    (NVIDIA/TensorRT issue 4694).
    """
    return [str(layer.get("Name", "")) for layer in layers if _SPARSE_TACTIC.search(str(layer.get("TacticName", "")))]


def _from_layers(path: Path, engine: EngineRecord) -> Fact:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return Fact(state=FactState.UNKNOWN, evidence=f"{path.name}: the engine inspector wrote no readable JSON")
    layers = [layer for layer in raw.get("Layers", []) if isinstance(layer, dict)] if isinstance(raw, dict) else []
    named = [layer for layer in layers if layer.get("TacticName")]
    if not named:
        return Fact(state=FactState.UNKNOWN, evidence=f"{path.name}: no layer names its tactic")
    sparse = sparse_tactics(named)
    evidence = (
        f"{engine.builder} {engine.builder_version} on SM{engine.sm}: {len(sparse)} of {len(named)} layers that name "
        f"their tactic run a sparse kernel ({path.name})"
    )
    return Fact(state=FactState.PROVED if sparse else FactState.DISPROVED, evidence=evidence)
