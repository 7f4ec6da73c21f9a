"""Prune a file on disk into a new one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError, Nm2trtError
from nm2trt.layers import LayerWeight, open_source
from nm2trt.pattern import NMPattern
from nm2trt.prune.magnitude import Magnitude, check_finite, magnitude_of, pruned
from nm2trt.prune.prune_schema import (
    DataRecord,
    LayerError,
    MagnitudeTotals,
    Permutation,
    PrunedLayer,
    PruneDocument,
)
from nm2trt.prune.selection import Decision, Request, ScoreWeights, decide
from nm2trt.prune.writers.open_file import open_stored
from nm2trt.prune.writers.staging import Staged, file_is_onnx, staged_copy
from nm2trt.prune.writers.stored import CheckpointFacts, StoredFile, StoredWeight, checkpoint_facts
from nm2trt.selectors import escape_glob
from nm2trt.verify import left_out_notes, verify_path

Watch = Callable[[str], None]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPruned:
    """What pruning with data decided; the file is still dense."""

    decisions: list[Decision]
    """With those layers dense whose inputs are not seen, or that cost too much."""
    weights: Mapping[str, Array]
    """Tensor name -> new values, as they are stored; one name for each tensor that was chosen."""
    errors: Mapping[str, LayerError]
    """The same names."""
    statistics: Mapping[str, Array]
    """Initializers of BatchNormalization nodes -> new values."""
    record: DataRecord
    problems: list[str]
    notes: list[str]


PruneWithData = Callable[[Path, Sequence[Decision]], DataPruned]
"""Called with a dense copy of the file and what was chosen."""


@dataclass(frozen=True, slots=True)
class PermuteOptions:
    """How long to look for permutations."""

    seconds: float = 20.0
    """For the whole network, on a usual core. Counted in operations, so that every machine finds the same."""
    seed: int = 0
    scores: ScoreWeights | None = None
    """Gives what is to be kept; None: magnitudes."""


def prune_path(
    source: Path,
    output: Path,
    request: Request,
    *,
    permute: PermuteOptions | None = None,
    with_data: PruneWithData | None = None,
    force: bool = False,
    watch: Watch = lambda _: None,
) -> PruneDocument:
    """Prune by magnitude or with data, write in the same format, and judge what was written before it takes its place.

    Args:
        source: As `nm2trt.layers.open_source` takes it, but no .npz.
        output: A file of the same format; a folder where `source` is a Hugging Face folder.
        request: Patterns and exclusions.
        permute: Look for input-channel permutations first (ONNX only); None: do not.
        with_data: Prunes with data (ONNX only); None: by magnitude.
        force: Replace an output file.
        watch: Called with what is being done.

    Returns:
        The document. Where its verdict is "fail", `output` was not written.

    Raises:
        ConfigError: Wrong output path or options.
        InputError: The source cannot be read or pruned.
    """
    if permute is not None and output.suffix.lower() != ".onnx":
        raise InputError(
            "a permutation needs the graph, which a checkpoint does not hold", where=source, hint="export it to ONNX"
        )
    # Before anything is copied, and in the words of the file that the user named.
    facts = checkpoint_facts(source)
    try:
        with staged_copy(source, output, force=force) as staged:
            try:
                return _written(_prune_staged(source, output, staged, facts, request, permute, with_data, watch))
            except Nm2trtError as error:
                raise _about_source(error, staged, source) from None
    except _NotWrittenError as stop:
        return stop.document


def _about_source(error: Nm2trtError, staged: Staged, source: Path) -> Nm2trtError:
    """The same error without the path of the copy under work, which is gone when the user reads it."""
    folder = str(staged.model.parent)
    if folder not in str(error):
        return error

    def renamed(text: str) -> str:
        for file in staged.files:
            text = text.replace(str(file), str(source))
        return text.replace(str(staged.model), str(source)).replace(folder, str(source.parent))

    return type(error)(renamed(error.what), where=renamed(error.where), hint=renamed(error.hint))


class _NotWrittenError(Exception):
    """Leaves the staging block so that nothing is written."""

    def __init__(self, document: PruneDocument) -> None:
        super().__init__()
        self.document = document


def _written(document: PruneDocument) -> PruneDocument:
    if document.verdict == "fail":
        raise _NotWrittenError(document)
    return document


def _prune_staged(
    source: Path,
    output: Path,
    staged: Staged,
    facts: CheckpointFacts | None,
    request: Request,
    permute: PermuteOptions | None,
    with_data: PruneWithData | None,
    watch: Watch,
) -> PruneDocument:
    files = [open_stored(file, facts) for file in staged.files]
    decisions = decide([weight for file in files for weight in file.weights], request, source)
    _check_any(decisions, request, source)
    before: dict[str, Magnitude] | None = None
    permutation: Permutation | None = None
    if permute is not None and file_is_onnx(staged.model):
        from nm2trt.prune.permutation.permute import permute_file

        before = _measured(decisions, source, watch)
        scored = permute.scores(staged.model, decisions) if permute.scores is not None else None
        permutation = permute_file(staged.model, decisions, permute.seconds, permute.seed, watch, scored)
        files = [open_stored(file, facts) for file in staged.files]
        decisions = decide([weight for file in files for weight in file.weights], request, source)
    found: DataPruned | None = None
    if with_data is None:
        after = _write(files, decisions, source, watch)
    else:
        found = with_data(staged.model, decisions)
        decisions = found.decisions
        _check_any(decisions, request, source)
        now, after = _write_with_data(files, decisions, found)
        before = before or now
    problems = [*_checked(staged, decisions, watch), *(found.problems if found is not None else ())]
    if permutation is not None and permutation.outputs == "differ":
        problems.append(f"the permuted network's outputs differ from the original's: {permutation.outputs_note}")
    before = before or after
    return PruneDocument(
        source=str(source),
        output=str(output),
        pattern=str(request.pattern),
        verdict="fail" if problems else "pass",
        problems=problems,
        notes=[*staged.notes, *(found.notes if found is not None else ()), *_notes(source, decisions, facts)],
        layers=[_row(decision, before, after, found) for decision in decisions],
        totals=_totals(decisions, before, after),
        permutation=permutation,
        calibrated=None if found is None else found.record,
    )


def _notes(source: Path, decisions: Sequence[Decision], facts: CheckpointFacts | None) -> list[str]:
    """What a checkpoint, which has no operators, leaves open."""
    if facts is None:
        unread = [layer for layer in open_source(source).layers() if layer.not_checked]
        kinds = Counter(layer.reason.summary() for layer in unread if layer.reason)
        words = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common())
        return [f"left as they are, since their operators are not read: {words}"] if unread else []
    notes = left_out_notes(open_source(source).left_out)
    if not facts.classifiers and sum(decision.pattern is not None for decision in decisions) > 1:
        notes.append("no classifier is known by its name; should one have been pruned, leave it out with --exclude")
    return notes


def _check_any(decisions: Sequence[Decision], request: Request, source: Path) -> None:
    if not any(decision.pattern is not None for decision in decisions):
        reasons = [f"{d.weight.layer.name}: {d.reason}" for d in decisions if d.weight.layer.reduction_axis is not None]
        reasons += [f"{d.weight.layer.name}: {d.reason}" for d in decisions if d.weight.layer.not_checked]
        raise InputError(
            f"no weight can be pruned to {request.pattern}" + (f" ({reasons[0]})" if reasons else ""),
            where=source,
            hint="see `nm2trt verify` for its layers",
        )


def _chosen(decisions: Sequence[Decision]) -> list[tuple[StoredWeight, NMPattern, int]]:
    """Each tensor once, with its pattern and reduction axis."""
    first: dict[object, tuple[StoredWeight, NMPattern, int]] = {}
    for decision in decisions:
        axis = decision.weight.layer.reduction_axis
        if decision.pattern is not None and axis is not None:
            first.setdefault(decision.weight.key, (decision.weight, decision.pattern, axis))
    return list(first.values())


def _measured(decisions: Sequence[Decision], source: Path, watch: Watch) -> dict[str, Magnitude]:
    """Tensor name -> what the pattern keeps of it as it is."""
    found = {}
    for weight, pattern, axis in _chosen(decisions):
        watch(f"measuring {weight.layer.name}")
        values = weight.values(weight.read())
        check_finite(values, weight.layer.name, source)
        found[weight.layer.name] = magnitude_of(values, pattern, axis)
    return found


def _write(
    files: Sequence[StoredFile], decisions: Sequence[Decision], source: Path, watch: Watch
) -> dict[str, Magnitude]:
    """Prune every chosen tensor in its file; tensor name -> what was kept."""
    found = {}
    for weight, pattern, axis in _chosen(decisions):
        watch(f"pruning {weight.layer.name}")
        stored = weight.read()
        values = weight.values(stored)
        check_finite(values, weight.layer.name, source)
        result, magnitude = pruned(stored, values, weight.layout, pattern, axis)
        weight.write(result)
        found[weight.layer.name] = magnitude
    for file in files:
        file.save()
    return found


def _write_with_data(
    files: Sequence[StoredFile], decisions: Sequence[Decision], found: DataPruned
) -> tuple[dict[str, Magnitude], dict[str, Magnitude]]:
    """Write what pruning with data chose; tensor name -> what pattern and mask keep of the dense values."""
    by_pattern, by_mask = {}, {}
    for weight, pattern, axis in _chosen(decisions):
        name = weight.layer.name
        stored, new = weight.read(), found.weights[name]
        best = magnitude_of(weight.values(stored), pattern, axis)
        kept = float(np.abs(stored[new != 0].astype(np.float64)).sum())
        by_pattern[name], by_mask[name] = best, Magnitude(best.total, kept, best.unstructured)
        weight.write(new)
    for file in files:
        if found.statistics:
            file.write_others(found.statistics)
        file.save()
    return by_pattern, by_mask


def _checked(staged: Staged, decisions: Sequence[Decision], watch: Watch) -> list[str]:
    """Ask verify about every pruned layer of the written copy."""
    problems = []
    wanted: dict[NMPattern, dict[str, LayerWeight]] = {}
    for weight, pattern, _ in _chosen(decisions):
        wanted.setdefault(pattern, {})[weight.layer.name] = weight.layer
    ours = {decision.weight.layer.name for decision in decisions}
    for pattern, layers in wanted.items():
        document = verify_path(
            staged.model,
            pattern,
            # A checkpoint's tensor that only the user called a weight is one for the check, too.
            layer_patterns={escape_glob(name): pattern for name in layers},
            watch=lambda layer: watch(f"checking {layer.name}"),
        )
        for name, layer in layers.items():
            checked = [verdict for verdict in document.layers if verdict.name == name]
            # Where functions are inlined, each reading may name their constants in its own way.
            checked = checked or [
                verdict
                for verdict in document.layers
                if verdict.name not in ours and (verdict.op, verdict.shape) == (layer.op, layer.shape)
            ]
            bad = [verdict.verdict for verdict in checked if verdict.verdict != "conforms"]
            if bad or not checked:
                problems.append(f"{name} is {bad[0] if bad else 'missing'} by {pattern} after pruning")
    return problems


def _row(
    decision: Decision, before: dict[str, Magnitude], after: dict[str, Magnitude], found: DataPruned | None
) -> PrunedLayer:
    layer = decision.weight.layer
    then, now = before.get(layer.name), after.get(layer.name)
    share = decision.pattern is not None and then is not None and now is not None
    return PrunedLayer(
        name=layer.name,
        node=layer.node,
        op=layer.op,
        shape=layer.shape,
        dtype=layer.dtype,
        axis=layer.reduction_axis,
        pattern=None if decision.pattern is None else str(decision.pattern),
        reason=decision.reason,
        why=decision.why,
        not_checked=layer.not_checked,
        magnitude=then.total if share and then else None,
        kept=_share(now.kept, now.total) if share and now else None,
        kept_unpermuted=_share(then.kept, then.total) if share and then else None,
        kept_unstructured=_share(then.unstructured, then.total) if share and then else None,
        output=found.errors.get(layer.name) if share and found is not None else None,
    )


def _totals(
    decisions: Sequence[Decision], before: dict[str, Magnitude], after: dict[str, Magnitude]
) -> MagnitudeTotals:
    now, then = sum(after.values(), Magnitude(0, 0, 0)), sum(before.values(), Magnitude(0, 0, 0))
    return MagnitudeTotals(
        tensors=len(after),
        weights=sum(math.prod(weight.layer.shape) for weight, _, _ in _chosen(decisions)),
        magnitude=then.total,
        kept=_share(now.kept, now.total),
        kept_unpermuted=_share(then.kept, then.total),
        kept_unstructured=_share(then.unstructured, then.total),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
