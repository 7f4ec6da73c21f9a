"""Triton kernels of the projection. Imported only where a GPU (or Triton's interpreter) runs them."""

from __future__ import annotations

import triton
import triton.language as tl

COLUMNS = tl.constexpr(6)
"""Of the table: addresses of weight, residual and mask bits; groups; spread; number of the first program."""


@triton.jit
def split_groups(
    table,
    owners,
    flips,
    N: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    FLOAT: tl.constexpr,
    INTEGER: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    ADJACENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    IMPOSE: tl.constexpr,
    WITH_RESIDUAL: tl.constexpr,
    HOLD: tl.constexpr,
):
    """Split the groups of many weights into kept and pruned parts, in place; a program takes BLOCK groups of one.

    Args:
        table: int64 [weights, COLUMNS].
        owners: int32 [programs], row of the table for each program.
        flips: int64 [weights], incremented by the number of mask bits that change.
        N: Kept of every M.
        M: Group size.
        WIDTH: M rounded up to a power of two.
        BLOCK: Groups of a program.
        FLOAT: Type of the weights.
        INTEGER: Signed integer of the same size.
        MAGNITUDE: All bits of INTEGER but the sign.
        ADJACENT: The members of a group are neighbors in memory (spread 1).
        ALIGNED: All addresses are multiples of 16.
        IMPOSE: Write the kept part and the residual; else only the mask bits.
        WITH_RESIDUAL: There is a residual.
        HOLD: Keep the old mask instead of finding a new one.
    """
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    row = table + owner * COLUMNS
    weight = tl.load(row).to(tl.pointer_type(FLOAT))
    residual = tl.load(row + 1).to(tl.pointer_type(FLOAT))
    bits = tl.load(row + 2).to(tl.pointer_type(tl.uint8))
    if ALIGNED:
        weight = tl.multiple_of(weight, 16)
        residual = tl.multiple_of(residual, 16)
        bits = tl.multiple_of(bits, 16)
    groups = tl.load(row + 3)
    first = tl.load(row + 5)
    group = (program - first) * BLOCK + tl.arange(0, BLOCK)
    place = tl.arange(0, WIDTH)
    if ADJACENT:
        start = group * M
        at = start[:, None] + place[None, :]
        spread = 1
    else:
        spread = tl.load(row + 4)
        start = (group // spread) * (spread * M) + group % spread
        at = start[:, None] + place[None, :] * spread
    inside = (group < groups)[:, None] & (place < M)[None, :]
    value = tl.load(weight + at, mask=inside, other=0.0)
    old = tl.load(bits + at, mask=inside, other=0)
    if HOLD:
        kept = (old & 1) != 0
    else:
        # Without the sign bit, these integers order like the magnitudes, and NaN above infinity.
        mine = value.to(INTEGER, bitcast=True) & MAGNITUDE
        beaten_by = tl.zeros((BLOCK, WIDTH), tl.int32)
        for other in tl.static_range(M):
            member = tl.load(weight + start + other * spread, mask=group < groups, other=0.0)
            theirs = (member.to(INTEGER, bitcast=True) & MAGNITUDE)[:, None]
            beats = (theirs > mine) | ((theirs == mine) & (other < place)[None, :])
            beaten_by += beats.to(tl.int32)
        kept = beaten_by < N
        changed = tl.where(inside, kept.to(tl.uint8) ^ (old & 1), 0)
        tl.store(bits + at, old ^ changed, mask=inside)
        tl.atomic_add(flips + owner, tl.sum(changed.to(tl.int64)))
    if IMPOSE:
        # A group's members may be read by other threads than the one that writes them.
        tl.debug_barrier()
        if WITH_RESIDUAL:
            tl.store(residual + at, tl.where(kept, 0.0, value), mask=inside)
        tl.store(weight + at, tl.where(kept, value, 0.0), mask=inside)
