"""checkpoint.safetensors: a plain state dict whose bytes depend on nothing but its content."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import torch
from safetensors.torch import save

from nm2trt._version import __version__
from nm2trt.pattern import NMPattern

FILE = "checkpoint.safetensors"
_ALIGNMENT = 8


def checkpoint_bytes(state: Mapping[str, torch.Tensor], patterns: Mapping[str, NMPattern], method: str) -> bytes:
    """Serialise a state dict with what it is meant to be.

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
    return _with_sorted_metadata(save({name: value.contiguous() for name, value in state.items()}, metadata=metadata))


def _with_sorted_metadata(raw: bytes) -> bytes:
    """Order the header's metadata: safetensors keeps it in a hash map, so equal files would differ in bytes."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]
