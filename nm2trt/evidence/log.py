"""What a builder's log shows: the `(Sparsity)` lines and the layers that it prints.

The `(Sparsity)` lines repeat, once for each Myelin subgraph and each pass over the tactics. They are combined so:
where they list names, the last pair that lists a layer as eligible decides about that layer, since a later pass
replaces an earlier one and another subgraph has other layers. Where they only count, passes and subgraphs cannot be
told apart, so the largest count of each kind is a lower bound, and no layer is named.
"""

from __future__ import annotations

from dataclasses import dataclass

from nm2trt.evidence.inspector import InspectedLayer
from nm2trt.evidence.layer_dumps import LayerReader
from nm2trt.evidence.sparsity_lines import SparsityPass, SparsityReader
from nm2trt.evidence.text import LogLine

__all__ = ["BuildLog", "BuildLogReader", "SparsityPass"]

_COUNTS_RIGHT_FROM = (10, 14)
"""Releases of the newer family before this one may count chosen layers as zero; seen in 10.3."""


@dataclass(frozen=True, slots=True)
class BuildLog:
    """What a build log shows of sparsity."""

    passes: tuple[SparsityPass, ...]
    layers: tuple[InspectedLayer, ...]
    """As the log prints them; of the last engine where it holds several."""
    version: tuple[int, ...] = ()
    """Of TensorRT; empty where the log does not say."""
    notes: tuple[str, ...] = ()
    """What was odd about it."""

    @property
    def eligible(self) -> dict[str, bool | None]:
        """Layers that some pass lists as eligible; True where a sparse kernel was chosen, None where no line tells."""
        state: dict[str, bool | None] = {}
        for one in self.passes:
            for name in one.eligible or ():
                is_told = one.chosen is not None and (bool(one.chosen) or one.is_complete or self.zero_is_known)
                state[name] = name in (one.chosen or ()) if is_told else None
            # A layer that is chosen was eligible, even if a torn log lost the line that says so.
            state.update(dict.fromkeys(one.chosen or (), True))
        return state

    @property
    def zero_is_known(self) -> bool:
        """Whether a count of no chosen layer, without a list, can be believed."""
        newer = any(not one.is_complete for one in self.passes)
        return not newer or self.version >= _COUNTS_RIGHT_FROM

    @property
    def names_layers(self) -> bool:
        """Whether every pass lists its layers, so that a layer that is not listed is not eligible."""
        return bool(self.passes) and all(one.is_complete for one in self.passes)

    @property
    def eligible_count(self) -> int | None:
        """Layers found eligible: exact where they are listed, otherwise at least so many. None without such lines."""
        if not self.passes:
            return None
        if self.names_layers:
            return len(self.eligible)
        return max(len(self.eligible), *(one.eligible_count for one in self.passes))

    @property
    def chosen_count(self) -> int | None:
        """Layers with a sparse kernel: exact where they are listed, otherwise at least so many."""
        counts = [max(one.chosen_count, len(one.chosen or ())) for one in self.passes if one.chosen_count is not None]
        if self.names_layers and len(counts) == len(self.passes):
            listed = self.eligible.values()
            if None not in listed:
                return sum(value is True for value in listed)
        return max(counts) if counts else None

    @property
    def how(self) -> str:
        """How the lines were combined, for people."""
        if not self.passes:
            return "the log holds no (Sparsity) line"
        if len(self.passes) == 1:
            return "one pair of (Sparsity) lines"
        if self.names_layers:
            return f"{len(self.passes)} pairs of (Sparsity) lines: the last that lists a layer decides about it"
        return f"{len(self.passes)} pairs of (Sparsity) lines that only count: the largest count is a lower bound"

    @property
    def doubts(self) -> tuple[str, ...]:
        """Where the lines contradict themselves or leave something open, for people."""
        found = [
            f"the log's counts ({one.eligible_count} eligible, {one.chosen_count} chosen) and its lists "
            f"({len(one.eligible or ())}, {len(one.chosen or ())}) disagree: the lists are taken, since TensorRT 10.3 "
            "adds chosen layers to the wrong counter"
            for one in self.passes
            if one.contradicts
        ]
        found += [
            f"the log counts {one.eligible_count} eligible layers and lists {len(one.eligible)}: the list is cut short"
            for one in self.passes
            if one.eligible and not one.is_complete
        ]
        if any(one.chosen_count == 0 and not one.is_complete for one in self.passes) and not self.zero_is_known:
            found.append(
                "the log counts no chosen layer, which TensorRT before 10.14 also does where sparse kernels run; the "
                "lists of a --verbose log decide"
            )
        return (*found, *self.notes)


class BuildLogReader:
    """Collects a build log from lines that come one by one."""

    def __init__(self) -> None:
        self._sparsity = SparsityReader()
        self._layers = LayerReader()

    def feed(self, line: LogLine) -> None:
        """Take the next line."""
        self._sparsity.feed(line)
        self._layers.feed(line)

    def finish(self, version: tuple[int, ...] = ()) -> BuildLog:
        """The log; `version` is TensorRT's, where it is known."""
        passes = self._sparsity.finish()
        notes = []
        if self._sparsity.ignored:
            notes.append(
                f"{self._sparsity.ignored} lines right behind the (Sparsity) lines were not taken for names of layers"
            )
        return BuildLog(passes=passes, layers=self._layers.finish(), version=version, notes=tuple(notes))
