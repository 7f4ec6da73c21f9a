"""How options name layers, shapes and batches: one grammar for every command.

A glob is matched, case included, against a layer's tensor, module and node names alike; a name always means itself,
also one that holds brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern

_WEIGHT = ".weight"
_MOST_DIMENSIONS = 16
_MOST_SHOWN = 8
_MOST_NEAR = 3
_NEAR = 0.5
_MOST_COMPARED = 5000
"""Names that a glob without a match is compared with: difflib takes some 10 us for each."""

_SHAPE = re.compile(r"0*[1-9][0-9]{0,8}(?:[xX,]0*[1-9][0-9]{0,8})*")
_BATCH = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}):([0-9]{1,9}))?")


def selectable_names(*names: str) -> tuple[str, ...]:
    """What a glob may match of one layer: its names, and each without `.weight`, since "fc" stands for "fc.weight".

    An empty name is the root module's, where a layer is the whole network.
    """
    return tuple(dict.fromkeys((*names, *(name.removesuffix(_WEIGHT) for name in names))))


def match_glob(name: str, glob: str) -> bool:
    """Whether a glob means a name."""
    return name == glob or fnmatchcase(name, glob)


def match_any(names: Iterable[str], globs: Iterable[str]) -> bool:
    """Whether one of the globs means one of a layer's names."""
    known = tuple(names)
    return any(match_glob(name, glob) for glob in globs for name in known)


def last_match(names: Iterable[str], globs: Iterable[str]) -> str | None:
    """The last of the globs that means one of a layer's names; None where none does."""
    known = tuple(names)
    return next((glob for glob in reversed(tuple(globs)) if match_any(known, (glob,))), None)


def escape_glob(name: str) -> str:
    """A glob that matches this name only."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def unmatched_globs(layers: Iterable[Iterable[str]], globs: Iterable[str]) -> list[str]:
    """The globs that mean no layer, each layer given by its names."""
    left = list(dict.fromkeys(globs))
    for names in layers:
        if not left:
            break
        known = tuple(names)
        left = [glob for glob in left if not match_any(known, (glob,))]
    return left


def check_globs(
    layers: Iterable[Sequence[str]], globs: Iterable[str], *, where: object = "", kind: str = "layer"
) -> None:
    """Refuse globs that mean nothing.

    Args:
        layers: Each layer's names, the one to show first.
        globs: As the user gave them.
        where: The option or file, for the error line.
        kind: What the names are of.

    Raises:
        ConfigError: Some glob matches no name; the hint has near matches.
    """
    known = [tuple(names) for names in layers]
    if left := unmatched_globs(known, globs):
        raise ConfigError(f"no {kind} matches {', '.join(map(repr, left))}", where=where, hint=_hint(known, left, kind))


def near_names(glob: str, names: Iterable[str]) -> list[str]:
    """Names that a glob without a match may have meant, the nearest first."""
    return get_close_matches(glob, list(dict.fromkeys(names))[:_MOST_COMPARED], n=_MOST_NEAR, cutoff=_NEAR)


def _hint(layers: Sequence[Sequence[str]], globs: Sequence[str], kind: str) -> str:
    every = [name for names in layers for name in names]
    near = dict.fromkeys(name for glob in globs for name in near_names(glob, every))
    if near:
        return f"near it: {', '.join(near)}"
    first = [names[0] for names in layers if names]
    if not first:
        return f"there is no {kind}"
    return f"the {kind}s are {', '.join(first[:_MOST_SHOWN])}{', ...' if len(first) > _MOST_SHOWN else ''}"


def parse_layer_pattern(text: str, where: str = "--layer") -> tuple[str, NMPattern]:
    """Read `GLOB=N:M`.

    Raises:
        ConfigError: It is no such text, or no pattern.
    """
    # Names may hold "=", patterns cannot.
    glob, equals, pattern = text.rpartition("=")
    if not equals or not glob:
        raise ConfigError(f"{where} {text!r} is not GLOB=N:M", hint="write it like 'layer3.*=1:4'")
    return glob, NMPattern.parse(pattern)


def parse_layer_patterns(texts: Iterable[str], where: str = "--layer") -> dict[str, NMPattern]:
    """Read several `GLOB=N:M`, in their order: the last that matches a layer counts.

    Raises:
        ConfigError: As `parse_layer_pattern`.
    """
    found: dict[str, NMPattern] = {}
    for text in texts:
        glob, pattern = parse_layer_pattern(text, where)
        found.pop(glob, None)
        found[glob] = pattern
    return found


def parse_shape(text: str, where: str) -> tuple[int, ...]:
    """Read `3x224x224` or `3,224,224`: positive sizes, at most 16 of them.

    Raises:
        ConfigError: It is no such list.
    """
    found = text.strip()
    sizes = tuple(map(int, re.split("[xX,]", found))) if _SHAPE.fullmatch(found) else ()
    if not sizes or len(sizes) > _MOST_DIMENSIONS:
        raise ConfigError(f"{text!r} is no shape", where=where, hint="write one sample without its batch: 3,224,224")
    return sizes


def parse_named_shape(text: str, where: str = "--shape") -> tuple[str, tuple[int, ...]]:
    """Read `NAME=1x3x224x224`.

    Raises:
        ConfigError: It is no such text.
    """
    # Names may hold "=", sizes cannot.
    name, _, sizes = text.rpartition("=")
    try:
        shape = parse_shape(sizes, where)
    except ConfigError:
        shape = ()
    if not name or not shape:
        raise ConfigError(f"{text!r} is not NAME=1x3x224x224", where=where, hint="write positive whole numbers")
    return name, shape


def parse_batch_range(text: str) -> tuple[int, int, int]:
    """Read `MIN:OPT:MAX`, or one number for all three.

    Raises:
        ConfigError: It is no such text, or not in this order.
    """
    match = _BATCH.fullmatch(text.strip())
    if match is None:
        raise ConfigError("write MIN:OPT:MAX, such as 1:8:64, or one number", where="--batch")
    smallest = int(match[1])
    optimal, largest = (int(match[2]), int(match[3])) if match[2] else (smallest, smallest)
    if not 1 <= smallest <= optimal <= largest:
        raise ConfigError("needs 1 <= MIN <= OPT <= MAX", where="--batch")
    return smallest, optimal, largest
