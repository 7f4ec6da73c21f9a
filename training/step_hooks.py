"""Around every step of an optimizer, once and to the end, whoever calls it and whatever is wrapped around it.

torch's step hooks fire for each `step` in a chain of `super().step()`, not at all where a wrapper steps an optimizer
inside of it by another method, and half when the step raises. `StepHooks` turns all of this into five calls of a
`StepActions`: weights opened and closed around the outermost step, gradients altered and given back around the
innermost optimizer's, and closures evaluated in between.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from nm2trt.errors import ConfigError

_STEP = "step"
_MODES = ("eval", "train")
"""Of schedule-free optimizers: they swap the parameters between two points."""


class StepActions(Protocol):
    """What `StepHooks` calls; each may raise."""

    end: Callable[[], None]
    """Set by `StepHooks` to what takes its hooks off again."""

    def open_weights(self) -> None:
        """Before the outermost step."""

    def close_weights(self, *, stepped: bool) -> None:
        """After the outermost step, also one that raised. `stepped`: an update has run through."""

    def alter_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the step of an optimizer that updates parameters; changes nothing that was altered before."""

    def restore_gradients(self, optimizer: torch.optim.Optimizer, *, stepped: bool) -> None:
        """After the outermost of these, also if it raised or is to evaluate a closure: then it has not `stepped`."""


def optimizer_chain(optimizer: object) -> list[Any]:
    """The optimizer and those inside of it, the outermost first.

    accelerate's wrapper is left out: it only decides whether to step the one inside.

    Raises:
        ConfigError: Nothing here is a torch optimizer whose step calls hooks.
    """
    found: list[Any] = []
    waiting: list[Any] = [optimizer]
    while waiting:
        candidate = waiting.pop(0)
        if any(candidate is other for other in found):
            continue
        found.append(candidate)
        waiting += [value for value in _attributes(candidate) if _is_stepped(value)]
    chain = [one for one in found if not type(one).__module__.startswith("accelerate.")]
    if not callable(getattr(optimizer, _STEP, None)) or not any(_has_hooks(one) for one in chain):
        raise ConfigError(
            f"{type(optimizer).__name__} is no torch optimizer and has none inside, so its steps cannot be seen",
            where="optimizer",
            hint="give sparsify the torch.optim.Optimizer that steps the weights",
        )
    return chain


def _attributes(candidate: object) -> list[object]:
    values: list[object] = []
    for value in getattr(candidate, "__dict__", {}).values():
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return values


def _is_stepped(value: object) -> bool:
    return isinstance(value, torch.optim.Optimizer) or (
        callable(getattr(value, _STEP, None))
        and isinstance(getattr(value, "param_groups", None), list)
        and not isinstance(value, type)
    )


def _has_hooks(candidate: object) -> bool:
    return "_optimizer_step_pre_hooks" in getattr(candidate, "__dict__", {})


def innermost(chain: Sequence[Any]) -> list[torch.optim.Optimizer]:
    """Of a chain, the optimizers with hooks that have no other one inside, or parameters that those do not have.

    The latter step these themselves (Muon with an AdamW for the rest), or another process does (ZeRO).
    """
    hooked = [one for one in chain if _has_hooks(one)]
    inner = [
        one
        for one in hooked
        if not any(other is not one and any(other is value for value in _attributes(one)) for other in hooked)
    ]
    inner = inner or hooked[-1:]
    stepped = {id(parameter) for one in inner for parameter in _parameters(one)}
    return inner + [one for one in hooked if any(id(parameter) not in stepped for parameter in _parameters(one))]


def _parameters(optimizer: Any) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold a Ctrl-C back until the weights are whole again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return
    caught: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught:
            before(*caught[0])


class StepHooks:
    """The hooks of one sparsifier on an optimizer and on those inside of it."""

    def __init__(self, optimizer: object, actions: StepActions) -> None:
        self._actions = actions
        actions.end = self.remove
        chain = optimizer_chain(optimizer)
        self.given = weakref.ref(optimizer)
        self._inner = {id(one) for one in innermost(chain)}
        self._chain = [weakref.ref(one) for one in chain]
        self._depth, self._inner_depth, self._running = 0, 0, 0
        self._stepped = False
        self._active = True
        self._handles: list[tuple[weakref.ref[Any], Any, Any]] = []
        for one in chain:
            if _has_hooks(one):
                self._register(one)
            self._guard(one, _STEP)
            for mode in _MODES:
                if callable(getattr(one, mode, None)):
                    self._guard(one, mode)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that update parameters themselves, as long as they live."""
        return [one for one in (ref() for ref in self._chain) if one is not None and id(one) in self._inner]

    @property
    def is_open(self) -> bool:
        """Whether a step is going on."""
        return self._depth > 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The weights opened for whoever writes to them."""
        self._enter()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._leave()

    def remove(self) -> None:
        """Take everything off again."""
        self._active = False
        for _, pre, post in self._handles:
            pre.remove()
            post.remove()
        self._handles = []
        for ref in self._chain:
            one = ref()
            for name in (_STEP, *_MODES):
                function: Any = getattr(getattr(one, "__dict__", {}).get(name), "__func__", None)
                if one is not None and getattr(function, "_step_hooks", None) is self:
                    # Somebody's wrapper that was there before comes back; else the class's own method.
                    if function._before is None:  # noqa: SLF001 -- our own function
                        delattr(one, name)
                    else:
                        setattr(one, name, function._before)  # noqa: SLF001

    def _register(self, optimizer: torch.optim.Optimizer) -> None:
        # Hooks stay outside of torch.compile(optimizer.step): a compiler cannot trace the pass over the weights.
        before, after = (
            torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
            for hook in (self._before_step, self._after_step)
        )
        pre, post = optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)
        self._handles.append((weakref.ref(optimizer), pre, post))
        self._order(optimizer)

    def _order(self, optimizer: object) -> None:
        """Come last before a step and first after it, so that others see N:M weights whenever they registered."""
        for ref, pre, post in self._handles:
            if ref() is optimizer:
                hooks: Any = optimizer
                hooks._optimizer_step_pre_hooks.move_to_end(pre.id)  # noqa: SLF001
                hooks._optimizer_step_post_hooks.move_to_end(post.id, last=False)  # noqa: SLF001

    def _guard(self, target: Any, name: str) -> None:
        """Stand before a method of one object, to see that it ends, and how."""
        mine, before = self, vars(target).get(name)
        original = getattr(target, name)
        bound = getattr(original, "__self__", None) is target
        function: Callable[..., Any] = original.__func__ if bound else original
        # timm's Lookahead has the attributes for hooks but no base class that calls them, and who has replaced the
        # method of one object may call it or not.
        hooked = _has_hooks(target) and getattr(type(target).step, "hooked", False)
        known = before is None or hasattr(before, "_wrapped_by_lr_sched") or hasattr(before, "_step_hooks")
        whole = name != _STEP or not (hooked and known)

        @functools.wraps(function)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            arguments = (self, *args) if bound else args
            if not mine._is_of(self):
                return function(*arguments, **kwargs)
            return mine._run(self, function, arguments, kwargs, whole=whole, is_step=name == _STEP)

        guarded: Any = method
        guarded._step_hooks, guarded._before = self, before  # noqa: SLF001
        setattr(target, name, types.MethodType(method, target))

    def _is_of(self, target: object) -> bool:
        # A copied object keeps this method, but is none of ours.
        return self._active and any(ref() is target for ref in self._chain)

    def _run(
        self,
        target: Any,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        whole: bool,
        is_step: bool,
    ) -> Any:
        """Call a guarded method; `whole`: torch calls no hooks around it, so this does."""
        depths = self._depth, self._inner_depth
        self._running += 1
        try:
            self._order(target)
            if not whole:
                return function(*args, **kwargs)
            self._begin(target if is_step else None)
            args, kwargs = self._with_closure(args, kwargs, offset=int(bool(args) and args[0] is target))
            result = function(*args, **kwargs)
            self._finish(target if is_step else None)
            return result  # noqa: TRY300 -- the step ends before its result is known to be one
        except BaseException:
            self._unwind(*depths)
            raise
        finally:
            self._running -= 1

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._depth and not self._running and _torch_steps_running() <= self._depth:
            # A step that was called past the guard, and raised.
            self._unwind(0, 0)
        self._begin(optimizer)
        # torch hands the hook the arguments of the unbound step, so the optimizer itself comes first.
        given = self._with_closure(args, kwargs, offset=1)
        return None if given == (args, kwargs) else given

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._finish(optimizer)

    def _begin(self, optimizer: Any) -> None:
        self._enter()
        if id(optimizer) in self._inner:
            self._inner_depth += 1
            with torch.no_grad(), uninterrupted():
                self._actions.alter_gradients(optimizer)

    def _finish(self, optimizer: Any) -> None:
        if id(optimizer) in self._inner and self._inner_depth:
            self._inner_depth -= 1
            if self._inner_depth == 0:
                self._stepped = True
                with torch.no_grad(), uninterrupted():
                    self._actions.restore_gradients(optimizer, stepped=True)
        self._leave()

    def _enter(self) -> None:
        if self._depth == 0:
            self._stepped = False
            with torch.no_grad(), uninterrupted():
                self._actions.open_weights()
                self._depth = 1
            return
        self._depth += 1

    def _leave(self) -> None:
        if self._depth == 0:
            return
        self._depth -= 1
        if self._depth == 0:
            with torch.no_grad(), uninterrupted():
                self._actions.close_weights(stepped=self._stepped)

    def _unwind(self, depth: int, inner_depth: int) -> None:
        """Leave what an exception has cut off."""
        if self._inner_depth > inner_depth == 0:
            self._inner_depth = 0
            with torch.no_grad(), uninterrupted():
                for optimizer in self.optimizers:
                    self._actions.restore_gradients(optimizer, stepped=False)
        if self._depth > depth:
            self._depth = max(depth, 1)
            if depth == 0:
                self._stepped = False
                self._leave()

    def _with_closure(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, offset: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._sparse_closure(kwargs["closure"])}
        if len(args) > offset and callable(args[offset]):
            return (*args[:offset], self._sparse_closure(args[offset]), *args[offset + 1 :]), kwargs
        return args, kwargs

    def _sparse_closure(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        """The closure, evaluated at N:M weights within a step that has opened them."""

        @functools.wraps(closure)
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            depth, inner_depth = self._depth, self._inner_depth
            if depth == 0:
                return closure(*args, **kwargs)
            if inner_depth:
                with torch.no_grad(), uninterrupted():
                    for optimizer in self.optimizers:
                        self._actions.restore_gradients(optimizer, stepped=False)
            self._depth, self._inner_depth, stepped, self._stepped = 1, 0, self._stepped, False
            self._leave()
            result = closure(*args, **kwargs)
            self._enter()
            self._depth, self._inner_depth, self._stepped = depth, inner_depth, stepped
            if inner_depth:
                with torch.no_grad(), uninterrupted():
                    for optimizer in self.optimizers:
                        self._actions.alter_gradients(optimizer)
            return result

        return evaluate


def _torch_steps_running() -> int:
    """How many steps of torch optimizers are on the stack of this thread."""
    count, frame = 0, sys._getframe(1)  # noqa: SLF001 -- the only way to the stack without its sources
    current: types.FrameType | None = frame
    while current is not None:
        code = current.f_code
        count += code.co_name == "wrapper" and code.co_filename.endswith("optimizer.py")
        current = current.f_back
    return count
