"""Which weights a torch network multiplies its inputs by, in the order of execution, seen where torch does it.

Modules hide what they do: attention reads slices of a packed weight and never calls the module of its output
projection; Conv1D of transformers stores [in, out]. All of them end in a few operators, and there a weight is known by
its memory. So no list of module classes is kept, and what a network computes by functions alone is found, too.

Legend: O outputs, I inputs, k kernel sizes; a convolution's weight is [O, I / groups, k...].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nm2trt.errors import InputError
from nm2trt.library_errors import one_line

Batches = Callable[[], Iterable[Any]]
"""Gives the same batches at every call: a tensor, a tuple of arguments, or a dict of keyword arguments."""
Kind = Literal["linear", "conv", "conv-transpose", "embedding"]

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class WeightUse:
    """A weight, or the slice of one, as an operator reads it. Equal for every call that reads the same one."""

    name: str
    """Of the parameter."""
    kind: Kind
    shape: tuple[int, ...]
    """As read: [O, I] or [O, I / groups, k...]."""
    strides: tuple[int, ...]
    offset: int
    """Elements before it in the parameter's memory."""
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    def view(self, model: nn.Module) -> torch.Tensor:
        """Return the weight in the shape as read; it shares the parameter's memory."""
        return model.get_parameter(self.name).detach().as_strided(self.shape, self.strides, self.offset)


OnUse = Callable[[WeightUse, torch.Tensor], None]


class WatchWeights(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls `on_use` with the weight and its input before torch multiplies them.

    Args:
        model: Whose parameters are watched.
        on_use: The input is [rows, I], or [N, C, spatial...] of a convolution.
    """

    def __init__(self, model: nn.Module, on_use: OnUse) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_use = on_use
        self._names = {
            parameter.untyped_storage().data_ptr(): name
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = self._read(func, args)
        if found is not None:
            self._on_use(*found)
        return func(*args, **(kwargs or {}))

    def _read(self, func: Any, args: tuple[Any, ...]) -> tuple[WeightUse, torch.Tensor] | None:
        if func is _aten.mm.default:
            return self._product(args[0], args[1])
        if func is _aten.addmm.default:
            return self._product(args[1], args[2])
        if func is _aten.convolution.default:
            return self._convolution(*args)
        if func is _aten.embedding.default and (name := self._name_of(args[0])):
            return WeightUse(
                name, "embedding", tuple(args[0].shape), args[0].stride(), int(args[0].storage_offset())
            ), args[1]
        return None

    def _name_of(self, weight: torch.Tensor) -> str | None:
        return self._names.get(weight.untyped_storage().data_ptr())

    def _product(self, x_RI: torch.Tensor, weight_IO: torch.Tensor) -> tuple[WeightUse, torch.Tensor] | None:
        name = self._name_of(weight_IO)
        if name is None:
            return None
        weight_OI = weight_IO.t()
        shape = tuple(weight_OI.shape)
        return WeightUse(name, "linear", shape, weight_OI.stride(), int(weight_OI.storage_offset())), x_RI

    def _convolution(
        self,
        x_NCS: torch.Tensor,
        weight: torch.Tensor,
        _bias: Any,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        _output_padding: Any,
        groups: int,
    ) -> tuple[WeightUse, torch.Tensor] | None:
        name = self._name_of(weight)
        if name is None:
            return None
        geometry = (tuple(stride), tuple(padding), tuple(dilation))
        kind: Kind = "conv-transpose" if transposed else "conv"
        place = (tuple(weight.shape), weight.stride(), int(weight.storage_offset()))
        return WeightUse(name, kind, *place, groups, *geometry), x_NCS


@contextmanager
def as_in_inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients and without attention's fused path, which hides its weights; undone after."""
    modes = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes.items():
            module.training = training


class StopForward(BaseException):
    """Ends a forward pass whose rest is not needed; no network may catch it as an error of its own."""


def run_batches(model: nn.Module, batches: Batches, what: str, watch: WatchWeights | None = None) -> Iterator[Any]:
    """Run the network on every batch and give its outputs; None where a watcher stopped the pass.

    Args:
        model: In evaluation mode.
        batches: See `Batches`.
        what: The samples, for error lines.
        watch: Watches each pass.

    Raises:
        InputError: There is no batch, or the network cannot run on one.
    """
    count = 0
    for count, batch in enumerate(batches(), 1):
        try:
            if watch is None:
                yield call_network(model, batch)
                continue
            with watch:
                output = call_network(model, batch)
            yield output
        except StopForward:
            yield None
        except (InputError, GeneratorExit):
            raise
        except Exception as error:  # anything may come out of a network
            raise InputError(
                f"the network cannot run on batch {count - 1}: {type(error).__name__}: {one_line(error)}",
                where=what,
                hint="check the samples' shape and type",
            ) from error
    if not count:
        raise InputError("there is no sample", where=what, hint="give some, better hundreds")


def call_network(model: nn.Module, batch: Any) -> Any:
    """Run the network on one batch, on the device of its parameters."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if isinstance(batch, Mapping):
        return model(**{name: _moved(value, device) for name, value in batch.items()})
    arguments = batch if isinstance(batch, tuple | list) else (batch,)
    return model(*(_moved(value, device) for value in arguments))


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
