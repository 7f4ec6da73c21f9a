"""Whether a saved sparsifier state fits the sparsifier and the model that it is loaded into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nm2trt.errors import ConfigError
from nm2trt.training.layer_state import SparseLayer
from nm2trt.training.shards import own_count, part_of

_KEYS = ("pattern", "residual", "bits", "flips")


def check_saved(state: Any, method: str, layers: Sequence[SparseLayer]) -> None:
    """Refuse a state of another run.

    Raises:
        ConfigError: It is no state, or of another method, other layers, patterns or shapes.
    """
    if not isinstance(state, Mapping) or not {"method", "steps", "frozen", "layers"} <= state.keys():
        raise ConfigError("this is no state of a sparsifier", where="state", hint="give what state_dict() returned")
    again = "resume with the configuration that the run was started with"
    if state["method"] != method:
        raise ConfigError(f"the saved state is of {state['method']!r}, this run of {method!r}", hint=again)
    for name, entry in state["layers"].items():
        if not isinstance(entry, Mapping) or any(key not in entry for key in _KEYS):
            raise ConfigError(
                "the saved state is damaged", where=f"layer {name}", hint="give what state_dict() returned"
            )
    mine = {layer.name: str(layer.pattern) for layer in layers}
    theirs = {name: entry["pattern"] for name, entry in state["layers"].items()}
    if mine != theirs:
        different = sorted(set(mine.items()) ^ set(theirs.items()))[:2]
        raise ConfigError(f"the saved state has other sparse layers: {different}", hint=again)
    for layer in layers:
        shape, theirs_shape = tuple(layer.parameter.shape), tuple(state["layers"][layer.name]["bits"].shape)
        if theirs_shape not in (shape, tuple(layer.bits.shape)):
            raise ConfigError(
                f"the saved state is of a weight of shape {list(theirs_shape)}, this one has {list(shape)}",
                where=f"layer {layer.name}",
                hint=again,
            )


def own_parts(entry: Mapping[str, Any], layer: SparseLayer) -> dict[str, torch.Tensor]:
    """This process's "bits", "flips" and, where there is one, "residual" of a saved entry.

    Raises:
        ConfigError: The shapes do not fit.
    """
    parts = {
        "bits": part_of(entry["bits"], layer.parameter),
        "flips": own_count(entry["flips"], layer.parameter),
    }
    if layer.residual is not None:
        parts["residual"] = part_of(entry["residual"], layer.parameter)
    return parts


def check_parts(parts: Sequence[tuple[SparseLayer, Mapping[str, torch.Tensor]]]) -> None:
    """Refuse a state that does not belong to the weights that the model has.

    Args:
        parts: Each layer with its saved "bits" and maybe "residual", this process's part of them.

    Raises:
        ConfigError: Names the first layer with a weight that is kept by the one and pruned by the other.
    """
    for layer, saved in parts:
        weight = layer.weight()
        pruned = (saved["bits"].to(weight.device) & 1) == 0
        both = 0 if layer.factor else int(((weight != 0) & pruned).count_nonzero())
        residual = saved.get("residual")
        if residual is not None:
            both += 0 if layer.is_whole else int(((residual.to(weight.device) != 0) & ~pruned).count_nonzero())
        if both:
            raise ConfigError(
                f"{both} of {weight.numel()} weights are kept in the model and pruned in the saved state, so they are "
                "of different moments",
                where=f"layer {layer.name}",
                hint="load the model's state dict of the same moment first, then the sparsifier's",
            )
