"""The gate that every plan passes before it is loaded. A plan is a program: who loads it, runs it."""

from __future__ import annotations

import platform as _platform
import sys
from pathlib import Path

from nm2trt.artifacts.build import BuildDocument, EngineRecord, Variant
from nm2trt.artifacts.files import sha256_of
from nm2trt.errors import InputError

_TRUST = "build it again here, or pass --trust if you made this file yourself"


def this_platform() -> str:
    """Name the operating system and processor as plans know them, "linux_x86_64"."""
    machine = _platform.machine().lower()
    return f"{sys.platform}_{'x86_64' if machine in ('x86_64', 'amd64') else machine}"


def check_plan(
    folder: Path,
    variant: Variant,
    *,
    tensorrt_version: str,
    sm: str,
    platform: str,
    rebuild: int = 0,
    trust: bool = False,
    builder: str = "tensorrt",
) -> Path:
    """Check that a plan is the one that build.json names and that this machine may load it.

    Args:
        folder: Build folder.
        variant: "dense", "control" or "sparse".
        tensorrt_version: Of the library that will load it, all four numbers: plans know no other.
        sm: Compute capability of the GPU that will run it, "80".
        platform: As `this_platform` gives it.
        rebuild: Which repetition of the variant.
        builder: The library that will load it, "tensorrt" or "tensorrt-rtx": neither reads the other's plans.
        trust: The user made the file: its sha256 need not be the manifest's. What cannot run is refused all the same.

    Returns:
        The plan's path.

    Raises:
        InputError: There is no such plan, it was changed, or it was built for something else.
    """
    document = BuildDocument.read(folder, hint="name a folder that `nm2trt export` wrote")
    record = _record(folder, document, variant, rebuild)
    path = folder / str(record.file)
    # The manifest comes with the folder: a name in it may point anywhere.
    if path.parent != folder or path.is_symlink() or not path.is_file():
        raise InputError(f"no plain file {record.file!r} here, though build.json names it", where=folder, hint=_TRUST)
    if not trust and sha256_of(path) != record.sha256:
        raise InputError("sha256 is not that of build.json: the plan was changed", where=path, hint=_TRUST)
    _check_fit(path, record, tensorrt_version=tensorrt_version, sm=sm, platform=platform, builder=builder)
    return path


def _record(folder: Path, document: BuildDocument, variant: str, rebuild: int) -> EngineRecord:
    named = [one for one in document.engines if one.variant == variant and one.rebuild == rebuild]
    if not named or named[0].file is None:
        why = f": {named[0].error}" if named and named[0].error else ""
        raise InputError(f"build.json names no {variant} engine{why}", where=folder, hint="export it with --builder")
    return named[0]


def _check_fit(
    path: Path, record: EngineRecord, *, tensorrt_version: str, sm: str, platform: str, builder: str
) -> None:
    if record.builder != builder:
        raise InputError(
            f"was built by {record.builder}, whose plans {builder} cannot load",
            where=path,
            hint=f"use --builder {builder}",
        )
    wrong = [
        f"{what} {built or 'unknown'}, here is {here or 'unknown'}"
        for what, built, here in (
            ("TensorRT", record.builder_version, tensorrt_version),
            ("SM", record.sm, sm),
            ("platform", record.platform, platform),
        )
        if built != here
    ]
    if wrong:
        raise InputError(f"was built for {', '.join(wrong)}", where=path, hint="build it again on this machine")
    if record.plugins:
        listed = ", ".join(record.plugins)
        raise InputError(f"needs plugin libraries ({listed}), which nm2trt does not load", where=path)
