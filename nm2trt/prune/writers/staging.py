"""Copy a model beside its destination, edit the copy, and move it into place in one step at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts.files import staged_folder
from nm2trt.errors import ConfigError
from nm2trt.layers.config_json import CONFIG
from nm2trt.layers.huggingface import INDEXES, SINGLE_FILES
from nm2trt.layers.sources import open_source

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_OTHER_WEIGHTS = (".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".safetensors", *_TORCH_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Staged:
    """A copy under work."""

    model: Path
    """What `open_source` takes."""
    files: tuple[Path, ...]
    """Files that hold weights: one, or every shard."""
    notes: tuple[str, ...] = ()


@contextmanager
def staged_copy(source: Path, target: Path, *, force: bool) -> Iterator[Staged]:
    """Give a copy that becomes `target` when the block ends well; when it raises, nothing is left.

    A file becomes a file: its external data are copied too, under their own names, or under `target`'s name where
    they would lie in the folder of the originals. A Hugging Face folder, or an index of shards, becomes a folder
    with all of the original's files but weights in other formats, which would still be dense.

    Raises:
        ConfigError: The target is the source, exists and `force` is off, or is of another format.
        InputError: The source cannot be read.
    """
    file = open_source(source).path
    if _wants_folder(source, file, target):
        if target.exists():
            raise ConfigError(
                "the output folder exists", where=target, hint="choose another -o; folders are not replaced"
            )
        if target.resolve().is_relative_to(file.parent.resolve()):
            raise ConfigError("the output lies inside the source folder", where=target, hint="choose another -o")
        with staged_folder(target) as folder:
            yield _copied_folder(file, folder)
        return
    _check_target(file, target, force=force)
    if not target.parent.is_dir():
        raise ConfigError("there is no such folder", where=target.parent, hint="make it first")
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        staged = folder / target.name
        shutil.copyfile(file, staged)
        moves = _copied_data(file, staged, target, force=force) if file_is_onnx(file) else []
        if (file.parent / CONFIG).is_file():
            # It tells the axes of some weights, and is not moved to the target.
            shutil.copyfile(file.parent / CONFIG, folder / CONFIG)
        yield Staged(model=staged, files=(staged,))
        for name in moves:
            (target.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(target.parent / name)
        staged.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def file_is_onnx(file: Path) -> bool:
    """Tell an ONNX file from a checkpoint."""
    from nm2trt.layers.sources import file_kind

    return file_kind(file) == "onnx"


def _wants_folder(source: Path, file: Path, target: Path) -> bool:
    if file.name.endswith(".index.json"):
        return True
    return source.is_dir() and file.name in SINGLE_FILES and target.suffix.lower() not in _OTHER_WEIGHTS


def _check_target(file: Path, target: Path, *, force: bool) -> None:
    wanted, given = file.suffix.lower(), target.suffix.lower()
    if wanted != given and not {wanted, given} <= set(_TORCH_SUFFIXES):
        raise ConfigError(
            f"the output is written in the format of the input, {wanted or 'without a suffix'}",
            where=target,
            hint=f"name it {target.with_suffix(wanted).name}" if wanted else "",
        )
    if target.exists() and (target.is_dir() or target.samefile(file)):
        what = "the output path is a folder" if target.is_dir() else "the output is the input"
        raise ConfigError(what, where=target, hint="choose another -o")
    if not force and (target.exists() or target.is_symlink()):
        raise ConfigError("the output file exists", where=target, hint="choose another -o, or replace it with --force")


# Folders


def _copied_folder(file: Path, folder: Path) -> Staged:
    from nm2trt.layers.huggingface import shard_names

    source = file.parent
    names = shard_names(file) if file.name.endswith(".index.json") else [file.name]
    left_out = []
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if not path.is_file() or any(part.startswith(".") for part in inside.parts):
            continue
        other_index = path.name in INDEXES and path.name != file.name
        if (path.suffix.lower() in _OTHER_WEIGHTS and inside.as_posix() not in names) or other_index:
            left_out.append(inside.as_posix())
            continue
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / inside)
    notes = (f"left out, since their weights are not pruned: {', '.join(left_out)}",) if left_out else ()
    return Staged(folder / file.name, tuple(folder / name for name in names), notes)


# External data of ONNX files


def _copied_data(file: Path, staged: Path, target: Path, *, force: bool) -> list[str]:
    """Copy external data beside the staged file; returns their names relative to it."""
    import onnx

    from nm2trt.layers.onnx_reader import open_graph
    from nm2trt.onnx_tools.tensor_protos import tensor_protos
    from nm2trt.onnx_tools.tensors import find_external_file, is_absolute_location

    # Checks the file; its own proto is shared with a reader that renames tensors.
    open_graph(file)
    proto = onnx.load(str(file), format="protobuf", load_external_data=False)
    entries = [entry for tensor in tensor_protos(proto) for entry in tensor.external_data if entry.key == "location"]
    for entry in entries:
        # Two spellings of one file would be two copies.
        if not is_absolute_location(entry.value):
            entry.value = os.path.normpath(entry.value).replace(os.sep, "/")
    locations = list(dict.fromkeys(entry.value for entry in entries))
    same_folder = file.parent.resolve() == target.parent.resolve()
    renamed = {
        location: (f"{target.name}.data" if len(locations) == 1 else f"{target.name}.{index}.data")
        if same_folder
        else location
        for index, location in enumerate(locations)
    }
    for location, name in renamed.items():
        origin = find_external_file(location, file)
        if (target.parent / name).exists() and not force:
            raise ConfigError(
                "the file for external data exists",
                where=target.parent / name,
                hint="choose another -o, or replace it with --force",
            )
        (staged.parent / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, staged.parent / name)
    if locations and (same_folder or _spelled_otherwise(file, locations)):
        for entry in entries:
            entry.value = renamed[entry.value]
        onnx.save_model(proto, str(staged), format="protobuf")
    return list(renamed.values())


def _spelled_otherwise(file: Path, locations: list[str]) -> bool:
    """Whether the file spells a location in another way than the copies are named."""
    import onnx

    from nm2trt.onnx_tools.tensor_protos import tensor_protos

    proto = onnx.load(str(file), format="protobuf", load_external_data=False)
    held = {entry.value for tensor in tensor_protos(proto) for entry in tensor.external_data if entry.key == "location"}
    return not held <= set(locations)
