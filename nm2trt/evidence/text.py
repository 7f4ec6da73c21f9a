"""Text files as tools, terminals and log collectors leave them, read as the plain lines that a program printed.

A log reaches its reader in another encoding (PowerShell writes UTF-16), packed, colored, with a prefix of docker, CI or
syslog on every line, as one JSON object per line, or broken at the width of a terminal. All of that is taken off here,
once, for every reader. Lines are streamed: memory does not grow with the file. Lines end at CR and LF only, since the
inspector's metadata holds U+001E, which `str.splitlines` takes for an end.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from nm2trt.evidence.log_forms import (
    ANCHOR,
    CRI,
    ESCAPES,
    HEADER,
    JSON_OBJECT,
    PREFIXES,
    STAMP,
    STARTS,
    TABLE_ROW,
    plain_line,
)
from nm2trt.evidence.text_files import LONGEST_LINE, physical_lines

_SAMPLE_LINES = 2000
_SAMPLE_CHARACTERS = 1 << 18
_LAYERS = 6
"""Wrappings within one another."""
_MOST_PIECES = 4096
_CERTAIN = 3
"""Broken lines that no accident explains."""
_LIST = "(Sparsity) "
_DOCKER_PIECE = 16_000
_LONGEST_HEADER = 40
_COMMON_WIDTHS = frozenset({72, 76, 78, 79, 80, 100, 120, 132, 140, 160, 200})
_NARROWEST, _WIDEST = 40, 1000

_LITERALS = frozenset({"b'", 'b"'})
_PAYLOADS = ("log", "message", "msg", "MESSAGE", "textPayload", "line", "text", "body", "@message")
_NOT_A_NAME = re.compile(r"[\d:.,+/ \t-]+")
_NEARLY_ALL = 0.95
_MOST = 0.6
"""Share of the lines that must have a prefix for it to be one."""

_Piece = tuple[str, str]
"""Source and text of a line."""


class LogLine(NamedTuple):
    """One line as the program printed it."""

    text: str
    """Without prefix, colors, and the logger's own time and severity."""
    is_message: bool
    """Began with the logger's time or severity, so it continues no line before it."""
    source: str
    """Which of several programs in one log it came from, by its prefix; empty without one."""


def read_lines(path: Path) -> Iterator[LogLine]:
    """Stream a log file as the lines that the program printed.

    Raises:
        InputError: See `open_text`.
    """
    return normalize(physical_lines(path))


def normalize(lines: Iterable[str]) -> Iterator[LogLine]:
    """Take off whatever collectors, terminals and CI put around the lines of a log, layer by layer.

    Args:
        lines: With or without their line ends.
    """
    pieces: Iterator[_Piece] = (("", line) for line in _clean(_unwrap_colored(lines)))
    for _ in range(_LAYERS):
        pieces, was_broken = _unwrap(pieces)
        pieces, was_prefixed = _peel(pieces)
        pieces, was_packed = _unpack_json(pieces)
        if not (was_broken or was_packed or was_prefixed):
            break
    return _messages(pieces)


def _unwrap_colored(lines: Iterable[str]) -> Iterator[str]:
    """Join lines that were broken by someone who counted the escape sequences, too."""
    raw: Iterator[_Piece] = (("", line.rstrip("\r\n")) for line in lines)
    head = _sample(raw)
    texts = [text for _, text in head]
    everything = chain(head, raw)
    if any("\x1b" in text or "[" in text[-6:] for text in texts):
        begins = _beginning(texts)
        width, broken = _width(texts, begins)
        if width is not None and broken > _width([plain_line(text) for text in texts], begins)[1]:
            return (text for _, text in _join(everything, width, begins, is_certain=broken >= _CERTAIN))
    return (text for _, text in everything)


def _clean(lines: Iterable[str]) -> Iterator[str]:
    for raw in lines:
        line = raw.rstrip("\r\n")
        if line[:2] in _LITERALS and "\\n" in line:
            yield from _clean(_literal_lines(line))
        elif "\r" in line:
            yield from _clean(line.split("\r"))
        else:
            plain = plain_line(line)
            # A line of nothing but escapes is what a carriage return left of another.
            if plain or not line:
                yield plain


def _literal_lines(line: str) -> list[str]:
    """Lines of a whole log that Python printed as a literal: b'...\\n...'."""
    try:
        value = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [f" {line}"]
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.split("\n")


def _sample(pieces: Iterator[_Piece]) -> list[_Piece]:
    head: list[_Piece] = []
    characters = 0
    for piece in islice(pieces, _SAMPLE_LINES):
        head.append(piece)
        characters += len(piece[1])
        if characters > _SAMPLE_CHARACTERS:
            break
    return head


def _unwrap(pieces: Iterator[_Piece]) -> tuple[Iterator[_Piece], bool]:
    """Join lines that a terminal broke at its width."""
    head = _sample(pieces)
    begins = _beginning([text for _, text in head])
    width, broken = _width([text for _, text in head], begins)
    everything = chain(head, pieces)
    is_certain = broken >= _CERTAIN
    return (everything, False) if width is None else (_join(everything, width, begins, is_certain=is_certain), True)


def _beginning(head: list[str]) -> Callable[[str], bool]:
    """Tell whether a text begins a line of its own for certain."""
    plain = [plain_line(text) for text in head]
    style = _style(plain)
    longest = max(map(len, head), default=0)
    # Behind a line that is not full, a line of its own begins: a prefix that all of these have decides alone.
    certain = [
        text for before, text in zip(["", *head], plain, strict=False) if len(before) < longest - 1 and text.strip()
    ]
    sure = [one for one in style if len(certain) > 2 and _share(one, certain) >= _NEARLY_ALL]
    if sure:
        # Of several, the one that even broken lines have is the outermost.
        outer = max(sure, key=lambda one: _share(one, plain))
        return lambda raw: outer.match(plain_line(raw)) is not None

    def begins(raw: str) -> bool:
        text = plain_line(raw)
        return (
            STARTS.match(text) is not None
            or HEADER.match(text) is not None
            or any(pattern.match(text) for pattern in style)
            or ANCHOR.search(text, 0, 200) is not None
        )

    return begins


def _width(lines: list[str], begins: Callable[[str], bool]) -> tuple[int | None, int]:
    """The width at which lines were broken, and how many were."""
    longest = max(map(len, lines), default=0)
    # The same line many times is no proof.
    full = len({line for line in lines if len(line) == longest})
    broken = len(
        {
            line
            for line, after in pairwise(lines)
            if len(line) == longest and not begins(after) and TABLE_ROW.search(line) is None
        }
    )
    known = longest in _COMMON_WIDTHS or (full > 1 and _NARROWEST <= longest <= _WIDEST)
    # Where no line begins anything for certain, only a text that is mostly full lines was broken.
    known = known and (2 * full >= len(lines) or any(map(begins, lines)))
    return (longest if known and broken else None), broken


def _join(pieces: Iterable[_Piece], width: int, begins: Callable[[str], bool], *, is_certain: bool) -> Iterator[_Piece]:
    """Join full lines with what follows; lists of layers only where the width is certain: their reader knows more."""
    held: list[str] = []
    source, previous = "", 0
    for origin, text in pieces:
        if (
            held
            and width - 1 <= previous <= width
            and origin == source
            and not begins(text)
            and (is_certain or _LIST not in held[0])
            and len(held) < _MOST_PIECES
        ):
            # A space at the break is lost where the copy from a terminal drops spaces at the ends of lines.
            held += [" ", text] if previous < width else [text]
        else:
            if held:
                yield source, "".join(held)
            held, source = [text], origin
        previous = len(text)
    if held:
        yield source, "".join(held)


def _unpack_json(pieces: Iterator[_Piece]) -> tuple[Iterator[_Piece], bool]:
    """Replace lines that are JSON objects of a log collector by the text that they carry."""
    head = _sample(pieces)
    packed = sum(payload_of(text) is not None for _, text in head)
    everything = chain(head, pieces)
    return (_unpacked(everything), True) if packed else (everything, False)


def _unpacked(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
    waiting = ""
    for source, line in pieces:
        payload = payload_of(line)
        if payload is None:
            if waiting:
                yield from ((source, text) for text in _clean([waiting]))
                waiting = ""
            yield source, line
            continue
        text, whole = payload
        waiting += text
        if whole or len(waiting) > LONGEST_LINE:
            yield from ((source, text) for text in _clean(waiting.rstrip("\n").split("\n")))
            waiting = ""
    if waiting:
        yield from (("", text) for text in _clean([waiting]))


def payload_of(line: str) -> tuple[str, bool] | None:
    """The text in a collector's JSON object, and whether the line ends in it."""
    at = line.find('{"', 0, 160)
    if at < 0 or not line.rstrip().endswith("}"):
        return None
    try:
        raw = json.loads(line[at:], strict=False)
    except (ValueError, RecursionError):
        return None
    found = _text_in(raw) if isinstance(raw, dict) else None
    if found is None:
        return None
    key, text = found
    # docker splits lines over 16 KiB; only the last piece ends in a line feed.
    return text, key != "log" or text.endswith("\n") or len(text) < _DOCKER_PIECE


def _text_in(raw: dict[str, Any]) -> tuple[str, str] | None:
    """Key and text of a collector's entry, which may be one level down."""
    for entry in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        for key in _PAYLOADS:
            value = entry.get(key)
            if isinstance(value, str):
                return key, value
            if isinstance(value, list) and value and all(type(one) is int and 0 <= one < 256 for one in value):
                # journald gives messages with escape sequences as numbers.
                return key, ESCAPES.sub("", bytes(value).decode("utf-8", "replace"))
    return None


def _style(lines: list[str]) -> list[re.Pattern[str]]:
    """The prefixes that a share of the lines have which no accident explains."""
    wanted = max(1.0, 0.1 * sum(bool(line.strip()) for line in lines))
    forms = (*PREFIXES, JSON_OBJECT, *_learned(lines))
    return [pattern for pattern in forms if sum(pattern.match(line) is not None for line in lines) >= wanted]


def _peel(pieces: Iterator[_Piece]) -> tuple[Iterator[_Piece], bool]:
    """Take one prefix off all lines, if most have it."""
    head = _sample(pieces)
    lines = [text for _, text in head if text.strip()]
    everything = chain(head, pieces)
    # What all lines have is outside of what only whole lines have.
    pattern = max((*PREFIXES, *_learned(lines)), key=lambda one: _share(one, lines))
    return (everything, False) if _share(pattern, lines) < _MOST else (_peeled(everything, pattern), True)


def _share(pattern: re.Pattern[str], lines: list[str]) -> float:
    return sum(pattern.match(line) is not None for line in lines) / len(lines) if lines else 0.0


def _learned(lines: list[str]) -> Iterator[re.Pattern[str]]:
    """Prefixes of no known form: what stands before messages of TensorRT, with other digits."""
    shapes: Counter[str] = Counter()
    for line in lines:
        anchor = ANCHOR.search(line, 0, 300)
        if anchor is not None and anchor.start() and "{" not in line[: anchor.start()]:
            shapes[re.sub(r"\d+", r"\\d+", re.escape(line[: anchor.start()].rstrip()))] += 1
    for shape, count in shapes.most_common(3):
        if count > 1:
            yield re.compile(shape + r"[ \t]?")


def _peeled(pieces: Iterable[_Piece], pattern: re.Pattern[str]) -> Iterator[_Piece]:
    waiting: dict[str, str] = {}
    latest: dict[str, str] = {}
    for source, text in pieces:
        match = pattern.match(text)
        if match is None:
            # The rest of a line that a terminal broke behind its prefix.
            yield latest.get(source, source), text
            continue
        body = plain_line(text[match.end() :])
        cri = CRI.match(text)
        origin = source + _NOT_A_NAME.sub("", match[0])[:100]
        if cri is not None:
            # The container runtime splits long lines; all but the last piece are marked P.
            origin = origin.rstrip("FP")
            body = waiting.pop(origin, "") + body
            if cri["part"] == "P" and len(body) < LONGEST_LINE:
                waiting[origin] = body
                continue
        latest[source] = origin
        yield origin, body
    yield from waiting.items()


def _messages(pieces: Iterable[_Piece]) -> Iterator[LogLine]:
    for source, line in pieces:
        header = HEADER.match(line)
        if header is not None and line.find("[", header.end()) < 0:
            yield LogLine(line[header.end() :], True, source)
            continue
        for part in _parts(line):
            yield _message(source, part)


def _message(source: str, line: str) -> LogLine:
    header = HEADER.match(line)
    if header is not None:
        return LogLine(line[header.end() :], True, source)
    anchor = ANCHOR.search(line, 0, 300)
    if anchor is not None:
        header = HEADER.match(line, anchor.start())
        return LogLine(line[header.end() if header is not None else anchor.start() :], True, source)
    at = 0
    for _ in range(_LAYERS):
        found = next(
            (match for one in PREFIXES if (match := one.match(line, at)) is not None and match.end() > at), None
        )
        if found is None:
            break
        at = found.end()
    return LogLine(plain_line(line[at:]) if at else line, False, source)


def _parts(line: str) -> list[str]:
    """Split a line in which a second message follows without a line feed, as when two threads print."""
    starts = [match.start() for match in STAMP.finditer(line)]
    # Two logger's times side by side are one message that was logged twice over.
    cuts = [at for before, at in pairwise(starts) if at - before > _LONGEST_HEADER]
    ends = [0, *cuts, len(line)]
    return [line[start:end] for start, end in pairwise(ends)]
