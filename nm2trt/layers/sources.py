"""Choose the reader of a path: by what the file holds, then by its suffix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nm2trt.errors import InputError
from nm2trt.layers.stream import LayerSource, LayerWeight

CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.onnx"
_RUN_TRACES = ("run.json", "config.toml", "state", "metrics.jsonl")
_MEND = "pass a .safetensors or .onnx file, a run folder or a build folder"


def open_source(path: Path | str) -> LayerSource:
    """Open a checkpoint, an ONNX file, a run folder or a build folder.

    Args:
        path: `.safetensors`, `.onnx`, a folder that `nm2trt train` wrote (its checkpoint is opened) or that
            `nm2trt export` wrote (its `model.onnx` is opened).

    Raises:
        InputError: There is nothing at `path`, or nothing in it that can be judged.
    """
    file = _file_of(Path(path))
    try:
        kind = _kind(file)
    except PermissionError:
        raise InputError("may not be read", where=file, mend="check its permissions") from None
    if kind == "safetensors":
        from nm2trt.layers.safetensors_reader import open_safetensors

        return open_safetensors(file)
    if kind == "onnx":
        from nm2trt.layers.onnx_reader import open_onnx

        return open_onnx(file)
    raise InputError("is neither a safetensors nor an ONNX file", where=file, mend=_MEND)


def open_layers(path: Path | str) -> Iterator[LayerWeight]:
    """Stream the layers of a file or folder; arguments and errors as `open_source`."""
    return open_source(path).layers()


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        what = "is no file or folder" if path.exists() else "no such file or folder"
        raise InputError(what, where=path, mend="check the path")
    for name in (CHECKPOINT, MODEL):
        if (path / name).is_file():
            return path / name
    if any((path / name).exists() for name in _RUN_TRACES):
        raise InputError(
            f"a run folder without {CHECKPOINT}", where=path, mend="finish the training, or train again into it"
        )
    if (path / "build.json").exists():
        raise InputError(f"a build folder without {MODEL}", where=path, mend="export again")
    raise InputError(f"holds neither {CHECKPOINT} nor {MODEL}", where=path, mend=_MEND)


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(16)
    # The header's length in 8 bytes, then its JSON.
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "safetensors"
    if suffix in (".safetensors", ".onnx"):
        return suffix[1:]
    # Field 1 (ir_version) as a varint opens every ONNX file that a library wrote.
    return "onnx" if head[:1] == b"\x08" else "unknown"
