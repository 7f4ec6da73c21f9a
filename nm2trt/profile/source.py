"""What the user named: a build folder whose manifest vouches for its ONNX, or a bare ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from nm2trt.artifacts import BuildDocument, NetworkRecord, sha256_of
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.errors import InputError
from nm2trt.onnx_tools.graph_compare import read_model, zero_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One network with what is known of it."""

    path: Path
    """The ONNX file."""
    model: onnx.ModelProto
    record: NetworkRecord
    build: BuildDocument | None
    folder: Path | None = None
    """The build folder, where there is one."""


def read_source(path: Path) -> Source:
    """Read a build folder or an ONNX file.

    Raises:
        InputError: Missing, no build, no ONNX, or an ONNX that is not the one that the build's manifest names.
    """
    if not path.exists():
        raise InputError("no such file or folder", where=path, hint="name a folder of `nm2trt export` or an ONNX file")
    if path.is_file():
        model = read_model(path)
        record = NetworkRecord(kind="onnx", name=path.name, sha256=sha256_of(path), zero_share=zero_share(model))
        return Source(path=path, model=model, record=record, build=None)
    build = BuildDocument.read(path, hint="name a folder that `nm2trt export` wrote, or an ONNX file")
    digest = _checked_digest(path, build)
    model = read_model(path / ONNX_FILE)
    record = NetworkRecord(
        kind="build",
        name=path.resolve().name,
        sha256=digest,
        method=build.source.method,
        pattern=build.source.pattern,
        model=build.source.model.name if build.source.model else None,
        zero_share=zero_share(model),
    )
    return Source(path=path / ONNX_FILE, model=model, record=record, build=build, folder=path)


def _checked_digest(folder: Path, build: BuildDocument) -> str:
    path = folder / ONNX_FILE
    hint = "export it again"
    if ONNX_FILE not in build.files:
        raise InputError(f"build.json does not name {ONNX_FILE}", where=folder, hint=hint)
    if not path.is_file():
        raise InputError(f"{ONNX_FILE} is missing, though build.json names it", where=folder, hint=hint)
    digest = sha256_of(path)
    expected = build.files[ONNX_FILE].sha256
    if digest != expected:
        raise InputError(
            f"sha256 {digest[:12]}… is not the {expected[:12]}… of build.json: the file was changed",
            where=path,
            hint=hint,
        )
    return digest
