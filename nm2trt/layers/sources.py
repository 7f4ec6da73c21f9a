"""Choose the reader of a path: by what the file holds, then by its suffix."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from nm2trt.artifacts.formats import PEFT, ForeignFormat, foreign_file, foreign_folder, is_adapter
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.errors import InputError
from nm2trt.layers.checkpoint import StoredTensor
from nm2trt.layers.huggingface import INDEXES, SINGLE_FILES, open_index, shard_names
from nm2trt.layers.stream import LayerSource, LayerWeight

CHECKPOINT = "checkpoint.safetensors"
_MOST_CANDIDATES = 4
_RUN_TRACES = ("run.json", "config.toml", "state", "metrics.jsonl")
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_KNOWN = {".safetensors": "safetensors", ".onnx": "onnx", ".npz": "npz"} | dict.fromkeys(_TORCH_SUFFIXES, "torch")
_HINT = "pass a .safetensors, .pt, .npz or .onnx file, or a folder that holds one (run, build, Hugging Face)"


def open_source(path: Path | str) -> LayerSource:
    """Open a checkpoint, an ONNX file, or a folder that holds one.

    Args:
        path: `.safetensors`, an index of safetensors shards, `.pt` / `.pth` / `.bin` of torch, `.npz`, `.onnx`; a
            folder that `nm2trt train` wrote (its checkpoint), that `nm2trt export` wrote (its `model.onnx`), or a
            Hugging Face model folder.

    Raises:
        InputError: There is nothing at `path`, or nothing in it that can be checked.
    """
    file = _file_of(Path(path))
    try:
        return _open(file)
    except PermissionError:
        raise InputError("may not be read", where=file, hint="check its permissions") from None


def open_layers(path: Path | str) -> Iterator[LayerWeight]:
    """Stream the layers of a file or folder; arguments and errors as `open_source`."""
    return open_source(path).layers()


def source_files(path: Path | str) -> list[Path]:
    """List the files that hold what `open_source` opens: the file itself, then shards or external data.

    Raises:
        InputError: As `open_source`.
    """
    file = open_source(path).path
    kind = file_kind(file)
    if kind == "index":
        return [file, *(file.parent / name for name in shard_names(file))]
    if kind == "onnx":
        from nm2trt.layers.onnx_reader import external_files

        return [file, *external_files(file)]
    return [file]


def checkpoint_tensors(path: Path) -> list[StoredTensor]:
    """List the tensors of a checkpoint, all shards together; empty for ONNX. Errors as `open_source`."""
    file = _file_of(Path(path))
    kind = file_kind(file)
    if kind == "index":
        from nm2trt.layers.huggingface import index_tensors

        return index_tensors(file)
    if kind == "safetensors":
        from nm2trt.layers.safetensors_reader import safetensors_tensors

        return safetensors_tensors(file)
    if kind == "torch":
        from nm2trt.layers.torch_reader import torch_tensors

        return torch_tensors(file)
    if kind == "npz":
        from nm2trt.layers.npz_reader import npz_tensors

        return npz_tensors(file)
    return []


def _open(file: Path) -> LayerSource:
    kind = file_kind(file)
    if kind == "index":
        return open_index(file)
    if kind == "foreign":
        found = foreign_file(file)
        assert found is not None
        raise _foreign(found, file)
    if kind == "safetensors":
        from nm2trt.layers.safetensors_reader import open_safetensors

        return _no_adapter(open_safetensors(file))
    if kind == "onnx":
        from nm2trt.layers.onnx_reader import open_onnx

        return open_onnx(file)
    if kind == "npz":
        from nm2trt.layers.npz_reader import open_npz

        return open_npz(file)
    if kind == "torch":
        from nm2trt.layers.torch_reader import open_torch

        return _no_adapter(open_torch(file))
    what = "is empty: it holds no bytes" if file.stat().st_size == 0 else "is no checkpoint and no ONNX file"
    raise InputError(what, where=file, hint=_HINT)


def foreign_error(path: Path) -> InputError | None:
    """The one line about a file or folder of another format; None where it is not recognized."""
    found = foreign_folder(path) if path.is_dir() else foreign_file(path)
    return None if found is None else _foreign(found, path)


def _foreign(found: ForeignFormat, path: Path) -> InputError:
    return InputError(f"is {found.what}", where=path, hint=found.hint.replace("PATH", str(path)))


def _no_adapter(source: LayerSource) -> LayerSource:
    """Refuse a file that holds nothing but the factors of an adapter: none of them is a layer's weight."""
    if is_adapter(layer.name for layer in source.layers()):
        raise _foreign(PEFT, source.path)
    return source


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        what = "is no file or folder" if path.exists() else "no such file or folder"
        raise InputError(what, where=path, hint="check the path")
    for name in (CHECKPOINT, ONNX_FILE, *INDEXES, *SINGLE_FILES):
        if (path / name).is_file():
            return path / name
    if any((path / name).exists() for name in _RUN_TRACES):
        raise InputError(
            f"a run folder without {CHECKPOINT}", where=path, hint="finish the training, or train again into it"
        )
    if (path / "build.json").exists():
        raise InputError(f"a build folder without {ONNX_FILE}", where=path, hint="export again")
    if (found := foreign_folder(path)) is not None:
        raise _foreign(found, path)
    candidates = sorted(file.name for file in path.iterdir() if file.suffix.lower() in _KNOWN and file.is_file())
    if candidates:
        more = ", ..." if len(candidates) > _MOST_CANDIDATES else ""
        raise InputError(
            f"holds no checkpoint and no {ONNX_FILE} by their usual names, but "
            + ", ".join(candidates[:_MOST_CANDIDATES])
            + more,
            where=path,
            hint="pass one of the files",
        )
    inside = sorted(
        folder.name for folder in path.iterdir() if any((folder / name).is_file() for name in (*INDEXES, *SINGLE_FILES))
    )
    where = f"pass a folder inside it: {', '.join(inside[:_MOST_CANDIDATES])}" if inside else _HINT
    raise InputError(f"holds no checkpoint and no {ONNX_FILE}", where=path, hint=where)


def file_kind(path: Path) -> str:
    """Tell the format of a file: index, safetensors, onnx, npz, torch, foreign or unknown."""
    if path.name.endswith(".index.json"):
        return "index"
    if foreign_file(path) is not None:
        return "foreign"
    with path.open("rb") as file:
        head = file.read(16)
    # The header's length in 8 bytes, then its JSON.
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "safetensors"
    if head[:4] == b"PK\x03\x04":
        return _zip_kind(path)
    suffix = path.suffix.lower()
    if suffix in _KNOWN and (suffix != ".bin" or head[:1] != b"\x08"):
        return _KNOWN[suffix]
    # Field 1 (ir_version) as a varint opens every ONNX file that a library wrote.
    return "onnx" if head[:1] == b"\x08" else "unknown"


def _zip_kind(path: Path) -> str:
    """Torch and numpy both write zip archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, NotImplementedError, struct.error):
        return _KNOWN.get(path.suffix.lower(), "torch")
    return "npz" if names and all(name.endswith(".npy") for name in names) else "torch"
