"""Joins what log, inspector and graph show into one `LayerEvidence` for each layer of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nm2trt.artifacts.layer_evidence import NO_WEIGHTS, LayerEvidence
from nm2trt.evidence.inspector import InspectedLayer, Inspection
from nm2trt.evidence.log import BuildLog
from nm2trt.evidence.matching import OnnxNodes, match_layer, match_name, weights_of
from nm2trt.evidence.names import split_profile
from nm2trt.evidence.tactics import tactic_verdict
from nm2trt.evidence.weights import POINTWISE, has_weights

_MOST_PROFILES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEvidence:
    """All layers of an engine, with what the builder counted."""

    layers: tuple[LayerEvidence, ...]
    log_eligible: int | None
    """As the log's (Sparsity) lines count; None without such lines."""
    log_chosen: int | None
    log_is_exact: bool = True
    """The log lists its layers; else its counts are lower bounds."""
    notes: tuple[str, ...]
    """How log lines were combined, what could not be read."""


@dataclass(frozen=True, slots=True)
class _Sight:
    """What is known beside the layer itself."""

    log: BuildLog | None
    graph: OnnxNodes | None
    legal: Mapping[str, str]
    """ONNX node name -> "eligible", or why TensorRT does not consider it, as verify found."""
    logged: Mapping[str, bool | None]
    lost: bool
    """The log names layers that could not be led back to any of the engine."""


def engine_evidence(
    inspection: Inspection | None,
    log: BuildLog | None,
    graph: OnnxNodes | None = None,
    *,
    legal: Mapping[str, str] | None = None,
    profile: int | None = None,
) -> EngineEvidence:
    """Check every layer of one engine.

    Args:
        inspection: The engine inspector's output; None where the engine cannot be inspected, as with TensorRT-RTX
            without a GPU: then the dump in a verbose build log stands in.
        log: The build log, or None.
        graph: The ONNX network, or None.
        legal: ONNX node name -> "eligible" or the reason why not, from nm2trt's judge; used where neither the log nor
            the inspector tells.
        profile: Optimization profile whose layers are wanted; the first where the engine has no such profile.

    Returns:
        Layers in the order in which they run; then those that only the log names, if some layer may hide them.
    """
    inspected, profile_notes = _one_profile(
        inspection.layers if inspection is not None else log.layers if log is not None else (), profile
    )
    logged = log.eligible if log is not None else {}
    nodes_of_logged = {nodes: name for name in logged if (nodes := tuple(sorted(match_name(name, graph))))}
    nodes_of = [match_layer(one, graph) for one in inspected]
    named = [
        _log_names(one.name, nodes, logged, nodes_of_logged) for one, nodes in zip(inspected, nodes_of, strict=True)
    ]
    lost = [name for name in logged if name not in set().union(*named)]
    sight = _Sight(log, graph, legal or {}, logged, bool(lost))
    owned = {
        weight
        for one, nodes in zip(inspected, nodes_of, strict=True)
        if one.type != POINTWISE
        for weight in weights_of(nodes, graph)
    }
    layers = [
        _layer(one, nodes, names, sight, owned) for one, nodes, names in zip(inspected, nodes_of, named, strict=True)
    ]
    notes = [*(inspection.notes if inspection is not None else ()), *profile_notes]
    if lost and len(lost) == len(logged) and layers and all(one.weighted is not None for one in layers):
        # No layer may hide them.
        notes.append(
            f"none of the {len(lost)} layers that the log lists is one of the engine's: the log is another "
            "engine's, and counts for nothing here"
        )
    else:
        layers += [_logged_only(name, sight) for name in lost]
    if log is not None:
        notes += [log.how, *log.doubts]
        if inspection is None and log.layers:
            notes.append("layers are those that the log prints; no inspector output was given")
    return EngineEvidence(
        layers=tuple(layers),
        log_eligible=log.eligible_count if log is not None else None,
        log_chosen=log.chosen_count if log is not None else None,
        log_is_exact=log is None or log.names_layers,
        notes=tuple(notes),
    )


def _one_profile(
    layers: tuple[InspectedLayer, ...], wanted: int | None
) -> tuple[tuple[InspectedLayer, ...], list[str]]:
    """The layers of one optimization profile: with several, the engine lists each layer once for each."""
    numbers = [split_profile(layer.name)[1] for layer in layers]
    if len(set(numbers)) < 2:
        names = [layer.name for layer in layers]
        times = next((count for count in range(_MOST_PROFILES, 1, -1) if _is_repeated(names, count)), 1)
        if times == 1:
            return layers, []
        return layers[: len(layers) // times], [
            f"the file lists every layer {times} times, in the same order: counted once"
        ]
    shown = wanted if wanted in numbers else min(numbers)
    kept = tuple(layer for layer, number in zip(layers, numbers, strict=True) if number == shown)
    sparse = {
        number: sum(
            one == number and tactic_verdict(layer.tactic) == "sparse"
            for layer, one in zip(layers, numbers, strict=True)
        )
        for number in sorted(set(numbers))
    }
    note = f"the engine has {len(sparse)} optimization profiles; layers are those of profile {shown}"
    if any(layer.tactic for layer in layers):
        counts = ", ".join(f"profile {number}: {count}" for number, count in sparse.items())
        note += f" (sparse kernels by name, {counts})"
    return kept, [note]


def _is_repeated(names: list[str], count: int) -> bool:
    """Whether a list of several names stands `count` times behind itself."""
    size, rest = divmod(len(names), count)
    return size > 1 and not rest and len(set(names)) == size and names == names[:size] * count


def _layer(
    layer: InspectedLayer, nodes: tuple[str, ...], names: list[str], sight: _Sight, owned: set[str]
) -> LayerEvidence:
    weights = weights_of(nodes, sight.graph)
    if layer.type == POINTWISE and owned.issuperset(weights):
        # Myelin names a convolution's node also on the kernel that prepares its input.
        weights = ()
    weighted = has_weights(layer, nodes, weights, is_listed=bool(names), has_graph=sight.graph is not None)
    if weighted is False:
        eligible: bool | None = False
        chosen: bool | None = False
        why, why_chosen = NO_WEIGHTS, ""
    else:
        eligible, why_eligible = _eligible(layer, names, nodes, sight, weighted=weighted)
        chosen, why_chosen = _chosen(layer, names, sight, eligible=eligible)
        if chosen and eligible is None:
            eligible, why_eligible = True, ""
        if weighted is None and (eligible or chosen):
            weighted = True
        why = "; ".join(filter(None, (why_eligible, why_chosen)))
    return LayerEvidence(
        name=layer.name,
        type=layer.type,
        onnx_nodes=nodes,
        torch_names=weights,
        kernel=layer.tactic or None,
        eligible=eligible,
        chosen=chosen,
        weighted=weighted,
        why=why,
        why_chosen=why_chosen,
    )


def _log_names(
    name: str, nodes: tuple[str, ...], logged: Mapping[str, bool | None], by_nodes: Mapping[tuple[str, ...], str]
) -> list[str]:
    """The log's entries about a layer: by its own name, else those all of whose nodes run in it."""
    if name in logged:
        return [name]
    inside = set(nodes)
    return [entry for inner, entry in by_nodes.items() if inside.issuperset(inner)]


def _eligible(
    layer: InspectedLayer, names: list[str], nodes: tuple[str, ...], sight: _Sight, *, weighted: bool | None
) -> tuple[bool | None, str]:
    if names:
        return True, "listed as eligible in the log"
    # What a layer of unknown kind holds inside may be listed under names of its own.
    if weighted and sight.log is not None and sight.log.names_layers and not sight.lost:
        return False, "not among the eligible layers of the log"
    if layer.has_sparse_weights is not None:
        return (
            layer.has_sparse_weights,
            f"HasSparseWeights {int(layer.has_sparse_weights)}: of the weights, not the kernel",
        )
    checked = [sight.legal[node] for node in nodes if node in sight.legal]
    if "eligible" in checked:
        return True, "by the pattern of its weights"
    if checked:
        return False, checked[0]
    return None, "nothing shows whether it is eligible"


def _chosen(
    layer: InspectedLayer, names: list[str], sight: _Sight, *, eligible: bool | None
) -> tuple[bool | None, str]:
    logged = [sight.logged[name] for name in names]
    verdict = tactic_verdict(layer.tactic)
    if verdict != "unknown":
        chosen = verdict == "sparse"
        if names and None not in logged and any(logged) != chosen:
            return chosen, "the kernel's name contradicts the log, and the name is the engine's own"
        return chosen, f"the kernel's name is that of a {verdict} one"
    if names and None not in logged:
        picked = sum(value is True for value in logged)
        return picked > 0, f"{picked} of {len(names)} sparse in the log" if len(names) > 1 else "as the log says"
    if eligible is False:
        return False, ""
    if layer.tactic == "__myelin_CASK_STUB":
        return None, "sparsity not observable: the kernel is chosen later, on the GPU"
    if layer.tactic:
        return None, "the kernel's name does not tell"
    if sight.log is not None and sight.log.passes and sight.log.chosen_count == 0 and sight.log.zero_is_known:
        return False, "the log counts no sparse kernel"
    return None, "the engine names no kernel"


def _logged_only(name: str, sight: _Sight) -> LayerEvidence:
    nodes = match_name(name, sight.graph)
    chosen = sight.logged[name]
    why_chosen = "" if chosen is not None else "no line tells whether it was chosen"
    return LayerEvidence(
        name=name,
        type="",
        onnx_nodes=nodes,
        torch_names=weights_of(nodes, sight.graph),
        eligible=True,
        chosen=chosen,
        weighted=True,
        why="; ".join(filter(None, ("named in the build log only", why_chosen))),
        why_chosen=why_chosen,
    )
