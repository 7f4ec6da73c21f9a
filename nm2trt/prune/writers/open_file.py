"""Opens a file of any format that can be written for editing in place."""

from __future__ import annotations

from pathlib import Path

from nm2trt.errors import InputError
from nm2trt.layers.sources import file_kind
from nm2trt.prune.writers.stored import CheckpointFacts, StoredFile, checkpoint_facts


def open_stored(path: Path, facts: CheckpointFacts | None = None) -> StoredFile:
    """Open a file for editing in place.

    Args:
        path: .safetensors, .pt / .pth / .bin or .onnx; a copy that may be changed.
        facts: Of the whole checkpoint that `path` is a file of; read from `path` by default.

    Raises:
        InputError: The format cannot be written, or the file cannot be read.
    """
    kind = file_kind(path)
    if kind == "safetensors":
        from nm2trt.prune.writers.safetensors_writer import SafetensorsFile

        return SafetensorsFile(path, facts or _facts_of(path))
    if kind == "torch":
        from nm2trt.prune.writers.torch_writer import TorchFile

        return TorchFile(path, facts or _facts_of(path))
    if kind == "onnx":
        from nm2trt.prune.writers.onnx_writer import OnnxFile

        return OnnxFile(path)
    raise InputError(
        f"{kind} files are checked but not written" if kind == "npz" else "is no checkpoint and no ONNX file",
        where=path,
        hint="pass a .safetensors, .pt or .onnx file",
    )


def _facts_of(path: Path) -> CheckpointFacts:
    found = checkpoint_facts(path)
    if found is None:
        raise InputError("holds no tensors", where=path)
    return found
