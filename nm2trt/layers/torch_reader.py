"""Layers of a .pt, .pth or .bin file, through torch's weights-only loader: code in a pickle never runs."""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.extras import explain_missing_module
from nm2trt.layers.checkpoint import StoredTensor, layers_of, neighbors_of
from nm2trt.layers.config_json import read_config
from nm2trt.layers.stream import LayerSource
from nm2trt.library_errors import one_line

if TYPE_CHECKING:
    import torch

_HINT = "save its state_dict as safetensors, or export the model to ONNX"
_NOT_THE_NETWORK = re.compile(
    r"^(optim(izer)?s?(_?\w*)?|\w*_optim(izer)?s?(_state(_dict)?s?)?|opt_state\w*|opt|(lr_)?sched(uler)?s?(_\w+)?"
    r"|\w+_sched(uler)?s?(_state(_dict)?s?)?|(grad_|loss_)?scaler(_\w+)?|amp|rng\w*|\w*rng_states?|callbacks|loops"
    r"|grads?|gradients?|momentum|exp_avgs?|exp_avg_sqs?|fp32_groups_flat|single_partition\w*)$",
    re.I,
)
"""Keys of a trainer's checkpoint under which something else than a network lies."""
_MOMENTS = (("m", "v"), ("mu", "nu"), ("mean", "var"), ("first_moment", "second_moment"))
_WRAPPING_PREFIXES = ("module.", "_orig_mod.")
_DEPTH_LIMIT = 16
_FEWEST_LISTED = 2
_DENSE_LIMIT = 64
"""A sparse tensor may grow by this factor when its zeros are written out, or to the bytes below."""
_DENSE_BYTES = 1 << 28
_SPARSE_HINT = "save weight.to_dense()"


def open_torch(path: Path) -> LayerSource:
    """Open a file of `torch.save`: a state dict, or dicts that hold one (`state_dict`, `model`, ...).

    Raises:
        InputError: The file is truncated, holds code or whole modules, or no tensors.
    """
    content = torch_content(path)
    tensors = _stored(named_tensors(content, path), path)
    return LayerSource(
        path=path,
        kind="checkpoint",
        layers=partial(layers_of, tensors, neighbors_of(tensors, read_config(path))),
        left_out=_left_out(content),
    )


def torch_tensors(path: Path) -> list[StoredTensor]:
    """List the tensors of a `torch.save` file; errors as `open_torch`."""
    return _stored(named_tensors(torch_content(path), path), path)


def _stored(tensors: Mapping[str, torch.Tensor], path: Path) -> list[StoredTensor]:
    return [
        # The pieces of a nested tensor have no common shape.
        StoredTensor(
            name,
            () if tensor.is_nested else tuple(tensor.shape),
            _dtype_name(tensor),
            partial(_numpy, tensor, name, path),
        )
        for name, tensor in tensors.items()
    ]


def named_tensors(content: object, path: Path) -> dict[str, torch.Tensor]:
    """Find the tensors in what `torch_content` returns, by the names that `torch_tensors` gives them.

    Raises:
        InputError: There are none.
    """
    found = dict(_tensors(content, (), 0))
    if not found:
        raise InputError("holds no tensors", where=path, hint=_HINT)
    names = _names(list(found))
    return {names[key]: tensor for key, tensor in found.items()}


def torch_content(path: Path) -> object:
    """Load a `torch.save` file on the CPU, mapped into memory where it can be; errors as `open_torch`.

    Raises:
        MachineError: torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise explain_missing_module(error.name, where=path) or error from None

    # Only zip archives can be mapped; older files are read whole.
    with path.open("rb") as file:
        head = file.read(4)
    is_zip = head == b"PK\x03\x04"
    if not is_zip and head[:1] != b"\x80":
        raise InputError("is no torch file: neither a zip archive nor a pickle", where=path, hint=_HINT)
    try:
        with warnings.catch_warnings():
            # About its own internals, which no user of this file can do anything about.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # noqa: BLE001 -- a broken or hostile pickle may raise anything
        raise _load_error(error, path, is_zip=is_zip) from None


def _load_error(error: Exception, path: Path, *, is_zip: bool) -> InputError:
    """What stopped torch.load, in words of our own: torch's are several lines of advice to programmers."""
    text = str(error)
    hint = _HINT
    if "SparseSemiStructured" in text:
        what, hint = "holds semi-structured sparse tensors, which torch does not load safely", _SPARSE_HINT
    elif "Weights only load failed" in text or "weights_only" in text:
        what = "holds more than tensors (code or whole modules), which is not run"
    elif is_zip and not _is_whole_zip(path):
        what, hint = "is no complete torch file: its zip archive is cut off or damaged", "copy or download it again"
    else:
        what = "is no complete torch file"
    return InputError(what, where=path, hint=hint)


def _is_whole_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, NotImplementedError, struct.error):
        return False


def _left_out(content: object, trail: tuple[str, ...] = ()) -> dict[str, int]:
    """Parts that are no network, with the tensors in them."""
    found: dict[str, int] = {}
    if isinstance(content, Mapping) and len(trail) < _DEPTH_LIMIT:
        for key, value in content.items():
            here = (*trail, str(key))
            if _is_no_network(key, value, content):
                if count := sum(1 for _ in _tensors(value, (), len(here), inside=True)):
                    found[".".join(here)] = count
            else:
                found |= _left_out(value, here)
    return found


def _is_no_network(key: object, value: object, siblings: Mapping[object, object]) -> bool:
    """By the key's name, or by the shape of an optimizer's state dict, whatever it is called."""
    import torch

    for moments in _MOMENTS:
        if key in moments and all(isinstance(siblings.get(one), Mapping) for one in moments):
            # Adam's first and second moments; a network's modules may be called so, but not with the same tensors.
            first, second = (_shapes(siblings[one]) for one in moments)
            others = [_shapes(other) for name, other in siblings.items() if name not in moments]
            return first == second and first in others
    if isinstance(value, Mapping) and "param_groups" in value and "state" in value:
        return True
    return isinstance(key, str) and not isinstance(value, torch.Tensor) and bool(_NOT_THE_NETWORK.match(key))


def _shapes(content: object) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {trail: tuple(tensor.shape) for trail, tensor in _tensors(content, (), 0, inside=True)}


def _tensors(
    content: object, trail: tuple[str, ...], depth: int, *, inside: bool = False
) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """Tensors with the keys that lead to them; `inside` what is no network, too."""
    import torch

    if isinstance(content, torch.Tensor):
        yield trail or ("tensor",), content
    elif isinstance(content, Mapping) and depth < _DEPTH_LIMIT:
        for key, value in content.items():
            if inside or not _is_no_network(key, value, content):
                yield from _tensors(value, (*trail, str(key)), depth + 1, inside=inside)
    elif isinstance(content, list | tuple) and depth < _DEPTH_LIMIT:
        for index, value in enumerate(content):
            if not inside and isinstance(value, torch.Tensor) and value.dim() < _FEWEST_LISTED:
                # A log of losses; its names would change those of the network.
                continue
            yield from _tensors(value, (*trail, str(index)), depth + 1, inside=inside)


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


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values lie in memory as an array; not so in sparse layouts."""
    import torch

    return tensor.layout == torch.strided and not tensor.is_nested


def _numpy(tensor: torch.Tensor, name: str, path: Path) -> NDArray[Any]:
    import ml_dtypes
    import torch

    dtype = _dtype_name(tensor)
    try:
        plain = tensor.detach()
        if plain.is_meta:
            raise InputError(f"tensor {name!r} has no values (device meta)", where=path, hint="load them, then save it")
        if not is_strided(plain):
            plain = _dense(plain, name, path)
        elif plain.untyped_storage().nbytes() < plain.numel() * plain.element_size():
            # A view that repeats a few values may claim any size and would be written out in full.
            raise InputError(f"tensor {name!r}: its shape is larger than its data", where=path, hint=_HINT)
        plain = plain.contiguous()
        if hasattr(ml_dtypes, dtype):
            # Types that numpy lacks travel as their bits.
            bits = torch.int16 if plain.element_size() == 2 else torch.uint8
            return np.asarray(plain.view(bits).numpy()).view(getattr(ml_dtypes, dtype))
        return np.asarray(plain.numpy())
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"tensor {name!r} of type {dtype} cannot be read: {one_line(error)}", where=path, hint=_HINT
        ) from None


def _dense(tensor: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """Write out the zeros of a sparse layout (COO, CSR, CSC, BSR, BSC)."""
    size_bytes = tensor.numel() * tensor.element_size()
    stored = tensor.coalesce().values() if tensor.is_sparse else tensor.values()
    if size_bytes > max(_DENSE_LIMIT * stored.numel() * tensor.element_size(), _DENSE_BYTES):
        raise InputError(
            f"tensor {name!r} is stored sparse, and its {size_bytes} bytes are too many to write out",
            where=path,
            hint=_SPARSE_HINT,
        )
    return tensor.to_dense()
