"""Which Linears make a network's outputs, by the order of use and not of definition.

torch.fx traces the forward pass symbolically, on a copy that shares the parameters, so nothing of the user's is run
with values or altered. Modules with weights of their own, and those without any below them, are taken as single calls.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn


def output_linears(model: nn.Module) -> list[str] | None:
    """Names of the Linears whose results reach an output without passing another weight, in order of use.

    Returns:
        Module names; empty where other layers make every output; None where the forward pass cannot be traced.
    """
    graph = _trace(model)
    if graph is None:
        return None
    modules = dict(model.named_modules())
    found: dict[str, None] = {}
    seen: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "call_module" and owns_weights(modules[str(node.target)]):
            if isinstance(modules[str(node.target)], nn.Linear):
                found[str(node.target)] = None
            continue
        if not _reads_weight(node, model):
            waiting.extend(node.all_input_nodes)
    order = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    return sorted(found, key=order.index)


def owns_weights(module: nn.Module) -> bool:
    """Whether a module has a parameter of two or more dimensions of its own."""
    return any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))


def _reads_weight(node: fx.Node, model: nn.Module) -> bool:
    """Whether a function is called with a parameter of two or more dimensions, which makes it a layer by itself."""
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            value = _attribute(model, str(source.target))
            if isinstance(value, nn.Parameter) and value.dim() >= 2:
                return True
    return False


def _attribute(model: nn.Module, path: str) -> Any:
    found: Any = model
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        if owns_weights(m) or isinstance(m, nn.MultiheadAttention):
            return True
        return not any(parameter.dim() >= 2 for parameter in m.parameters())


def _trace(model: nn.Module) -> fx.Graph | None:
    if owns_weights(model) and isinstance(model, nn.Linear):
        return None
    tensors: Iterable[torch.Tensor] = itertools.chain(model.parameters(), model.buffers())
    try:
        # The copy takes the attributes that a forward pass sets; the tensors are the same ones.
        shared = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        for module in shared.modules():
            module._forward_hooks.clear()  # noqa: SLF001 -- hooks are for values, of which there are none
            module._forward_pre_hooks.clear()  # noqa: SLF001
        return _Tracer().trace(shared)
    except Exception:  # noqa: BLE001 -- control flow, foreign objects, whatever a user's forward does with a symbol
        return None
