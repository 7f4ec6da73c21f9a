"""The arguments of `sparsify`, checked before anything is done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern

_NO_OPTIMIZERS = (nn.Module, type, str, int, float, Mapping, list, tuple, torch.optim.lr_scheduler.LRScheduler)


def check_objects(model: Any, optimizer: Any) -> None:
    """Refuse what is no model and no optimizer.

    Raises:
        ConfigError: Says what was given instead.
    """
    swapped = isinstance(model, torch.optim.Optimizer) and isinstance(optimizer, nn.Module)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"the first argument is {_kind(model)}, no torch.nn.Module",
            where="model",
            hint="swap them: sparsify(model, optimizer)" if swapped else "call sparsify(model, optimizer)",
        )
    if isinstance(optimizer, _NO_OPTIMIZERS) or optimizer is None:
        raise ConfigError(
            f"the second argument is {_kind(optimizer)}, no torch.optim.Optimizer",
            where="optimizer",
            hint="call sparsify(model, optimizer) with the optimizer that steps the weights",
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(
            "LBFGS searches along a line of dense weights; masks that change on the way make its curvature meaningless",
            where="optimizer",
            hint="use SGD or AdamW",
        )


def check_number(value: Any, name: str, example: str) -> float:
    """Return a finite number that is not negative.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{value!r} is no finite number", where=name, hint=f"use {example}")
    if value < 0:
        raise ConfigError(f"{value} is negative and would grow the pruned weights", where=name, hint=f"use {example}")
    return float(value)


def check_count(value: Any, name: str, least: int) -> int:
    """Return a whole number of at least `least`.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(
            f"{name} = {value!r} is no whole number from {least} up", where=name, hint=f"use {max(least, 1)}"
        )
    return int(value)


def check_pattern(value: Any, where: str) -> NMPattern:
    """Return a pattern given as such or as text.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(value, NMPattern):
        return value
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} is no N:M pattern", where=where, hint='write it as text, such as "2:4"')
    return NMPattern.parse(value)


def check_patterns(value: Any, where: str = "layer_patterns") -> dict[str, NMPattern]:
    """Return glob -> pattern.

    Raises:
        ConfigError: It is no mapping of such.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(glob, str) for glob in value):
        raise ConfigError(f"{value!r} is no mapping", where=where, hint='use {"layer4.*": "1:4"}')
    return {glob: check_pattern(pattern, f"{where}[{glob!r}]") for glob, pattern in value.items()}


def check_globs(value: Any, name: str = "exclude") -> list[str]:
    """Return globs as a list.

    Raises:
        ConfigError: It is no sequence of text; a lone text would be read letter by letter.
    """
    if value is None:
        return []
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ConfigError(f"{value!r} is no list of names", where=name, hint=f'use {name}=["conv1"]')
    globs = list(value)
    if wrong := [glob for glob in globs if not isinstance(glob, str)]:
        raise ConfigError(f"{wrong[0]!r} is no name", where=name, hint=f'use {name}=["conv1"]')
    return globs


def check_axes(value: Any) -> dict[str, int]:
    """Return parameter glob -> reduction axis.

    Raises:
        ConfigError: It is no mapping of such.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(
        isinstance(glob, str) and isinstance(axis, int) and not isinstance(axis, bool) for glob, axis in value.items()
    ):
        raise ConfigError(f"{value!r} is no mapping", where="axes", hint='use {"*.experts.down_proj": 2}')
    return dict(value)


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
