"""Permute the channels of an ONNX file, so that pruning its weights keeps more of them and its outputs stay."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from nm2trt.layers.onnx_reader import weight_use
from nm2trt.onnx_tools.constants import Constant, load_tensor, resolve
from nm2trt.ort.compare_models import compare_outputs
from nm2trt.pattern import NMPattern
from nm2trt.prune.magnitude import comparable
from nm2trt.prune.permutation.channels import ChannelClass, ChannelTies, Ids
from nm2trt.prune.permutation.compute_rules import apply_rule
from nm2trt.prune.permutation.context import RuleContext
from nm2trt.prune.permutation.search import OPERATIONS_PER_SECOND, find_order, kept_score
from nm2trt.prune.prune_schema import ChannelGroup, Permutation
from nm2trt.prune.selection import Decision, ScoredWeights
from nm2trt.prune.writers.onnx_writer import OnnxFile, constant_values, tensor_key, unwritable, write_tensor

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Target:
    """A weight to prune, where an operator reads it."""

    name: str
    value: ir.Value
    axis: int
    pattern: NMPattern
    constant: Constant
    key: object
    scores: Array | None
    """Of the stored weights as they were, in their shape; None: their magnitudes."""


@dataclass(frozen=True, slots=True)
class _Edit:
    """A constant whose channels were moved, and the scores of its weights, which moved with them."""

    tensor: ir.TensorProtocol
    values: Array
    scores: Array | None


_Edits = dict[object, _Edit]


@dataclass(slots=True)
class _Job:
    """A class of channels with the weights that gain from moving them."""

    channels: ChannelClass
    parts: list[tuple[_Target, Ids]] = field(default_factory=list)
    """Targets with the positions of the channels along their reduction axis, [channels, positions]."""

    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(target.name for target, _ in self.parts))


def permute_file(
    path: Path,
    decisions: Sequence[Decision],
    seconds: float,
    seed: int,
    watch: Callable[[str], None],
    scored: ScoredWeights | None = None,
) -> Permutation:
    """Permute channels in place wherever that provably leaves the outputs alone and keeps more.

    Args:
        path: A copy of an ONNX file, its external data beside it.
        decisions: Which weights are going to be pruned.
        seconds: Work of the search, on a usual core.
        seed: Of the search.
        watch: Called with what is being done.
        scored: What is to be kept; weights that it does not hold are not looked at. None: magnitudes.

    Returns:
        What was permuted and what not, why, and whether ONNX Runtime finds the same outputs.
    """
    file = OnnxFile(path)
    ties = _ties(file.graph.model, path, watch)
    targets = _targets(file, decisions, path, scored)
    jobs, groups = _jobs(ties, targets)
    edited: _Edits = {}
    own = {target.key: target.scores for target in targets}
    work = seconds * OPERATIONS_PER_SECOND
    costs = [_cost(job) for job in jobs]
    for job, cost in zip(jobs, costs, strict=True):
        watch(f"permuting the {len(job.channels.positions)} input channels of {job.names()[0]}")
        groups.append(_permute(job, ties, edited, own, work * cost / sum(costs), seed))
    by = "magnitude" if scored is None else scored.method
    kept_before, kept_after = _mean_share(targets, {}), _mean_share(targets, edited)
    if not edited:
        return Permutation(
            groups=groups,
            scores=by,
            kept_before=kept_before,
            kept_after=kept_after,
            outputs="agree",
            largest_difference=0.0,
            outputs_note="nothing was permuted",
        )
    original = _copy(path)
    for edit in edited.values():
        write_tensor(edit.tensor, edit.values)
    file.save()
    watch("comparing outputs in ONNX Runtime")
    dtypes = {decision.weight.layer.dtype for decision in decisions if decision.pattern is not None}
    dtypes |= {decision.weight.layer.graph_dtype for decision in decisions if decision.pattern is not None}
    compared = compare_outputs(original, path, dtypes)
    shutil.rmtree(original.parent)
    return Permutation(
        groups=groups,
        scores=by,
        kept_before=kept_before,
        kept_after=kept_after,
        outputs=compared.outcome,
        largest_difference=compared.largest_difference,
        outputs_note=compared.note.replace(str(original.parent), "").replace(str(path.parent), ""),
    )


def _copy(path: Path) -> Path:
    """The file and its external data as they are now, in a folder beside it."""
    folder = path.parent / ".before"
    shutil.copytree(path.parent, folder, ignore=shutil.ignore_patterns(".before"))
    return folder / path.name


# What may move


def _ties(model: ir.Model, path: Path, watch: Callable[[str], None]) -> ChannelTies:
    watch("following channels through the graph")
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    ties = ChannelTies()
    context = RuleContext(ties, path)
    for value in model.graph.inputs:
        if value.is_initializer():
            # Files of old IR versions list their weights as inputs, too.
            continue
        ties.fix_all(value, f"it is graph input {value.name!r}")
    for value in model.graph.outputs:
        ties.fix_all(value, f"it makes graph output {value.name!r}")
    _tie_constants(model, ties)
    for node in model.graph:
        apply_rule(context, node)
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
                for graph in graphs:
                    _fix_subgraph(graph, ties, f"a subgraph of {node.op_type} {node.name!r} reads it")
    context.reshapes.settle()
    ties.settle()
    return ties


def _fix_subgraph(graph: ir.Graph, ties: ChannelTies, reason: str) -> None:
    """Subgraphs are not followed: what they read keeps its order."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.inputs:
            if value is not None:
                ties.fix_all(value, reason)
    for value in graph.outputs:
        ties.fix_all(value, reason)


def _tie_constants(model: ir.Model, ties: ChannelTies) -> None:
    """Constants that share their bytes move together; what cannot be written stays."""
    first: dict[object, ir.Value] = {}
    for value in constant_values(model):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            ties.fix_all(value, f"constant {value.name!r} cannot be read")
            continue
        if value.shape is None:
            value.shape = ir.Shape(tuple(tensor.shape.numpy()))
        if reason := unwritable(tensor):
            ties.fix_all(value, f"constant {value.name!r} is {reason}")
        known = first.setdefault(tensor_key(tensor), value)
        if known is not value:
            for axis in range(len(value.shape)):
                ties.same(known, axis, value, axis)


def _targets(file: OnnxFile, decisions: Sequence[Decision], path: Path, scored: ScoredWeights | None) -> list[_Target]:
    patterns = {d.weight.key: d.pattern for d in decisions if d.pattern is not None}
    names = {d.weight.key: d.weight.layer.name for d in decisions}
    # Embedded tensors are known by their Python object, so keys of another reading do not do.
    by_name = {names[key]: pattern for key, pattern in patterns.items()}
    found: dict[tuple[ir.Value, int], _Target] = {}
    for node in file.graph.model.graph:
        use = weight_use(node, path)
        pattern = by_name.get(use.constant.name) if use is not None else None
        if use is None or use.axis is None or pattern is None:
            continue
        scores = None if scored is None else scored.scores.get(use.constant.name)
        if scored is not None and scores is None:
            continue
        for value in node.inputs:
            constant = resolve(value, path)
            if value is not None and constant is not None and constant.tensor is use.constant.tensor:
                key = tensor_key(constant.tensor)
                found.setdefault(
                    (value, use.axis), _Target(constant.name, value, use.axis, pattern, constant, key, scores)
                )
    return list(found.values())


def _jobs(ties: ChannelTies, targets: Sequence[_Target]) -> tuple[list[_Job], list[ChannelGroup]]:
    """Classes of channels to search, and the groups that cannot move."""
    jobs: dict[bytes, _Job] = {}
    held: dict[tuple[int, str], list[str]] = {}
    for target in targets:
        classes, reason = ties.classes_of(target.value, target.axis)
        if not classes:
            names = held.setdefault((target.constant.shape[target.axis], reason), [])
            if target.name not in names:
                names.append(target.name)
        for found in classes:
            job = jobs.setdefault(np.sort(found.positions[:, 0]).tobytes(), _Job(found))
            for value, axis, inside in ties.axes_of(job.channels):
                if value is target.value and axis == target.axis:
                    job.parts.append((target, inside))
    groups = [
        ChannelGroup(channels=size, weights=tuple(names), permuted=False, reason=reason, tensors=0)
        for (size, reason), names in held.items()
    ]
    return list(jobs.values()), groups


# Search and apply


def _cost(job: _Job) -> float:
    channels = float(len(job.channels.positions))
    rows = sum(math.prod(target.constant.shape) / target.constant.shape[target.axis] for target, _ in job.parts)
    return max(channels**2 * rows, 1.0)


def _permute(
    job: _Job,
    ties: ChannelTies,
    edited: _Edits,
    own: Mapping[object, Array | None],
    work: float,
    seed: int,
) -> ChannelGroup:
    count = len(job.channels.positions)

    def kept_in_place(reason: str) -> ChannelGroup:
        return ChannelGroup(channels=count, weights=job.names(), permuted=False, reason=reason, tensors=0)

    largest = max(job.parts, key=lambda part: math.prod(part[0].constant.shape))[0].pattern
    blocks = [
        block for target, places in job.parts if target.pattern == largest for block in _blocks(target, places, edited)
    ]
    if not blocks:
        return kept_in_place(f"its channels do not fill whole groups of {largest.m}")
    order = find_order(np.concatenate(blocks), largest, work=work, seed=seed)
    if np.array_equal(order, np.arange(count)):
        return kept_in_place("no better order was found")
    if not ties.keeps(job.channels, order):
        return kept_in_place("moving its channels would not leave every operator as it is")
    changed = _moved(job, ties, order, edited, own)
    if _kept(job, {**edited, **changed}) <= _kept(job, edited):
        return kept_in_place("no better order was found")
    edited.update(changed)
    return ChannelGroup(channels=count, weights=job.names(), permuted=True, reason="", tensors=len(changed))


def _blocks(target: _Target, places: Ids, edited: _Edits) -> list[Array]:
    """Rows of scores over the channels, for every run of positions that fills whole groups of M in order."""
    m = target.pattern.m
    if len(places) % m:
        return []
    rows = _rows(target, edited)
    whole = [run for run in places.T if _fills_groups(run, m)]
    return [rows[:, run] for run in whole]


def _fills_groups(run: Ids, m: int) -> bool:
    groups = run.reshape(-1, m)
    return bool((groups[:, 0] % m == 0).all() and (np.diff(groups, axis=1) == 1).all())


def _rows(target: _Target, edited: _Edits) -> Array:
    """Scores of a weight, [rows, reduction axis]."""
    edit = edited.get(target.key)
    if target.scores is None:
        values = _load(target.constant.tensor, target) if edit is None else edit.values
    else:
        values = target.scores if edit is None or edit.scores is None else edit.scores
    for step in target.constant.layout:
        values = step(values)
    rows = np.moveaxis(comparable(values), target.axis, -1)
    return rows.reshape(-1, rows.shape[-1])


def _load(tensor: ir.TensorProtocol, target: _Target) -> Array:
    return load_tensor(tensor, target.constant.where)


def _kept(job: _Job, edited: _Edits) -> float:
    """Score that pruning would keep of the job's weights."""
    targets = {target.key: target for target, _ in job.parts}
    return sum(kept_score(_rows(target, edited), target.pattern) for target in targets.values())


def _mean_share(targets: Sequence[_Target], edited: _Edits) -> float:
    """Share of its score that pruning would keep, mean of all tensors."""
    shares = []
    for target in {target.key: target for target in targets}.values():
        rows = _rows(target, edited)
        total = float(rows.sum(dtype=np.float64))
        shares.append(kept_score(rows, target.pattern) / total if total else 1.0)
    return float(np.mean(shares)) if shares else 1.0


def _moved(
    job: _Job, ties: ChannelTies, order: NDArray[np.intp], edited: _Edits, own: Mapping[object, Array | None]
) -> _Edits:
    """Every constant that the channels run through, with its positions in the new order."""
    changed: _Edits = {}
    done: set[tuple[object, int]] = set()
    where = job.parts[0][0].constant.where
    for value, axis, inside in ties.axes_of(job.channels):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or (tensor_key(tensor), axis) in done:
            continue
        key = tensor_key(tensor)
        done.add((key, axis))
        source = changed.get(key) or edited.get(key)
        if source is None:
            source = _Edit(tensor, np.array(load_tensor(tensor, where)), own.get(key))
        changed[key] = _Edit(
            tensor,
            _reordered(source.values, axis, inside, order),
            None if source.scores is None else _reordered(source.scores, axis, inside, order),
        )
    return changed


def _reordered(array: Array, axis: int, inside: Ids, order: NDArray[np.intp]) -> Array:
    result = array.copy()
    index: list[Any] = [slice(None)] * array.ndim
    index[axis] = inside.reshape(-1)
    origin: list[Any] = [slice(None)] * array.ndim
    origin[axis] = inside[order].reshape(-1)
    result[tuple(index)] = array[tuple(origin)]
    return result
