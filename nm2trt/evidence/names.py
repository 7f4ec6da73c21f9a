"""Takes the names apart that engines give their layers.

`a + b`, `PWN(PWN(a), b)`, convolutions merged side by side (`a || b`), `{ForeignNode[a...b]}`, metadata.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_METADATA = "[ONNX Layer: "
_FOREIGN = "ForeignNode["
_SQUARE = re.compile(r"[\[\]]")
_REFORMAT = re.compile(r"^(?:Reformatting CopyNode for|Reformatted) ", re.IGNORECASE)
_MYELIN_ENDING = re.compile(r"_myl\d+_\d+$")
_PROFILE_ENDING = re.compile(r" \[profile (\d+)\]$")
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True, slots=True)
class LayerName:
    """What a name says of the ONNX nodes behind a layer."""

    parts: tuple[str, ...]
    """Names that may be those of nodes."""
    spans: tuple[tuple[str, str], ...] = ()
    """First and last node of Myelin subgraphs, whose inner nodes the name leaves out."""


def split_top(text: str, separator: str) -> list[str]:
    """Split where no bracket is open; text whose brackets do not match is split anywhere after the first mismatch."""
    parts, depth, start, index = [], 0, 0, 0
    while index < len(text):
        if depth == 0 and text.startswith(separator, index):
            parts.append(text[start:index])
            index += len(separator)
            start = index
            continue
        letter = text[index]
        if letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth = max(0, depth - 1)
        index += 1
    rest = text[start:]
    return [*parts, *(rest.split(separator) if depth else [rest])]


def split_list(text: str) -> list[str]:
    """Names of a comma-separated list, in order, without empty ones; a `PWN(a, b)` stays whole."""
    return [part.strip() for part in split_top(text, ",") if part.strip()]


def split_profile(name: str) -> tuple[str, int]:
    """A layer's name without its optimization profile, and the number of that; 0 where none is named."""
    match = _PROFILE_ENDING.search(name)
    return (name[: match.start()], int(match[1])) if match is not None else (name, 0)


def parse_name(name: str) -> LayerName:
    """Take an engine layer's name apart. A copy between formats stands for no node."""
    name = _PROFILE_ENDING.sub("", name.strip())
    if _REFORMAT.match(name):
        return LayerName(parts=())
    spans, rest = _foreign(name)
    parts: dict[str, None] = {}
    for merged in split_top(rest, " || "):
        for fused in split_top(merged, " + "):
            for part in _inside(fused.strip()):
                parts[part] = None
                parts.setdefault(_MYELIN_ENDING.sub("", part))
    parts.pop("", None)
    return LayerName(parts=tuple(parts), spans=spans)


def metadata_nodes(metadata: str) -> tuple[str, ...]:
    """ONNX nodes that the inspector's Metadata field lists, in order, each once."""
    # Between them stand a record separator, a unit separator or a line break, depending on the version.
    pieces = (piece.rpartition("]") for piece in metadata.split(_METADATA)[1:])
    return tuple(dict.fromkeys(name for name, bracket, _ in pieces if bracket))


def _foreign(name: str) -> tuple[tuple[tuple[str, str], ...], str]:
    """First and last nodes of the Myelin subgraphs in a name, and the name without them."""
    spans, rest, at = [], [], 0
    while (start := name.find(_FOREIGN, at)) >= 0:
        end = _closing(name, start + len(_FOREIGN))
        if end < 0:
            break
        first, dots, last = name[start + len(_FOREIGN) : end].partition("...")
        if dots:
            spans.append((first, last))
        rest += [name[at:start], "" if dots else first]
        at = end + 1
    return tuple(spans), "".join(rest) + name[at:]


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one before `start`; -1 where none does."""
    depth = 1
    for match in _SQUARE.finditer(text, start):
        depth += 1 if match[0] == "[" else -1
        if not depth:
            return match.start()
    return -1


def _inside(text: str) -> list[str]:
    """Names within a pointwise fusion `PWN(PWN(a), b)` or braces; the text itself otherwise."""
    found: list[str] = []
    waiting = [text]
    while waiting:
        one = waiting.pop().strip()
        if one.startswith("PWN(") and one.endswith(")"):
            waiting.extend(reversed(split_list(one[4:-1])))
        elif one.startswith("{") and one.endswith("}"):
            waiting.extend(reversed(split_list(one[1:-1])))
        elif " + " in one and (parts := split_top(one, " + ")) != [one]:
            waiting.extend(reversed(parts))
        elif one:
            found.append(one)
    return found
