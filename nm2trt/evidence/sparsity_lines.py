"""The `(Sparsity)` lines of a builder's log, put together again where something broke them or printed between them.

Up to 10.2: `(Sparsity) Layers eligible for sparse math: a, b`, then `(Sparsity) TRT inference plan picked sparse
implementation for layers: b`. From 10.3 on: `(Sparsity) Found 2 layer(s) eligible to use sparse tactics: a, b`, then
`(Sparsity) Chose 1 layer(s) using sparse tactics: b`, the lists mostly in verbose logs only. 10.3 adds the chosen
ones to the wrong counter, so its counts contradict its lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from nm2trt.evidence.names import split_list, split_top
from nm2trt.evidence.text import LogLine

_MARK = "(Sparsity) "
_FOUND = re.compile(
    r"\(Sparsity\) (?:Layers eligible for sparse math|Found (?P<count>\d+) layer\(s\) eligible to use sparse tactics)"
    r"\s*(?::(?P<names>.*))?$",
    re.DOTALL,
)
_CHOSE = re.compile(
    r"\(Sparsity\) (?:TRT inference plan picked sparse implementation for layers"
    r"|Chose (?P<count>\d+) layer\(s\) using sparse tactics)\s*(?::(?P<names>.*))?$",
    re.DOTALL,
)
_LINE_STARTS = re.compile(r"Layer\(\w|Name: .*, LayerType: |[{\"]|##\[|::\w|=== ")
_MOST_PIECES = 4096
_MOST_BREAKS = 4
"""Of the phrase before a list."""
_LONGEST_PIECE = 1 << 14
_DANGLING = (",", "+", "||")
_NUMBER_OF_NAME = re.compile(r"_\d+(?:,| \+|\s*$)")
"""Begins the rest of a name that was broken before its number."""
_FUSION = re.compile(r" \+ | \|\| |PWN\(|[(){}\[\]]")
_BARE_NAMES = frozenset({"fc", "classifier", "head"})
_OPERATORS = frozenset(
    [
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "Conv",
        "ConvTranspose",
        "DequantizeLinear",
        "Div",
        "Einsum",
        "Elu",
        "Erf",
        "Exp",
        "Expand",
        "FC",
        "Flatten",
        "Gather",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LayerNormalization",
        "LeakyRelu",
        "Linear",
        "MatMul",
        "Max",
        "MaxPool",
        "Mean",
        "Min",
        "Mish",
        "Mul",
        "Pad",
        "Pow",
        "PRelu",
        "QuantizeLinear",
        "ReduceMean",
        "Relu",
        "Reshape",
        "Resize",
        "Shape",
        "Sigmoid",
        "SiLU",
        "Slice",
        "Softmax",
        "Softplus",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Swish",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Upsample",
    ]
)


@dataclass(frozen=True, slots=True)
class SparsityPass:
    """One pair of lines; a list is None where the line only counts, and `chosen` is None where its line is missing."""

    eligible: tuple[str, ...] | None
    eligible_count: int
    """As the line counts; the length of its list where it has no count."""
    chosen: tuple[str, ...] | None = None
    chosen_count: int | None = None

    @property
    def contradicts(self) -> bool:
        """The counts are wrong and the lists right: 10.3 adds the chosen layers to the count of eligible ones."""
        if self.eligible is None or self.chosen is None or self.chosen_count is None:
            return False
        wrong = self.eligible_count != len(self.eligible) or self.chosen_count != len(self.chosen)
        return wrong and self.chosen_count <= len(self.chosen) and self._counted_together

    @property
    def is_complete(self) -> bool:
        """Whether the list of eligible layers holds all that the line counts."""
        return self.eligible is not None and (self.eligible_count <= len(self.eligible) or self.contradicts)

    @property
    def _counted_together(self) -> bool:
        listed = len(self.eligible or ())
        return self.eligible_count <= listed or self.eligible_count == listed + len(self.chosen or ())


@dataclass(slots=True)
class _Held:
    text: str
    pieces: list[str] = field(default_factory=list)


class SparsityReader:
    """Collects the passes from lines that come one by one."""

    def __init__(self) -> None:
        self.passes: list[SparsityPass] = []
        self.ignored = 0
        """Lines right behind a list that were not taken for a part of it."""
        self._held: dict[str, _Held] = {}
        self._open: dict[str, int] = {}

    def feed(self, line: LogLine) -> None:
        """Take the next line."""
        at = line.text.find(_MARK)
        if at >= 0:
            self._flush(line.source)
            self._held[line.source] = _Held(line.text[at:])
        elif self._held and (held := self._held.get(line.source)) is not None:
            is_full = len(held.pieces) >= _MOST_PIECES or len(line.text) > _LONGEST_PIECE
            if line.is_message or is_full or _LINE_STARTS.match(line.text):
                self._flush(line.source)
            elif line.text.strip():
                held.pieces.append(line.text)

    def finish(self) -> tuple[SparsityPass, ...]:
        """All passes, in order."""
        for source in list(self._held):
            self._flush(source)
        return tuple(self.passes)

    def _flush(self, source: str) -> None:
        held = self._held.pop(source, None)
        if held is None:
            return
        text, used = join_pieces(held.text, held.pieces)
        self.ignored += len(held.pieces) - used
        if (found := _FOUND.search(text)) is not None:
            names, count = _listed(found)
            self._open[source] = len(self.passes)
            self.passes.append(SparsityPass(eligible=names, eligible_count=count))
        elif (chose := _CHOSE.search(text)) is not None:
            names, count = _listed(chose)
            at = self._open.pop(source, None)
            if at is None:
                # A torn log lost the line before: what is chosen was eligible, and there may be more.
                self.passes.append(SparsityPass(None if names is None else names, count, names, count))
            else:
                self.passes[at] = replace(self.passes[at], chosen=names, chosen_count=count)


def _listed(match: re.Match[str]) -> tuple[tuple[str, ...] | None, int]:
    counted = match.group("count")
    names = tuple(dict.fromkeys(split_list(match.group("names") or "")))
    if counted is None:
        return names, len(names)
    count = int(counted[:9])
    # Without verbose logging, "Found 39 layer(s) ..." names none of them.
    return (names if names or not count else None), count


def join_pieces(first: str, pieces: list[str]) -> tuple[str, int]:
    """Append to a `(Sparsity)` line those of the next lines that belong to it.

    A terminal breaks such lines, and other programs print behind them: "done" must not become a layer. A piece
    belongs to the list if a separator or an open bracket is waiting for it, if it begins with one, or if the broken
    name and it give a name like the others.

    Returns:
        The whole line, and how many pieces it took.
    """
    text, used = _complete_phrase(first, pieces)
    taken = used
    for piece in pieces[used:]:
        glue = _glue(text, piece)
        if glue is None:
            if not _waits(text):
                break
            # Somebody else's line in between.
            continue
        text = f"{text.rstrip() if glue else text}{glue}{piece.lstrip() if glue else piece}"
        taken += 1
    return text, taken


def _complete_phrase(first: str, pieces: list[str]) -> tuple[str, int]:
    """Append the pieces without which a line is none of the builder's phrases, broken between words or within one."""
    candidates = [first]
    for used in range(min(_MOST_BREAKS, len(pieces)) + 1):
        complete = next((text for text in candidates if _FOUND.search(text) or _CHOSE.search(text)), None)
        if complete is not None:
            return complete, used
        if used < len(pieces):
            candidates = [
                f"{text.rstrip()}{glue}{pieces[used].lstrip()}" if glue else f"{text}{pieces[used]}"
                for text in candidates
                for glue in ("", " ")
            ]
    return first, 0


def _waits(text: str) -> bool:
    names = text.partition(":")[2].rstrip()
    return names.endswith(_DANGLING) or _depth(names) > 0


def _depth(text: str) -> int:
    return sum(text.count(one) for one in "([{") - sum(text.count(one) for one in ")]}")


def _glue(text: str, piece: str) -> str | None:
    """What stands between a line and its next piece; None where the piece does not belong to it."""
    names = text.partition(":")[2]
    stripped, start = names.rstrip(), piece.lstrip()
    if not names.strip():
        # "...for layers:" and the whole list on the next line, or nothing chosen and somebody else's line.
        return " " if _all_known(split_list(piece), frozenset()) else None
    if start.startswith(("+ ", "|| ", ",", ")", "]", "}")):
        return "" if start.startswith((",", ")", "]", "}")) or piece != start else " "
    if _depth(names) > 0:
        return " " if stripped.endswith((",", " +", "||")) else ""
    if stripped.endswith(_DANGLING):
        return " " if _is_list(start) else None
    if stripped.endswith("_") or _NUMBER_OF_NAME.match(start) is not None:
        return "" if _is_list(start) else None
    if not re.search(r"[A-Za-z]", piece):
        return None
    known = frozenset(_token(part) for name in split_list(names)[:-1] for part in _fused(name))
    last = split_list(names)[-1]
    return "" if _all_known(split_list(last + piece), known) else None


def _is_list(text: str) -> bool:
    """Whether these may be names of layers: none holds a space but around a fusion."""
    return all(" " not in part.strip() for name in split_list(text) for part in _fused(name))


def _fused(name: str) -> list[str]:
    return [part.strip() for part in _FUSION.split(name) if part.strip()]


def _token(name: str) -> str:
    """What names of one kind share: Conv_12 and Conv_9, layer1.0.conv1 and layer4.1.conv2."""
    return re.sub(r"\d+", "", name.rpartition("/")[2]).rstrip("_")


def _all_known(names: Iterable[str], known: frozenset[str]) -> bool:
    parts = [part for name in names for part in _fused(name)]
    return bool(parts) and all(
        (token := _token(part)) in known or token in _OPERATORS or part in _BARE_NAMES for part in parts
    )


def split_merged(name: str) -> list[str]:
    """Convolutions that were merged into one layer, `a || b`."""
    return split_top(name, " || ")
