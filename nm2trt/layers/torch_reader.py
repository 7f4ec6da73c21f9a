"""Layers of a .pt, .pth or .bin file, through torch's weights-only loader: code in a pickle never runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.layers.checkpoint import StoredTensor, layers_of
from nm2trt.layers.stream import LayerSource

if TYPE_CHECKING:
    import torch

_MEND = "save its state_dict as safetensors, or export the model to ONNX"
_NOT_THE_NETWORK = frozenset(
    ("optimizer", "optimizer_state_dict", "optim", "lr_scheduler", "scheduler", "scaler", "amp", "rng_state")
)
_WRAPPING_PREFIXES = ("module.", "_orig_mod.")
_DEPTH_LIMIT = 16


def open_torch(path: Path) -> LayerSource:
    """Open a file of `torch.save`: a state dict, or dicts that hold one (`state_dict`, `model`, ...).

    Raises:
        InputError: The file is truncated, holds code or whole modules, or no tensors.
    """
    tensors = torch_tensors(path)
    return LayerSource(path=path, kind="checkpoint", layers=partial(layers_of, tensors))


def torch_tensors(path: Path) -> list[StoredTensor]:
    """List the tensors of a `torch.save` file; errors as `open_torch`."""
    return [
        StoredTensor(name, tuple(tensor.shape), _dtype_name(tensor), partial(_numpy, tensor, name, path))
        for name, tensor in named_tensors(torch_content(path), path).items()
    ]


def named_tensors(content: object, path: Path) -> dict[str, torch.Tensor]:
    """Find the tensors in what `torch_content` returns, by the names that `torch_tensors` gives them.

    Raises:
        InputError: There are none.
    """
    found = dict(_tensors(content, (), 0))
    if not found:
        raise InputError("holds no tensors", where=path, mend=_MEND)
    names = _names(list(found))
    return {names[key]: tensor for key, tensor in found.items()}


def torch_content(path: Path) -> object:
    """Load a `torch.save` file on the CPU, mapped into memory where it can be; errors as `open_torch`."""
    import torch

    # Only zip archives can be mapped; older files are read whole.
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # noqa: BLE001 -- a broken or hostile pickle may raise anything
        text = str(error)
        if "Weights only load failed" in text or "weights_only" in text:
            what = "holds more than tensors (code or whole modules), which is not run"
        else:
            lines = text.strip().splitlines()
            what = f"is no complete torch file: {lines[0][:160] if lines else type(error).__name__}"
        raise InputError(what, where=path, mend=_MEND) from None


def _tensors(content: object, trail: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    import torch

    if isinstance(content, torch.Tensor):
        yield trail or ("tensor",), content
    elif isinstance(content, Mapping) and depth < _DEPTH_LIMIT:
        for key, value in content.items():
            if not (isinstance(key, str) and key in _NOT_THE_NETWORK):
                yield from _tensors(value, (*trail, str(key)), depth + 1)


def _names(keys: list[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Drop what all tensors share: the dict around a state dict, and the prefixes of data parallel and compile."""
    shared = 0
    while all(len(key) > shared + 1 for key in keys) and len({key[shared] for key in keys}) == 1:
        shared += 1
    if shared == 0 and any(len(key) > 1 for key in keys):
        wrapped = [key for key in keys if len(key) > 1]
        # Loose tensors beside one wrapped state dict (an epoch, a step) keep the network's names plain.
        shared_of = {key: 1 if len({other[0] for other in wrapped}) == 1 and len(key) > 1 else 0 for key in keys}
    else:
        shared_of = dict.fromkeys(keys, shared)
    names = {key: ".".join(key[shared_of[key] :]) for key in keys}
    for prefix in _WRAPPING_PREFIXES * 2:
        if all(name.startswith(prefix) for name in names.values()):
            names = {key: name.removeprefix(prefix) for key, name in names.items()}
    return names if len(set(names.values())) == len(names) else {key: ".".join(key) for key in keys}


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _numpy(tensor: torch.Tensor, name: str, path: Path) -> NDArray[Any]:
    import ml_dtypes
    import torch

    dtype = _dtype_name(tensor)
    # A view that repeats a few values, or a sparse layout, may claim any size and would be written out in full.
    strided = tensor.layout == torch.strided
    if not strided or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise InputError(f"tensor {name!r}: its shape is larger than its data", where=path, mend=_MEND)
    try:
        plain = tensor.detach()
        plain = plain.contiguous()
        if hasattr(ml_dtypes, dtype):
            # Types that numpy lacks travel as their bits.
            bits = torch.int16 if plain.element_size() == 2 else torch.uint8
            return np.asarray(plain.view(bits).numpy()).view(getattr(ml_dtypes, dtype))
        return np.asarray(plain.numpy())
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"tensor {name!r} of type {dtype} cannot be read: {str(error)[:120]}", where=path) from None
