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
from nm2trt.ort.random_inputs import draw_values, is_mask, make_mask

INPUT = "input"
"""Name of the only input of a network that was not told its inputs' names."""
DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "bool")

_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_SPEC = re.compile(
    rf"(?P<name>[^=\s]+)=(?P<shape>[0-9x,*]*)(?::(?P<dtype>\w+))?(?:@(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER}))?"
)
_WHOLE_SHAPE = re.compile(r"(?:[0-9]{1,9}|\*)(?:[x,](?:[0-9]{1,9}|\*))*")
_SIZE = re.compile(r"(?P<name>[^=\s]+)=(?P<size>[0-9]{1,9})")
_FIXED = re.compile(rf"(?P<name>[^=\s]+)=(?P<values>{_NUMBER}(?:,{_NUMBER})*|true|false)")
_SEED = 0


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
    bounds: tuple[float, float] | None = None
    """Smallest and largest value to draw, as the user gave them."""
    values: tuple[float, ...] | None = None
    """What it always holds, as the user gave it: one number for all elements, or one for each."""
    star: bool = False
    """Whether `shape` was written whole, its batch as a star at `batch_axis`."""


def parse_inputs(texts: Iterable[str]) -> tuple[InputSpec, ...]:
    """Read `NAME=SHAPE[:DTYPE][@LOW..HIGH]`, such as `input_ids=128:int64@0..30000`.

    SHAPE is one sample without its batch, or the whole shape with a star for the batch: `state=2x*x32`. The usual type
    is float32. Random values are drawn from LOW to HIGH.

    Raises:
        ConfigError: One is no such text, has an unknown type, or a name comes twice.
    """
    found: dict[str, InputSpec] = {}
    for text in texts:
        match = _SPEC.fullmatch(text.strip())
        if match is None:
            raise ConfigError(
                f"{text!r} is not NAME=SHAPE:DTYPE",
                where="--input",
                hint="such as input_ids=128:int64, state=2x*x32, ids=128:int64@0..999",
            )
        name, dtype = match["name"], match["dtype"] or "float32"
        if dtype not in DTYPES:
            raise ConfigError(f"unknown type {dtype!r}", where="--input", hint=f"choose from {', '.join(DTYPES)}")
        if name in found:
            raise ConfigError(f"{name} is given twice", where="--input")
        found[name] = replace(
            _shaped(name, match["shape"]), dtype=dtype, bounds=_bounds(match["low"], match["high"], text)
        )
    return tuple(found.values())


def _shaped(name: str, text: str) -> InputSpec:
    if not text:
        return InputSpec(name=name, shape=(), keyword=True)
    sizes = re.split("[x,]", text)
    if not _WHOLE_SHAPE.fullmatch(text) or sizes.count("*") > 1:
        raise ConfigError(
            f"{text!r} is no shape", where="--input", hint="write one sample without its batch, 3x224x224, or 2x*x32"
        )
    star = sizes.index("*") if "*" in sizes else None
    shape = tuple(int(size) for size in sizes if size != "*")
    return InputSpec(name=name, shape=shape, keyword=True, batch_axis=star or 0, star=star is not None)


def _bounds(low: str | None, high: str | None, text: str) -> tuple[float, float] | None:
    if low is None or high is None:
        return None
    if float(low) > float(high):
        raise ConfigError(f"{text!r} has no value between its bounds", where="--input")
    return float(low), float(high)


def parse_sizes(texts: Iterable[str]) -> dict[str, int]:
    """Read `AXIS=SIZE`, such as `sequence=128`: the size of every axis of that name.

    Raises:
        ConfigError: One is no such text, or an axis comes twice.
    """
    found: dict[str, int] = {}
    for text in texts:
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"{text!r} is not AXIS=SIZE", where="--size", hint="such as sequence=128")
        if match["name"] in found:
            raise ConfigError(f"{match['name']} is given twice", where="--size")
        found[match["name"]] = int(match["size"])
    return found


def parse_fixed(texts: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Read `NAME=VALUE` or `NAME=V1,V2,...`, such as `speed=1.0`: what an input always holds.

    Raises:
        ConfigError: One is no such text, or a name comes twice.
    """
    found: dict[str, tuple[float, ...]] = {}
    for text in texts:
        match = _FIXED.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"{text!r} is not NAME=VALUE", where="--fixed", hint="such as speed=1.0, lengths=16,16")
        if match["name"] in found:
            raise ConfigError(f"{match['name']} is given twice", where="--fixed")
        words = match["values"]
        found[match["name"]] = (
            (float(words == "true"),) if words in ("true", "false") else tuple(map(float, words.split(",")))
        )
    return found


def with_values(
    inputs: Iterable[InputSpec], fixed: Mapping[str, tuple[float, ...]], wanted: Iterable[InputSpec] = ()
) -> tuple[InputSpec, ...]:
    """The same inputs, with what the user says they hold.

    Args:
        inputs: Of the network.
        fixed: Input name -> its values, as `parse_fixed` gives them.
        wanted: As `parse_inputs` gives them; their bounds count.

    Raises:
        ConfigError: An input is unknown, or takes another number of values.
    """
    known = tuple(inputs)
    names = [one.name for one in known]
    if unknown := sorted(set(fixed) - set(names)):
        raise ConfigError(
            f"the network has no input {', '.join(unknown)}", where="--fixed", hint=f"it has {', '.join(names)}"
        )
    bounds = {one.name: one.bounds for one in wanted}
    for one in known:
        count = len(fixed.get(one.name, ()))
        if count > 1 and count != math.prod(one.shape):
            raise ConfigError(
                f"{one.name} takes {math.prod(one.shape)} values of shape {list(one.shape)}, not {count}",
                where="--fixed",
            )
    return tuple(replace(one, values=fixed.get(one.name), bounds=bounds.get(one.name) or one.bounds) for one in known)


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
    dtype = np.dtype("float32" if one.dtype == "bfloat16" else one.dtype)
    if one.values is not None:
        given = np.array(one.values[0] if len(one.values) == 1 else one.values)
        return np.broadcast_to(given.reshape(one.shape) if given.ndim else given, shape).astype(dtype)
    if one.bounds is not None:
        low, high = one.bounds
        if dtype.kind == "f":
            return random.uniform(low, high, shape).astype(dtype)
        return random.integers(int(low), int(high) + 1, size=shape).astype(dtype)
    if not one.batched and one.shape in ((), (1,)):
        # A speed, a sample rate, a length: noise would be no sensible value of it.
        return np.ones(shape, dtype)
    if dtype.kind != "f" and is_mask(one.name) and len(shape) > 1:
        return make_mask(shape, dtype)
    return draw_values(random, shape, dtype, below=one.below or 2)
