"""checkpoint.safetensors: a plain state dict whose bytes depend on nothing but its content."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from nm2trt._version import __version__
from nm2trt.errors import InputError
from nm2trt.pattern import NMPattern

FILE = "checkpoint.safetensors"
_ALIGNMENT = 8


def checkpoint_bytes(state: Mapping[str, torch.Tensor], patterns: Mapping[str, NMPattern], method: str) -> bytes:
    """Serialize a state dict with what it is meant to be.

    Args:
        state: Tensors by name, as `module.state_dict()` gives them.
        patterns: The pattern that each sparse tensor holds; goes into the metadata key `nm2trt.patterns`.
        method: How it was trained; metadata key `nm2trt.method`.
    """
    metadata = {
        "format": "pt",
        "nm2trt.version": __version__,
        "nm2trt.method": method,
        "nm2trt.patterns": json.dumps({name: str(pattern) for name, pattern in sorted(patterns.items())}),
    }
    return _with_sorted_metadata(save(_apart(state), metadata=metadata))


def check_saveable(state: Mapping[str, Any], where: str) -> None:
    """Find out before training what the last write would fail on.

    Raises:
        InputError: An entry is no tensor, or of a kind that safetensors does not hold.
    """
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"its state dict holds {name!r}, a {type(value).__name__}, which a checkpoint of tensors cannot hold",
                where=where,
                hint="keep it out of the state dict (get_extra_state)",
            )
        try:
            if value.layout != torch.strided or value.is_quantized:
                raise SafetensorError(f"layout {value.layout}")  # noqa: TRY301 -- one line for all
            save({"probe": torch.empty(0, dtype=value.dtype)})
        except (SafetensorError, KeyError, ValueError) as error:
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(
                f"its state dict holds {name!r} ({kind}), which safetensors cannot: {error}",
                where=where,
                hint="use an ordinary dtype and layout",
            ) from None


def _apart(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor with memory of its own: tied weights are written under each of their names."""
    seen: set[int] = set()
    found = {}
    for name, value in state.items():
        memory = value.untyped_storage().data_ptr()
        found[name] = value.contiguous() if memory not in seen else value.clone(memory_format=torch.contiguous_format)
        seen.add(memory)
    return found


def _with_sorted_metadata(raw: bytes) -> bytes:
    """Order the header's metadata: safetensors keeps it in a hash map, so equal files would differ in bytes."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]
