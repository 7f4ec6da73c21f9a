"""Which weights of a block are kept: numpy, in cache, on the integers that the floats are made of.

With the sign bit cleared these integers order like the magnitudes in every floating dtype (NaN above infinity), and
comparing them is one vector instruction for 16 or 32 weights. Members of a group lie `spread` apart in memory, so every
step sets the block against itself, moved by a multiple of `spread`: nothing is gathered, whatever the layout. What
such a step says across the border of two groups is masked off or never read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.pattern import NMPattern

Ints = NDArray[Any]
Bools = NDArray[np.bool_]

LARGEST_M = 32
"""Ranks cost a pass over the block for each group member; beyond this, sorting is no slower."""

_LEVELS = LARGEST_M.bit_length() - 1


class Scratch:
    """Arrays for blocks of up to `length` weights."""

    def __init__(self, length: int, kind: type[Any]) -> None:
        self.length = length
        self.magnitude_bits = kind(np.iinfo(kind).max)
        self.integers = np.empty((3, length), kind)
        self.before = np.empty(length, np.uint8)
        self.kept = np.empty(length, np.bool_)
        self.flags = np.empty(length, np.bool_)
        self.wins = np.empty(length, np.int8)
        self.first_wins = np.empty((_LEVELS, length), np.bool_)


def kept(block: Ints, scratch: Scratch, pattern: NMPattern, spread: int) -> Bools:
    """The N largest magnitudes of every group; of equal ones the lowest index wins.

    Args:
        block: Signed integers with the floats' bits, whole groups.
        scratch: For at least as many weights; the result lies in it, and so does what it overwrites.
        pattern: N:M with M at most `LARGEST_M`.
        spread: Distance in memory between two members of a group.

    Returns:
        Bool array like `block`.
    """
    magnitude = np.bitwise_and(block, scratch.magnitude_bits, out=scratch.integers[0, : block.size])
    if pattern.n == 1 and pattern.m & (pattern.m - 1) == 0:
        return _kept_by_tournament(magnitude, scratch, pattern.m, spread)
    return _kept_by_rank(magnitude, scratch, pattern, spread)


def _kept_by_rank(magnitude: Ints, scratch: Scratch, pattern: NMPattern, spread: int) -> Bools:
    """Count for each weight the group members that it beats; the N with the most wins are kept.

    A weight starts with a win over each member before it and loses it again where that member is at least as large,
    so equal ones go to the lowest index.
    """
    size = magnitude.size
    places, together = _geometry(pattern.m, spread, scratch.length)
    wins, won_over = scratch.wins[:size], places[:size]
    for distance in range(1, pattern.m):
        offset = distance * spread
        beats = np.greater_equal(magnitude[:-offset], magnitude[offset:], out=scratch.flags[: size - offset])
        won = np.logical_and(beats, together[distance - 1][: size - offset], out=beats).view(np.int8)
        if distance == 1:
            wins[size - offset :] = won_over[size - offset :]
        np.add(won_over[:-offset], won, out=wins[:-offset])
        np.subtract(wins[offset:], won, out=wins[offset:])
        won_over = wins
    return np.greater_equal(wins, pattern.m - pattern.n, out=scratch.kept[:size])


def _kept_by_tournament(magnitude: Ints, scratch: Scratch, m: int, spread: int) -> Bools:
    """Neighbors play each other, then the winners of neighboring pairs, and so on; M is a power of two.

    Each level costs a comparison and a maximum, so 1:16 costs four of them and not fifteen ranks.
    """
    size, levels = magnitude.size, m.bit_length() - 1
    marks = scratch.kept[:size]
    if spread == 1 and levels > 2:
        _mark_best_of_quads(magnitude, scratch, m, marks)
        _hand_down(marks, scratch.first_wins[0], scratch.flags, 1, 0)
        return marks
    marks[:] = _first_places(m, spread, scratch.length)[:size]
    _play(magnitude, scratch.integers[1:], scratch.first_wins[:levels], scratch.flags, marks, spread)
    return marks


def _mark_best_of_quads(magnitude: Ints, scratch: Scratch, m: int, marks: Bools) -> None:
    """Mark the first place of each group's winning pair, where groups lie in one piece.

    After two levels only every fourth place means anything, so the rest is played in a quarter of the memory.
    """
    quarter = magnitude.size // 4
    np.greater_equal(magnitude[:-1], magnitude[1:], out=scratch.first_wins[0, : magnitude.size - 1])
    pairs = np.maximum(magnitude[:-1], magnitude[1:], out=scratch.integers[1, : magnitude.size - 1])
    left, right = pairs[::4], pairs[2::4]
    left_wins = np.greater_equal(left, right, out=scratch.first_wins[1, :quarter])
    quads = np.maximum(left, right, out=scratch.integers[2, :quarter])
    quad_marks = scratch.wins[:quarter].view(np.bool_)
    quad_marks[:] = _first_places(m // 4, 1, scratch.length)[:quarter]
    rest = scratch.first_wins[2 : m.bit_length() - 1]
    _play(quads, scratch.integers[:2], rest, scratch.flags, quad_marks, 1)
    # A quad's four bytes as one word, lowest place first: its mark goes to byte 0 or byte 2.
    words, lost = marks.view("<u4"), scratch.flags[: marks.size].view("<u4")
    np.copyto(lost, np.greater(quad_marks, left_wins, out=scratch.first_wins[2, :quarter]))
    np.left_shift(lost, 16, out=lost)
    np.copyto(words, np.logical_and(quad_marks, left_wins, out=left_wins))
    np.bitwise_or(words, lost, out=words)


def _play(best: Ints, spare: Ints, first_wins: Bools, flags: Bools, marks: Bools, spread: int) -> None:
    """Play a level for each row of `first_wins`, and move each mark from the first place of its group to the winner's.

    On a level only the first places of its subgroups mean anything.
    """
    levels = len(first_wins)
    for level in range(levels):
        reach = marks.size - spread * ((2 << level) - 1)
        first, second = best[:reach], best[spread << level :][:reach]
        np.greater_equal(first, second, out=first_wins[level, :reach])
        if level < levels - 1:
            best = np.maximum(first, second, out=spare[level % 2, :reach])
    for level in reversed(range(levels)):
        _hand_down(marks, first_wins[level], flags, spread, level)


def _hand_down(marks: Bools, first_wins: Bools, flags: Bools, spread: int, level: int) -> None:
    """Move the marks of subgroups that the second half has won."""
    reach = marks.size - spread * ((2 << level) - 1)
    # For booleans, greater is "and not".
    moved = np.greater(marks[:reach], first_wins[:reach], out=flags[:reach])
    np.logical_xor(marks[:reach], moved, out=marks[:reach])
    second = marks[spread << level :][:reach]
    np.logical_or(second, moved, out=second)


@lru_cache(maxsize=16)
def _geometry(m: int, spread: int, length: int) -> tuple[NDArray[np.int8], tuple[Bools, ...]]:
    """Index of each place within its group, and whether the place `distance` further is in the same group."""
    places = (np.arange(length) // spread % m).astype(np.int8)
    return places, tuple(places < m - distance for distance in range(1, m))


@lru_cache(maxsize=16)
def _first_places(m: int, spread: int, length: int) -> Bools:
    """Whether a place is the first of its group."""
    first: Bools = np.arange(length) // spread % m == 0
    return first
