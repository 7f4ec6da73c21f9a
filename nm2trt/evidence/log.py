"""Build logs of TensorRT, trtexec, polygraphy and TensorRT-RTX: the `(Sparsity)` lines and the dump of layers.

Up to 10.x: `(Sparsity) Layers eligible for sparse math: a, b`, then `(Sparsity) TRT inference plan picked sparse
implementation for layers: b`. From 10.14: `(Sparsity) Found 2 layer(s) eligible to use sparse tactics: a, b`, then
`(Sparsity) Chose 1 layer(s) using sparse tactics: b`, the lists only in verbose logs.

The lines repeat, once for each Myelin subgraph and each pass over the tactics. They are combined so: where they list
names, the last pair that lists a layer as eligible decides about that layer, since a later pass replaces an earlier one
and another subgraph has other layers. Where they only count, passes and subgraphs cannot be told apart, so the largest
count of each kind is a lower bound, and no layer is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nm2trt.errors import InputError
from nm2trt.evidence.inspector import InspectedLayer, TensorInfo
from nm2trt.evidence.names import metadata_nodes, split_list

_FOUND = re.compile(
    r"\(Sparsity\) (?:Layers eligible for sparse math|Found (?P<count>\d+) layer\(s\) eligible to use sparse tactics)"
    r"\s*(?::(?P<names>.*))?$"
)
_CHOSE = re.compile(
    r"\(Sparsity\) (?:TRT inference plan picked sparse implementation for layers"
    r"|Chose (?P<count>\d+) layer\(s\) using sparse tactics)\s*(?::(?P<names>.*))?$"
)
_DUMPED = re.compile(r"^\s*(?:\[[^\]]*\]\s*)*Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: (?P<rest>.*)$")
_TACTIC = re.compile(r", TacticName: (.*?)(?=, StreamId: |, Metadata: |$)")
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.{0,1000}?), Dimensions: \[(?P<sizes>[-\d,]*)\](?P<rest>.{0,1000}?)\}(?=,? |\]|$)"
)
_NEW_MESSAGE = re.compile(r"^\s|^\[|^&&&&|^$")


@dataclass(frozen=True, slots=True)
class SparsityPass:
    """One pair of lines; a list is None where the line only counts, and `chosen` is None where its line is missing."""

    eligible: tuple[str, ...] | None
    eligible_count: int
    chosen: tuple[str, ...] | None = None
    chosen_count: int | None = None


@dataclass(frozen=True, slots=True)
class BuildLog:
    """What a build log shows of sparsity."""

    passes: tuple[SparsityPass, ...]
    layers: tuple[InspectedLayer, ...]
    """The verbose dump of the engine; of the last engine where a log holds several."""

    @property
    def eligible(self) -> dict[str, bool | None]:
        """Layers that some pass lists as eligible; True where a sparse kernel was chosen, None where no line tells."""
        state: dict[str, bool | None] = {}
        for one in self.passes:
            for name in one.eligible or ():
                if one.chosen is not None:
                    state[name] = name in one.chosen
                elif one.chosen_count == 0:
                    state[name] = False
                else:
                    state[name] = None
            # A layer that is chosen was eligible, even if a torn log lost the line that says so.
            state.update(dict.fromkeys(one.chosen or (), True))
        return state

    @property
    def names_layers(self) -> bool:
        """Whether every pass lists its layers, so that a layer that is not listed is not eligible."""
        return bool(self.passes) and all(one.eligible is not None for one in self.passes)

    @property
    def eligible_count(self) -> int | None:
        """Layers found eligible: exact where they are listed, otherwise at least so many. None without such lines."""
        if not self.passes:
            return None
        return max(len(self.eligible), *(one.eligible_count for one in self.passes))

    @property
    def chosen_count(self) -> int | None:
        """Layers with a sparse kernel: exact where they are listed, otherwise at least so many."""
        counts = [one.chosen_count for one in self.passes if one.chosen_count is not None]
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


def read_log(path: Path) -> BuildLog:
    """Read a build log, line by line.

    Raises:
        InputError: The file is missing or a folder.
    """
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            return parse_log(file)
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except IsADirectoryError:
        raise InputError("is a folder; a build log is one text file", where=path) from None


def parse_log(lines: Iterable[str]) -> BuildLog:
    """Read a build log; never fails, whatever the text."""
    passes: list[SparsityPass] = []
    layers: list[InspectedLayer] = []
    in_dump = False
    for line in _whole(lines):
        if "Name: " in line and (dumped := _DUMPED.match(line)):
            if not in_dump:
                layers.clear()
            in_dump = True
            layers.append(_dumped_layer(dumped))
            continue
        in_dump = False
        if found := _FOUND.search(line):
            names, count = _listed(found)
            passes.append(SparsityPass(eligible=names, eligible_count=count))
        elif chose := _CHOSE.search(line):
            names, count = _listed(chose)
            _close(passes, names, count)
    return BuildLog(passes=tuple(passes), layers=tuple(layers))


def _close(passes: list[SparsityPass], names: tuple[str, ...] | None, count: int) -> None:
    """Give the chosen layers to the pass that waits for them; a torn log may have lost its first line."""
    if passes and passes[-1].chosen_count is None:
        last = passes.pop()
    else:
        last = SparsityPass(eligible=names, eligible_count=count)
    passes.append(
        SparsityPass(eligible=last.eligible, eligible_count=last.eligible_count, chosen=names, chosen_count=count)
    )


def _listed(match: re.Match[str]) -> tuple[tuple[str, ...] | None, int]:
    counted = match.group("count")
    names = tuple(dict.fromkeys(split_list(match.group("names") or "")))
    if counted is None:
        return names, len(names)
    count = int(counted[:9])
    # Without verbose logging, "Found 39 layer(s) ..." names none of them.
    return (names if names or not count else None), count


def _whole(lines: Iterable[str]) -> Iterator[str]:
    """Join the (Sparsity) lines that a terminal's width has broken; other lines pass as they are."""
    held: str | None = None
    for raw in lines:
        line = raw.rstrip("\r\n")
        if held is not None:
            if not _NEW_MESSAGE.match(line) and "(Sparsity) " not in line:
                # A break after a comma took the space with it; one within a name took nothing.
                held += (" " if held.endswith(",") else "") + line
                continue
            yield held
            held = None
        if "(Sparsity) " in line and ":" in line.partition("(Sparsity) ")[2]:
            held = line
        else:
            yield line
    if held is not None:
        yield held


def _dumped_layer(match: re.Match[str]) -> InspectedLayer:
    rest = match["rest"]
    head, _, metadata = rest.rpartition(", Metadata: ")
    head = head or rest
    tactics = _TACTIC.findall(head)
    inputs, _, after = head.partition(", Outputs: ")
    inputs, _, constants = inputs.partition(", Constants: ")
    outputs, _, more = after.partition(", Constants: ")
    return InspectedLayer(
        name=match["name"],
        type=match["type"].strip(),
        tactic=tactics[-1].strip() if tactics else "",
        onnx_nodes=metadata_nodes(metadata),
        inputs=_tensors(inputs),
        outputs=_tensors(outputs),
        constants=_tensors(constants or more),
    )


def _tensors(text: str) -> tuple[TensorInfo, ...]:
    tensors = []
    for match in _TENSOR.finditer(text):
        parts = dict(part.split(": ", 1) for part in match["rest"].split(", ") if ": " in part)
        sizes = tuple(int(size) for size in match["sizes"].split(",") if re.fullmatch(r"-?\d{1,18}", size))
        tensors.append(
            TensorInfo(
                name=match["name"],
                dimensions=sizes,
                format=(parts.get("Format") or parts.get("Format/Datatype") or "").strip(),
                dtype=(parts.get("Datatype") or "").strip(),
            )
        )
    return tuple(tensors)
