"""The layers that a log prints: the detailed dump, the list of names, `Layer(Type): name, Tactic: 0x...`, or JSON.

Seen: `Layer(...)` lines in verbose logs of 8.0 to 10.16, tactics in decimal up to 8.4 and in hexadecimal later;
`Name: ..., LayerType: ...` from 8.2 on with detailed profiling verbosity, also from TensorRT-RTX; names alone without
it.
"""

from __future__ import annotations

import json
import re
import sys

from nm2trt.errors import InputError
from nm2trt.evidence.inspector import InspectedLayer, TensorInfo, parse_inspection
from nm2trt.evidence.names import metadata_nodes
from nm2trt.evidence.text import LogLine

_DUMPED = re.compile(
    r"^\s*(?:\[[^\]]*\]\s*)*Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: (?P<rest>.*)$", re.DOTALL
)
_TACTIC = re.compile(r", TacticName: (.*?)(?=, TacticValue: |, StreamId: |, Metadata: |$)", re.DOTALL)
_HAS_SPARSE = re.compile(r", (?:Conv)?(?:HasSparseWeights|AllowSparse): ([01])\b")
_WEIGHTS = re.compile(r', (?:Conv)?Weights: \{"Type": "(?P<type>\w+)", "Count": (?P<count>\d{1,15})\}')
_GROUPS = re.compile(r", (?:Conv)?Groups: (\d{1,9})\b")
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.{0,1000}?), (?:Location: \w+, )?Dimensions: \[(?P<sizes>[-\d,]*)\]"
    r"(?P<rest>.{0,1000}?)\}(?=,? |\]|$)"
)
_ENGINE_LAYER = re.compile(r"^\s*Layer\((?P<type>\w+)\): (?P<rest>.*)$", re.DOTALL)
_ENGINE_TACTIC = re.compile(r", Tactic: (?P<tactic>0x[0-9a-fA-F]{1,16}|-?\d{1,20})(?:, |$)")
_ENGINE_TENSOR = re.compile(r"(?P<name>[^,\s][^,]*?) ?[\[(](?P<dtype>[A-Z]\w+)[\[(](?P<sizes>[-\d,:]*)[\])][\])]")
_SET_TACTIC = re.compile(
    r"(?:^|(?P<layer>.*) )Set Tactic Name: (?P<name>\S+) Tactic: (?P<tactic>0x[0-9a-fA-F]{1,16}|-?\d{1,20})"
)
_RUNNER = re.compile(r"Timing Runner: (?P<layer>.*) \([\w\[\]]+\)$")
_MOST_TACTICS = 50_000
_MOST_LAYERS = 200_000
_LONGEST_NAME = 1 << 16
_LARGEST_JSON_CHARACTERS = 1 << 28


class LayerReader:
    """Collects the layers of the last engine that a log prints."""

    def __init__(self) -> None:
        self._detailed: list[InspectedLayer] = []
        self._engine: list[tuple[InspectedLayer, int | None]] = []
        self._names: list[InspectedLayer] = []
        self._json: list[str] = []
        self._json_size = 0
        self._from_json: tuple[InspectedLayer, ...] = ()
        self._state = ""
        self._runner = ""
        self._by_layer: dict[tuple[str, int], str] = {}
        self._by_id: dict[int, str | None] = {}

    def feed(self, line: LogLine) -> None:
        """Take the next line."""
        text = line.text
        if "Set Tactic Name: " in text:
            self._set_tactic(text)
        elif "Timing Runner: " in text:
            runner = _RUNNER.search(text)
            self._runner = runner["layer"] if runner is not None else ""
        elif "Name: " in text and (dumped := _DUMPED.match(text)) is not None:
            self._enter("dump", self._detailed)
            if len(self._detailed) < _MOST_LAYERS:
                self._detailed.append(_dumped_layer(dumped))
        elif "Layer(" in text and (layer := _ENGINE_LAYER.match(text)) is not None:
            self._enter("engine", self._engine)
            if len(self._engine) < _MOST_LAYERS:
                self._engine.append(_engine_layer(layer))
        elif self._state == "json" or text.lstrip().startswith('{"Layers"'):
            self._take_json(line)
        elif line.is_message:
            self._state = "list" if text.rstrip().endswith("Layers:") else ""
        elif self._state == "list" and text.rstrip().endswith("Layers:"):
            pass
        elif self._state in ("list", "names"):
            self._take_name(text.strip())
        elif text.rstrip() == "Layers:":
            self._state = "list"

    def finish(self) -> tuple[InspectedLayer, ...]:
        """The layers of the last engine, from the dump that tells most."""
        if self._json:
            self._end_json()
        if self._detailed or self._from_json:
            return tuple(self._detailed) or self._from_json
        if self._engine:
            return tuple(self._named_kernel(layer, tactic) for layer, tactic in self._engine)
        return tuple(self._names)

    def _enter(self, state: str, collected: list[InspectedLayer] | list[tuple[InspectedLayer, int | None]]) -> None:
        if self._state != state:
            collected.clear()
        self._state = state

    def _take_name(self, name: str) -> None:
        if not name or name == "Bindings:" or len(name) > _LONGEST_NAME:
            self._state = ""
            return
        if self._state == "list":
            self._names.clear()
            self._state = "names"
        if len(self._names) < _MOST_LAYERS:
            self._names.append(InspectedLayer(name=name))

    def _take_json(self, line: LogLine) -> None:
        if line.is_message and self._state == "json":
            self._end_json()
            return
        self._state = "json"
        self._json_size += len(line.text)
        if self._json_size <= _LARGEST_JSON_CHARACTERS:
            self._json.append(line.text)

    def _end_json(self) -> None:
        self._state = ""
        try:
            raw, _ = json.JSONDecoder(strict=False).raw_decode("\n".join(self._json).lstrip())
            self._from_json = parse_inspection(raw).layers
        except (ValueError, RecursionError, InputError):
            pass
        self._json.clear()
        self._json_size = 0

    def _set_tactic(self, text: str) -> None:
        found = _SET_TACTIC.search(text)
        if found is None or len(self._by_layer) >= _MOST_TACTICS:
            return
        name, number = sys.intern(found["name"]), _tactic_number(found["tactic"])
        layer = (found["layer"] or self._runner).partition(" (Cask")[0].partition(" (cask")[0]
        self._by_layer.setdefault((sys.intern(layer), number), name)
        # The same number for two kernels tells nothing of a layer that did not time it itself.
        self._by_id[number] = name if self._by_id.get(number, name) == name else None

    def _named_kernel(self, layer: InspectedLayer, tactic: int | None) -> InspectedLayer:
        if tactic is None or not tactic:
            return layer
        kernel = self._by_layer.get((layer.name, tactic)) or self._by_id.get(tactic) or ""
        return InspectedLayer(
            name=layer.name,
            type=layer.type,
            tactic=kernel,
            inputs=layer.inputs,
            outputs=layer.outputs,
            fields=layer.fields,
        )


def _dumped_layer(match: re.Match[str]) -> InspectedLayer:
    rest = match["rest"]
    head, _, metadata = rest.rpartition(", Metadata: ")
    head = head or rest
    tactics = _TACTIC.findall(head)
    inputs, _, after = head.partition(", Outputs: ")
    inputs, _, constants = inputs.partition(", Constants: ")
    outputs, _, more = after.partition(", Constants: ")
    sparse, weights, groups = _HAS_SPARSE.search(head), _WEIGHTS.search(head), _GROUPS.search(head)
    return InspectedLayer(
        name=match["name"],
        type=match["type"].strip(),
        tactic=tactics[-1].strip() if tactics else "",
        has_sparse_weights=sparse[1] == "1" if sparse is not None else None,
        groups=int(groups[1]) if groups is not None else None,
        weights_count=int(weights["count"]) if weights is not None else None,
        weights_type=weights["type"] if weights is not None else "",
        onnx_nodes=metadata_nodes(metadata),
        inputs=_tensors(inputs),
        outputs=_tensors(outputs),
        constants=_tensors(constants or more),
    )


def _tensors(text: str) -> tuple[TensorInfo, ...]:
    tensors = []
    for match in _TENSOR.finditer(text):
        parts = dict(part.split(": ", 1) for part in match["rest"].split(", ") if ": " in part)
        tensors.append(
            TensorInfo(
                name=match["name"],
                dimensions=_sizes(match["sizes"]),
                format=(parts.get("Format") or parts.get("Format/Datatype") or "").strip(),
                dtype=(parts.get("Datatype") or parts.get("DataType") or "").strip(),
            )
        )
    return tuple(tensors)


def _engine_layer(match: re.Match[str]) -> tuple[InspectedLayer, int | None]:
    rest = match["rest"]
    tactic = _ENGINE_TACTIC.search(rest)
    if tactic is not None:
        name, tensors = rest[: tactic.start()], rest[tactic.end() :]
    else:
        # 10.x may leave the tactic out: the name ends where the first tensor begins.
        first = re.search(r", (?=[^,]* ?[\[(][A-Z]\w+[\[(][-\d,:]*)", rest)
        name, tensors = (rest[: first.start()], rest[first.end() :]) if first is not None else (rest, "")
    inputs, _, outputs = tensors.partition(" -> ")
    layer = InspectedLayer(
        name=name.strip(), type=match["type"], inputs=_engine_tensors(inputs), outputs=_engine_tensors(outputs)
    )
    return layer, _tactic_number(tactic["tactic"]) if tactic is not None else None


def _engine_tensors(text: str) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name=found["name"].strip(), dimensions=_sizes(found["sizes"]), dtype=found["dtype"])
        for found in _ENGINE_TENSOR.finditer(text)
    )


def _sizes(text: str) -> tuple[int, ...]:
    """Sizes of a tensor; `32:4` is a dimension of 32 that is stored in vectors of 4."""
    return tuple(int(size) for part in text.split(",") if re.fullmatch(r"-?\d{1,18}", size := part.partition(":")[0]))


def _tactic_number(text: str) -> int:
    """Decimal tactics are printed as signed numbers, hexadecimal ones as unsigned."""
    return (int(text, 16) if text.startswith("0x") else int(text)) & (1 << 64) - 1
