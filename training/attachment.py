"""How layers hang on a model: hooks on `load_state_dict`, and whether a parameter still is the model's."""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from nm2trt.training.layer_state import SparseLayer

Loaded = Callable[[SparseLayer], None]


class LayerHook:
    """Called after `load_state_dict` of the module that owns a sparse weight.

    It also keeps the residual with the module, so that a second `sparsify` finds the dense weights. A copied or
    pickled module gets a hook that does nothing: it is no part of this training, and needs no nm2trt to be loaded.
    """

    def __init__(self, layer: SparseLayer, loaded: weakref.WeakMethod[Loaded]) -> None:
        self.layer = layer
        self.loaded = loaded

    def __call__(self, *_: object) -> None:
        """Called by torch with the module and its incompatible keys."""
        loaded = self.loaded()
        if loaded is not None:
            loaded(self.layer)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return functools.partial(operator.setitem, {})

    def __reduce__(self) -> Any:
        # Taken by setitem({}, module, keys): a call without effect that every Python can unpickle.
        return functools.partial, (operator.setitem, {})


def attach(module: nn.Module, layer: SparseLayer, loaded: Loaded) -> RemovableHandle:
    """Put a `LayerHook` on a module."""
    register: Callable[[LayerHook], RemovableHandle] = module.register_load_state_dict_post_hook
    return register(LayerHook(layer, weakref.WeakMethod(loaded)))


def attached(module: nn.Module, parameter: nn.Parameter) -> list[LayerHook]:
    """The hooks on a module that are about this parameter."""
    return [
        hook
        for hook in module._load_state_dict_post_hooks.values()  # noqa: SLF001 -- torch lists them nowhere else
        if isinstance(hook, LayerHook) and hook.layer.parameter is parameter
    ]


class ModelLinks:
    """The way from the model to each layer's parameter, checked by identity."""

    def __init__(self, model: nn.Module, layers: Sequence[SparseLayer]) -> None:
        self._links: dict[tuple[int, str], tuple[dict[str, Any], str, object]] = {}
        owners = {
            id(parameter): (path, local)
            for path, module in model.named_modules()
            for local, parameter in module.named_parameters(recurse=False)
        }
        self.missing = []
        for layer in layers:
            if id(layer.parameter) not in owners:
                self.missing.append(layer)
            elif not hasattr(layer.parameter, "placements"):
                # FSDP2 swaps sharded parameters and gathered ones all the time.
                self._add(model, *owners[id(layer.parameter)], layer.parameter)

    def _add(self, model: nn.Module, path: str, local: str, parameter: nn.Parameter) -> None:
        here = model
        for name in path.split(".") if path else ():
            child = here._modules[name]  # noqa: SLF001 -- what the model calls, whatever __getattr__ says
            self._links[id(here), name] = (here._modules, name, child)  # noqa: SLF001
            here = child  # type: ignore[assignment]
        self._links[id(here), local] = (here._parameters, local, parameter)  # noqa: SLF001

    def hold(self) -> bool:
        """Whether every parameter is where it was."""
        return all(place.get(name) is thing for place, name, thing in self._links.values())
