"""Whether a tensor still is what it was, told without reading all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nm2trt.training.masks import INTEGERS

_RUNS, _RUN_LENGTH = 64, 16
"""Where values are read: a run takes one or two cache lines, which cost as much as a single value."""


@dataclass(slots=True)
class Snapshot:
    """A tensor's version counter, its place in memory, and some of its values.

    torch counts in-place operations in `_version`, and `.data = other` shows in the address. What is written through
    `.data` or by numpy shows in neither, so a thousand values in evenly spaced runs are compared on top; on a GPU only
    when asked to, since that waits for the device.
    """

    version: int = -1
    place: tuple[object, ...] = ()
    live: torch.Tensor | None = None
    """View of the values as integers, so that NaN equals itself; None where the memory has gaps."""
    saved: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32

    def has_changed(self, parameter: torch.Tensor, *, wait: bool = False) -> bool:
        """Whether anybody wrote to the parameter since `take_snapshots`; `wait` reads values from a GPU, too."""
        held = _held(parameter)
        if held._version != self.version or _place(held) != self.place:  # noqa: SLF001
            return True
        if self.live is None or self.saved is None or not (wait or held.device.type == "cpu"):
            return False
        return not torch.equal(self.live, self.saved)

    def values(self, parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The same few values (then, now) in the dtype of now; None where none were taken.

        Then and now are compared in the order of memory, so not across a change of strides.
        """
        held = _held(parameter)
        if self.saved is None or self.place[2] != held.shape or self.place[3] != held.stride():
            return None
        now = _sampled(held)
        return None if now is None else (self.saved.view(self.dtype).to(held.device, held.dtype), now)


def take_snapshots(pairs: Sequence[tuple[Snapshot, torch.Tensor]]) -> None:
    """Make this moment the one that `has_changed` compares with, for (snapshot, parameter) pairs."""
    saved, live = [], []
    for snapshot, parameter in pairs:
        held = _held(parameter)
        snapshot.version = held._version  # noqa: SLF001
        place = _place(held)
        if place != snapshot.place:
            snapshot.place, snapshot.dtype = place, held.dtype
            snapshot.live = _as_integers(_sampled(held)) if is_gapless(held) else None
            snapshot.saved = None if snapshot.live is None else snapshot.live.clone()
        if snapshot.live is None:
            values = _as_integers(_sampled(held))
            snapshot.saved = None if values is None else values.clone()
        elif snapshot.saved is not None:
            saved.append(snapshot.saved)
            live.append(snapshot.live)
    if saved:
        torch._foreach_copy_(saved, live)


def _as_integers(values: torch.Tensor | None) -> torch.Tensor | None:
    integer = None if values is None else INTEGERS.get(values.dtype)
    return None if values is None or integer is None else values.view(integer)


def _held(parameter: Any) -> Any:
    """The tensor whose memory it is: of a DTensor the local one, whose version counter is its own."""
    return getattr(parameter, "_local_tensor", parameter)


def _place(held: torch.Tensor) -> tuple[object, ...]:
    address = 0 if held.device.type == "meta" else held.data_ptr()
    return (address, held.dtype, held.shape, held.stride(), held.device)


def _sampled(held: torch.Tensor) -> torch.Tensor | None:
    """Some values, in evenly spaced runs of the memory or on a GPU in one: a view, or of a copy where it has gaps."""
    bare = held.detach()
    size = bare.numel()
    if bare.device.type == "meta" or not size:
        return None
    flat = torch.as_strided(bare, (size,), (1,), bare.storage_offset()) if is_gapless(bare) else bare.flatten()
    if size <= _RUNS * _RUN_LENGTH:
        return flat
    if bare.is_cuda:
        # One run: torch's multi-tensor copy takes all layers in one launch only where nothing is strided.
        return flat.narrow(0, (size - _RUNS * _RUN_LENGTH) // 2, _RUNS * _RUN_LENGTH)
    spacing = (size - _RUN_LENGTH) // (_RUNS - 1)
    return flat.as_strided((_RUNS, _RUN_LENGTH), (spacing, 1), flat.storage_offset())


def is_gapless(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their memory without gaps, in any order of the axes."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True
