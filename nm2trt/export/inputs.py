"""What a network is fed: names, shapes of one sample, element types; and values to try it with."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import ConfigError

INPUT = "input"
"""Name of the only input of a network that was not told its inputs' names."""
DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "bool")

_SPEC = re.compile(r"(?P<name>[^=:\s]+)=(?P<shape>[0-9x,]*)(?::(?P<dtype>\w+))?")
_SHAPE = re.compile(r"[1-9][0-9]{0,8}(?:[x,][1-9][0-9]{0,8})*")
_SEED = 0
_FIRST_PADDED = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a network."""

    name: str
    shape: tuple[int, ...]
    """One sample, without the batch; () for one number a sample."""
    dtype: str = "float32"
    batched: bool = True
    """Whether the graph's shape has a batch beside `shape`; False where the whole shape is fixed and has none."""
    batch_axis: int = 0
    """Where the batch is in the graph's shape, as of a recurrent state [layers, batch, hidden]."""
    keyword: bool = False
    """Passed to torch by its name and not by its place."""
    below: int | None = None
    """Integers are drawn from 0 to before this; None where nothing bounds them."""


def parse_shape(text: str, option: str) -> tuple[int, ...]:
    """Read `3,224,224` or `3x224x224`.

    Raises:
        ConfigError: It is no such list.
    """
    if not _SHAPE.fullmatch(text.strip()):
        raise ConfigError(f"{text!r} is no shape", where=option, mend="write one sample without its batch: 3,224,224")
    return tuple(int(size) for size in re.split("[x,]", text.strip()))


def parse_inputs(texts: Iterable[str]) -> tuple[InputSpec, ...]:
    """Read `NAME=SHAPE:DTYPE`, such as `input_ids=128:int64`; shapes leave the batch out, fp32 is the usual type.

    Raises:
        ConfigError: One is no such text, has an unknown type, or a name comes twice.
    """
    found: dict[str, InputSpec] = {}
    for text in texts:
        match = _SPEC.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"{text!r} is not NAME=SHAPE:DTYPE", where="--input", mend="such as input_ids=128:int64")
        name, dtype = match["name"], match["dtype"] or "float32"
        if dtype not in DTYPES:
            raise ConfigError(f"unknown type {dtype!r}", where="--input", mend=f"choose from {', '.join(DTYPES)}")
        if name in found:
            raise ConfigError(f"{name} is given twice", where="--input")
        shape = parse_shape(match["shape"], "--input") if match["shape"] else ()
        found[name] = InputSpec(name=name, shape=shape, dtype=dtype, keyword=True)
    return tuple(found.values())


def bounded(inputs: Iterable[InputSpec], limits: Mapping[str, int]) -> tuple[InputSpec, ...]:
    """The same inputs, with what is known of the integers that they may hold."""
    return tuple(replace(one, below=limits.get(one.name, one.below)) for one in inputs)


def random_feeds(inputs: Iterable[InputSpec], count: int) -> dict[str, NDArray[Any]]:
    """Seeded values: normal noise for floating point, integers below their bound, masks with padding at the end.

    Integers without a bound are 0 or 1; an input whose name holds "mask" gets ones and, from three quarters on in
    every other sample, zeros.

    Args:
        inputs: Of the network.
        count: Samples.
    """
    random = np.random.default_rng(_SEED)
    return {one.name: _random(one, (count, *one.shape), random) for one in inputs}


def _random(one: InputSpec, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    if one.dtype in ("float32", "float16", "bfloat16"):
        values = random.standard_normal(shape, dtype=np.float32)
        return values.astype(np.float16) if one.dtype == "float16" else values
    dtype = np.dtype(one.dtype)
    if "mask" in one.name.lower() and len(shape) > 1:
        mask = np.ones(shape, dtype=dtype)
        mask[1::2, ..., math.ceil(shape[-1] * _FIRST_PADDED) :] = 0
        return mask
    return random.integers(0, one.below or 2, size=shape).astype(dtype)
