"""Says by its content what a file is; its name and suffix decide nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import chain, islice
from pathlib import Path
from typing import Any

from nm2trt.errors import InputError
from nm2trt.evidence.text import LogLine, normalize, payload_of, read_lines
from nm2trt.evidence.text_files import open_text, physical_lines

_LARGEST_JSON_CHARACTERS = 1 << 29
_MOST_REPAIRS = 50
_EVIDENCE = re.compile(
    r"\(Sparsity\) |=== (?:Performance summary|Profile|(?:Model|Build|Inference) Options|Device Information)"
    r"|^GPU Compute(?: Time)?:? ?|^Layer\(\w+\): |^\s*Name: .*, LayerType: |Engine Layer Information|Set Tactic Name: "
)
_CAPTURED = re.compile(rf"\n.*?(?:{_EVIDENCE.pattern}|\[[VIWE]\] |&&&& )|(?:\(Sparsity\) |&&&& ).*\n", re.MULTILINE)
_JSON_START = re.compile(r"\s*(?:\{|\[\s*(?:[\[{\"\]]|$)|\"[{\[])")
_COLLECTED = re.compile(r'"(?:log|message|msg|MESSAGE|textPayload|line|text|body|@message)"\s*:\s*"')
_NOT_A_NUMBER = re.compile(r'"(?:[^"\\\n]|\\.)*"|-?\b(?:nan|inf(?:inity)?)\b(?:\((?:ind|snan)\))?', re.IGNORECASE)
"""Or a string, which stays as it is."""
_LOST_BACKSLASH = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r", "\b": "\\b", "\f": "\\f"})


class FileKind(str, Enum):
    """What TensorRT's tools write."""

    LOG = "log"
    LAYERS = "layers"
    PROFILE = "profile"
    TIMES = "times"
    OUTPUT = "output"
    DEVICES = "devices"
    RECORD = "record"
    SUMMARY = "summary"
    OTHER_JSON = "other JSON"
    OTHER_TEXT = "other text"


_WORDS = {
    FileKind.LOG: "a log of TensorRT or trtexec",
    FileKind.LAYERS: "a layer file (trtexec --exportLayerInfo)",
    FileKind.PROFILE: "a profile of layer times (trtexec --exportProfile)",
    FileKind.TIMES: "a file of times of single calls (trtexec --exportTimes)",
    FileKind.OUTPUT: "a file of output values (trtexec --exportOutput)",
    FileKind.DEVICES: "a list of GPUs (trex's metadata)",
    FileKind.RECORD: "trex's record of a run",
    FileKind.SUMMARY: "a summary of times",
    FileKind.OTHER_JSON: "JSON, but none that TensorRT or trtexec writes",
    FileKind.OTHER_TEXT: "a text without a line of TensorRT or trtexec",
}


@dataclass(frozen=True, slots=True)
class Content:
    """A file that was recognized."""

    path: Path
    kind: FileKind
    raw: Any = None
    """The JSON value; of a log within JSON, its lines; None for any other log."""
    notes: tuple[str, ...] = ()
    """What had to be repaired to read it."""

    @property
    def words(self) -> str:
        """What it is, for people."""
        return _WORDS[self.kind]

    def refuse(self, wanted: str, hint: str) -> InputError:
        """The error for a file of another kind than was asked for."""
        return InputError(f"is {self.words}, not {wanted}", where=self.path, hint=hint)

    def lines(self) -> Iterator[LogLine]:
        """The lines of a log."""
        return normalize(self.raw) if self.raw is not None else read_lines(self.path)


def recognize(path: Path) -> Content:
    """Say what a file is.

    Raises:
        InputError: Missing, empty, binary, or JSON that is broken: one line says how.
    """
    head, is_empty = _head(path)
    if is_empty:
        raise InputError("is empty: the program that writes it did not get that far", where=path, hint="run it again")
    if _JSON_START.match(head) and not _is_json_lines(path, head):
        return _recognize_json(path, _whole_text(path))
    return _recognize_lines(path)


def _recognize_lines(path: Path) -> Content:
    lines = read_lines(path)
    first = next((line for line in lines if line.text.strip()), None)
    if first is None:
        raise InputError("holds blank lines only", where=path, hint="run the program that writes it again")
    if not first.is_message and _JSON_START.match(first.text):
        # JSON behind a prefix, or broken by a terminal.
        rest = islice((line.text for line in chain((first,), lines)), _LARGEST_JSON_CHARACTERS >> 6)
        return _recognize_json(path, "\n".join(rest))
    for line in chain((first,), lines):
        if line.is_message or _EVIDENCE.search(line.text) is not None:
            return Content(path, FileKind.LOG)
    return Content(path, FileKind.OTHER_TEXT)


def _recognize_json(path: Path, text: str) -> Content:
    raw, notes = load_json(text, path)
    if isinstance(raw, str) and _JSON_START.match(raw):
        # The inspector's JSON is text itself, and was written as a JSON string.
        raw, notes = load_json(raw, path)
    kind = kind_of(raw)
    if kind is FileKind.OTHER_JSON and (lines := _entries(raw) or _captured(raw)):
        return Content(path, FileKind.LOG, lines, notes)
    return Content(path, kind, raw, notes)


def kind_of(raw: object) -> FileKind:
    """What a JSON value is."""
    if isinstance(raw, dict):
        if isinstance(raw.get("Layers"), list):
            return FileKind.LAYERS
        if any(isinstance(raw.get(f"{key}_options"), dict) for key in ("inference", "build", "model")):
            return FileKind.RECORD
        if isinstance(raw.get("computeMs"), dict):
            return FileKind.SUMMARY
        return FileKind.LAYERS if _is_layer(raw) else FileKind.OTHER_JSON
    if not isinstance(raw, list):
        return FileKind.OTHER_JSON
    if raw and all(isinstance(entry, str) and entry.startswith("{") for entry in raw):
        return FileKind.LAYERS if _is_layer(parse_json(raw[0])) else FileKind.OTHER_JSON
    entries = [entry for entry in raw if isinstance(entry, dict)]
    if not entries or len(entries) != len(raw):
        return FileKind.OTHER_JSON
    first, second = entries[0], entries[1] if len(entries) > 1 else {}
    if set(first) == {"count"} or "averageMs" in first or "averageMs" in second:
        return FileKind.PROFILE
    if "computeMs" in first or "startComputeMs" in first:
        return FileKind.TIMES
    if "COMPUTE_CAPABILITY_MAJOR" in first:
        return FileKind.DEVICES
    if "values" in first and "dimensions" in first:
        return FileKind.OUTPUT
    if isinstance(first.get("Name"), str) and any("LayerType" in entry for entry in entries):
        return FileKind.LAYERS
    return FileKind.OTHER_JSON


def _is_layer(raw: object) -> bool:
    """Whether a JSON value is one layer, as the inspector's `get_layer_information` gives it."""
    return isinstance(raw, dict) and isinstance(raw.get("Name"), str) and "LayerType" in raw


def parse_json(text: str) -> object:
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _layers_one_by_one(text: str) -> list[Any] | None:
    """Layers that were printed one after the other, each as a JSON document; None where one is another thing."""
    decoder, found, at = json.JSONDecoder(strict=False), [], 0
    while (start := re.compile(r"[\s,]*").match(text, at)) is not None and start.end() < len(text):
        try:
            layer, at = decoder.raw_decode(text, start.end())
        except (ValueError, RecursionError):
            return None
        if not _is_layer(layer):
            return None
        found.append(layer)
    return found


def load_json(text: str, path: object) -> tuple[Any, tuple[str, ...]]:
    """Parse JSON as tools really write it: with nan for a layer that did not run, and a comma too many.

    Returns:
        The value, and what was repaired.

    Raises:
        InputError: It is empty, cut off, holds two documents, or is no JSON; one line says which.
    """
    notes: list[str] = []
    text = text.strip().strip("\ufeff\x00")
    if not text:
        raise InputError("is empty: the program that writes it did not get that far", where=path, hint="run it again")
    repaired = text
    if re.search(r"\b(?:nan|inf)", text, re.IGNORECASE) is not None:
        repaired = _NOT_A_NUMBER.sub(lambda found: found[0] if found[0].startswith('"') else "NaN", text)
        count = len(re.findall(r"\bNaN\b", re.sub(r'"(?:[^"\\\n]|\\.)*"', "", repaired)))
        notes += [f"{count} values are nan or inf"] if count else []
    for _ in range(_MOST_REPAIRS):
        raw, error = _try_json(repaired, path)
        if error is None:
            return raw, tuple(dict.fromkeys(notes))
        if error.msg == "Extra data" and (layers := _layers_one_by_one(repaired)) is not None:
            return layers, tuple(dict.fromkeys((*notes, "each layer is a JSON document of its own")))
        fixed = _repair(repaired, error)
        if fixed is None:
            raise _broken(error, repaired, path)
        if len(fixed) < len(repaired):
            notes.append("a comma before a closing bracket was passed over")
        repaired = fixed
    raise InputError("no readable JSON: too many commas before closing brackets", where=path, hint="export it again")


def _try_json(text: str, path: object) -> tuple[Any, json.JSONDecodeError | None]:
    try:
        return json.loads(text, strict=False), None
    except json.JSONDecodeError as error:
        return None, error
    except RecursionError:
        raise InputError("no readable JSON: nested too deeply", where=path) from None


def _repair(text: str, error: json.JSONDecodeError) -> str | None:
    """Take out a comma too many, or escape lonely backslashes; None where it is something else."""
    if error.msg.startswith("Invalid \\escape"):
        fixed = re.sub(r'\\(?!["\\/bfnrtu])', r"\\\\", text)
        return fixed if fixed != text else None
    if text[error.pos : error.pos + 1] in ("]", "}") or error.msg.startswith("Illegal trailing comma"):
        before = text[: error.pos].rstrip().rstrip(",")
        between = re.match(r"[\s,]*", text[len(before) :])
        rest = text[len(before) + len(between[0]) :] if between is not None else ""
        if rest[:1] in ("]", "}") and between is not None and "," in between[0]:
            return before + rest
    return None


def _broken(error: json.JSONDecodeError, text: str, path: object) -> InputError:
    where = f"line {error.lineno}, column {error.colno}"
    if error.msg == "Extra data":
        what = f"holds more than one JSON document (the second at {where})"
        return InputError(what, where=path, hint="it was appended to, or written twice: give one run's file")
    rest = text[error.pos :].strip()
    unclosed = error.msg.startswith("Unterminated string") or not rest or _brackets(text) > 0
    if unclosed:
        return InputError(
            f"is cut off at {where}: the program that wrote it was killed, or the disk was full", where=path,
            hint="export it again",
        )  # fmt: skip
    return InputError(f"no readable JSON: {error.msg} at {where}", where=path, hint="export it again")


def _brackets(text: str) -> int:
    """Brackets that stay open."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    return bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}")


def restore_backslashes(name: str) -> str:
    """A layer's name with the backslashes that trtexec leaves unescaped, as in C:\\temp."""
    return name.translate(_LOST_BACKSLASH)


def _head(path: Path) -> tuple[str, bool]:
    with open_text(path) as file:
        head = file.read(4096)
        while head and not head.strip("\ufeff\x00 \r\n\t") and len(head) < 1 << 20:
            more = file.read(4096)
            if not more:
                break
            head += more
    stripped = head.lstrip("\ufeff\x00 \r\n\t")
    return stripped, not stripped


def _is_json_lines(path: Path, head: str) -> bool:
    """Whether each line is a log collector's JSON object, and not the whole file one JSON value."""
    if not head.startswith("{") or _COLLECTED.search(head) is None:
        return False
    if payload_of(head.partition("\n")[0]) is not None:
        return True
    return any(line.is_message for line in islice(read_lines(path), 50))


def _whole_text(path: Path) -> str:
    with open_text(path) as file:
        text = file.read(_LARGEST_JSON_CHARACTERS + 1)
    if len(text) > _LARGEST_JSON_CHARACTERS:
        raise InputError("is larger than 512 MiB", where=path, hint="export times of a shorter run")
    return text


def _entries(raw: object) -> list[str]:
    """Lines of a log that was downloaded as one JSON list of entries."""
    if not isinstance(raw, list) or not raw:
        return []
    keys = ("textPayload", "log", "message", "MESSAGE", "line", "@message")
    texts = [
        next((entry[key] for key in keys if isinstance(entry.get(key), str)), None)
        for entry in raw
        if isinstance(entry, dict)
    ]
    found = [text for text in texts if text is not None]
    return [line for text in found for line in text.split("\n")] if len(found) == len(raw) else []


def _captured(raw: object) -> list[str]:
    """Lines of the logs that a notebook or a tool's JSON holds as the output of a program."""
    found: list[str] = []
    waiting = [raw]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            # A notebook keeps the line feeds of its lines, other tools keep lines without.
            value = ("" if any(one.endswith("\n") for one in value) else "\n").join(value)
        if isinstance(value, str):
            found += value.split("\n") if _CAPTURED.search(value) is not None else []
        elif isinstance(value, dict):
            waiting.extend(reversed(value.values()))
        elif isinstance(value, list):
            waiting.extend(reversed(value))
    return found


def is_text(path: Path) -> bool:
    """Whether a file holds text at all, by its first bytes."""
    try:
        next(physical_lines(path), None)
    except InputError:
        return False
    return True
