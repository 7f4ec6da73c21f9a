"""What an operator is really given for a weight, as against what the weight's name and module promise.

E * W holds where the operator reads the parameter itself, or something with zeros in the same places. A module that
computes its weight in the forward pass (weight standardization, centering, low-rank updates) may give the operator a
dense one. So the module's own forward is run once with a masked weight, and the weight that reaches the operator is
looked at; and the first forward pass of the whole network is watched for weights that are read in other ways.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from nm2trt.errors import ConfigError
from nm2trt.library_errors import one_line
from nm2trt.pattern import NMPattern
from nm2trt.training.masks import nm_mask
from nm2trt.training.shards import is_dtensor
from nm2trt.training.weight_reads import WeightReads

_PLAIN_FORWARDS = {
    kind.forward
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.linear.NonDynamicallyQuantizableLinear)
}
_PLAIN_CONVOLUTIONS = {kind._conv_forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}  # noqa: SLF001
_PROBE_BATCH = 2
_PROBE_VALUES = 13
_NODES_TO_FOLLOW = 64
_PRODUCT_NODES = ("Mm", "Addmm", "Bmm", "Convolution", "Linear", "Dot", "Einsum", "Embedding")
"""Parts of the names of autograd's nodes behind which another operator's result begins."""
_MASKED = 1
"""An input that the trial masks."""


def computed_weight(module: nn.Module, local: str) -> str | None:
    """Run a module's own forward with a masked weight and see whether its operator gets the zeros.

    Only where the class or the instance has a forward of its own; what it cannot be run on is left to the first
    forward pass of the network.

    Args:
        module: A Linear or a convolution.
        local: The parameter's name in it.

    Returns:
        Why it has to stay dense; None where the operator is given the zeros, or nothing could be seen.
    """
    if local != "weight" or _is_plain(module) or is_dtensor(module.weight):
        return None
    shape = _probe_shape(module)
    parameter = module.weight
    if shape is None or not isinstance(parameter, nn.Parameter) or parameter.is_meta:
        return None
    # Every second input is masked in every row, and no value that is kept is 0.
    row = torch.arange(parameter.shape[1], device=parameter.device)
    row = torch.where(row % 2 == 0, (row % _PROBE_VALUES + 1) / _PROBE_VALUES, 0).to(parameter.dtype)
    masked = row.view(1, -1, *[1] * (parameter.dim() - 2)).expand(parameter.shape).contiguous()
    if parameter.shape[1] <= _MASKED:
        return None
    reads: list[tuple[str, bool]] = []

    def see(operator: str, operand: torch.Tensor, axis: int | None) -> None:
        if axis is not None and operand.numel() == parameter.numel() and operand.shape[axis] == parameter.shape[1]:
            reads.append((operator, bool(operand.detach().select(axis, _MASKED).any())))

    x = torch.ones(shape, dtype=parameter.dtype, device=parameter.device)
    try:
        with _as_found(module), _swapped(module, local, nn.Parameter(masked, requires_grad=False)):
            module.eval()
            with torch.no_grad(), torch.random.fork_rng(devices=[]), WeightReads(see):
                module.forward(x)
    except Exception:  # noqa: BLE001 -- a forward with other arguments, other shapes, other devices
        return None
    dense = [operator for operator, is_dense in reads if is_dense]
    if reads and len(dense) == len(reads):
        kind = type(module).__name__
        return f"{kind} computes its weight in the forward pass, and {dense[0]} is given a dense one"
    return None


def _is_plain(module: nn.Module) -> bool:
    kind = type(module)
    if "forward" in module.__dict__ or kind.forward not in _PLAIN_FORWARDS:
        return False
    own = getattr(kind, "_conv_forward", None)
    return (own is None or own in _PLAIN_CONVOLUTIONS) and "_conv_forward" not in module.__dict__


def _probe_shape(module: Any) -> tuple[int, ...] | None:
    if isinstance(module, nn.Linear):
        return _PROBE_BATCH, module.in_features
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        reach = [(size - 1) * step + 1 for size, step in zip(module.kernel_size, module.dilation, strict=True)]
        return _PROBE_BATCH, module.in_channels, *reach
    return None


@contextmanager
def _swapped(module: nn.Module, local: str, parameter: nn.Parameter) -> Iterator[None]:
    before = module._parameters[local]  # noqa: SLF001 -- setting the attribute would call what watches it
    module._parameters[local] = parameter  # noqa: SLF001
    try:
        yield
    finally:
        module._parameters[local] = before  # noqa: SLF001


@contextmanager
def _as_found(module: nn.Module) -> Iterator[None]:
    """Put modes, buffers and attributes back that a forward pass changes."""
    modes = {part: part.training for part in module.modules()}
    attributes = dict(module.__dict__)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        for name in [name for name in module.__dict__ if name not in attributes]:
            del module.__dict__[name]
        module.__dict__.update(attributes)
        for part, mode in modes.items():
            part.training = mode
        for name, buffer in module.named_buffers():
            if name in buffers:
                buffer.data.copy_(buffers[name])


@dataclass(frozen=True, slots=True)
class Watched:
    """A weight whose use is watched: its name, its module with the parameter's name there, axis and pattern."""

    name: str
    module: nn.Module
    local: str
    axis: int
    pattern: NMPattern


class UseTrace:
    """Watches one forward pass and finds the weights that some operator reads otherwise than promised.

    Args:
        weights: What is promised.
        masked: Whether the weights hold zeros by now; if not, only the axes are compared.
    """

    def __init__(self, weights: Sequence[Watched], *, masked: bool) -> None:
        self._weights = weights
        self._masked = masked
        self._by_module = {id(weight.module): weight for weight in weights}
        self._stack: list[Watched] = []
        self.findings: dict[str, str] = {}
        """Parameter name -> why its pattern is not what an operator reads."""
        self.read: dict[str, None] = {}
        """Parameters that some operator read, in order of their first use."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Watch inside the block."""
        hooks = [register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave)]
        try:
            with WeightReads(self._see):
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self._stack.clear()

    def _enter(self, module: nn.Module, _inputs: Any) -> None:
        if id(module) in self._by_module:
            self._stack.append(self._by_module[id(module)])

    def _leave(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        if self._stack and self._stack[-1].module is module:
            self._stack.pop()

    def _see(self, operator: str, operand: torch.Tensor, axis: int | None) -> None:
        for weight in self._weights:
            parameter = getattr(weight.module, weight.local, None)
            if isinstance(parameter, torch.Tensor) and _shares_memory(operand, parameter):
                self.read.setdefault(weight.name)
                if axis is None or operand.stride(axis) != parameter.stride(weight.axis):
                    self.findings.setdefault(weight.name, f"the forward pass reads it otherwise, too, by {operator}")
                return
        if not self._masked or axis is None:
            return
        if self._stack:
            kind = type(self._stack[-1].module).__name__
            self._see_computed(
                self._stack[-1], f"{kind} computes its weight in the forward pass", operator, operand, axis
            )
            return
        for weight in self._weights:
            parameter = getattr(weight.module, weight.local, None)
            if getattr(parameter, "shape", None) == operand.shape and _is_computed_from(operand, parameter):
                self._see_computed(weight, "the forward pass computes another weight from it", operator, operand, axis)

    def _see_computed(self, weight: Watched, words: str, operator: str, operand: torch.Tensor, axis: int) -> None:
        parameter = getattr(weight.module, weight.local, None)
        if not isinstance(parameter, torch.Tensor) or operand.shape != parameter.shape or is_dtensor(operand):
            return
        self.read.setdefault(weight.name)
        groups = (operand != 0).movedim(axis, -1)
        if groups.shape[-1] % weight.pattern.m:
            return
        in_groups = groups.reshape(*groups.shape[:-1], groups.shape[-1] // weight.pattern.m, weight.pattern.m)
        most = int(in_groups.sum(-1).max()) if groups.numel() else 0
        if most > weight.pattern.n:
            self.findings.setdefault(
                weight.name,
                f"{words}: {operator} reads {most} non-zeros of {weight.pattern.m}",
            )


def _is_computed_from(operand: torch.Tensor, parameter: Any) -> bool:
    """Whether autograd has recorded that an operand follows from a parameter without a product in between."""
    waiting = [operand.grad_fn]
    for _ in range(_NODES_TO_FOLLOW):
        node = waiting.pop(0) if waiting else None
        if node is None:
            if waiting:
                continue
            return False
        if getattr(node, "variable", None) is parameter:
            return True
        if not any(product in node.name() for product in _PRODUCT_NODES):
            waiting += [source for source, _ in node.next_functions]
    return False


def _shares_memory(operand: torch.Tensor, parameter: torch.Tensor) -> bool:
    if is_dtensor(operand) or is_dtensor(parameter):
        return operand is parameter
    return operand.data_ptr() == parameter.data_ptr() and operand.numel() == parameter.numel() and operand.numel() > 0


class FirstForward:
    """Watches the first forward pass that runs eagerly, once, and then lets go of the model.

    A copy of the model, or a pickle of it, has a hook that does nothing.

    Args:
        model: The network; a weak reference is kept.
        trace: What is filled in.
        done: Called with the trace when the pass has ended.
    """

    def __init__(self, model: nn.Module, trace: UseTrace, done: Callable[[UseTrace], None]) -> None:
        self._model = weakref.ref(model)
        self._trace: UseTrace | None = trace
        self._done = done
        self._running: Any = None
        self._handles = [
            model.register_forward_pre_hook(_Hook(self._begin)),
            model.register_forward_hook(_Hook(self._end), always_call=True),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, module: nn.Module) -> None:
        if self._trace is None or self._running is not None or module is not self._model():
            return
        self._running = self._trace.active()
        self._running.__enter__()

    def _end(self, module: nn.Module) -> None:
        if self._running is None or module is not self._model():
            return
        running, trace = self._running, self._trace
        self._running = self._trace = None
        running.__exit__(None, None, None)
        self.remove()
        if trace is not None:
            self._done(trace)


class _Hook:
    """A module hook that neither a copy nor a pickle of the module takes along."""

    def __init__(self, act: Callable[[nn.Module], None] | None = None) -> None:
        self._act = act

    def __call__(self, module: nn.Module, *_: Any) -> None:
        if self._act is not None and not torch.compiler.is_compiling():
            self._act(module)

    def __deepcopy__(self, _memo: Any) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()


@contextmanager
def _masked(weights: Sequence[Watched]) -> Iterator[None]:
    """Prune the weights inside the block, so that it shows where their zeros go."""
    kept = []
    for weight in weights:
        part = _part(getattr(weight.module, weight.local))
        kept.append((part, part.clone()))
        if part.shape[weight.axis] % weight.pattern.m == 0:
            part.mul_(nm_mask(part, weight.pattern, weight.axis))
    try:
        yield
    finally:
        for part, before in kept:
            part.copy_(before)


def _part(parameter: Any) -> torch.Tensor:
    detached = parameter.detach()
    part: torch.Tensor = detached.to_local() if is_dtensor(detached) else detached
    return part


def trace_example(model: nn.Module, example_inputs: Any, weights: Sequence[Watched]) -> UseTrace:
    """Run a network once on an example, in evaluation mode and without gradients, and watch how its weights are used.

    Args:
        model: Left as it was.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments.
        weights: What is watched.

    Raises:
        ConfigError: The network cannot be run on it.
    """
    trace = UseTrace(weights, masked=True)
    positional = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _masked(weights), trace.active():
            if isinstance(example_inputs, dict):
                model(**example_inputs)
            else:
                model(*positional)
    except Exception as error:
        raise ConfigError(
            f"the network cannot be run on it: {type(error).__name__}: {one_line(error)}",
            where="example_inputs",
            hint="give a batch as the forward method takes it: a tensor, a tuple, or a dict of keyword arguments",
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
        # FSDP2 leaves weights gathered after a forward pass without a backward pass.
        for module in model.modules():
            gather_again: Any = getattr(type(module), "reshard", None)
            if isinstance(gather_again, FunctionType):
                gather_again(module)
    return trace
