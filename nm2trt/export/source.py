"""Where a network to export comes from: a run folder, read back and checked against its own manifest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from nm2trt.artifacts import BuildSource, FileRecord, RunDocument
from nm2trt.artifacts.code_trust import check_code
from nm2trt.errors import ConfigError, InputError
from nm2trt.export.inputs import INPUT, InputSpec
from nm2trt.library_errors import one_line
from nm2trt.models import build_model, load_strict

CHECKPOINT = "checkpoint.safetensors"
_TRAIN_AGAIN = "train again with `nm2trt train`"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSource:
    """A network in float32 on the CPU, in evaluation mode, and what its maker said of it."""

    module: nn.Module
    inputs: tuple[InputSpec, ...]
    patterns: dict[str, str]
    """Parameter name -> "N:M" for every weight that was meant to be sparse; empty for a dense network."""
    data: str | None
    """Data set whose test samples the numerics are checked on; None where the source names none."""
    record: BuildSource
    claimed: bool = True
    """Whether `patterns` are what the source says of itself; False where they were only found in its weights."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One sample of the first input, without the batch."""
        return self.inputs[0].shape


def load_run(folder: Path, *, trust: bool = False) -> ExportSource:
    """Build the network of a run folder with the weights of its checkpoint.

    Args:
        folder: Written by `nm2trt train`.
        trust: Import code that run.json names although this machine did not write it.

    Raises:
        InputError: run.json or the checkpoint is missing, the checkpoint is not the one that run.json names
            (sha256), is no safetensors, or does not fit the network; or run.json names code, and this machine did not
            write it.
    """
    run = RunDocument.read(folder, hint="SOURCE is a folder that `nm2trt train` wrote to the end")
    check_code(folder / RunDocument.FILE, run.named_code(), trust=trust)
    path = folder / CHECKPOINT
    content = _read_checked(path, run.files.get(CHECKPOINT))
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise InputError(f"no readable safetensors: {one_line(error)}", where=path, hint=_TRAIN_AGAIN) from None
    try:
        # build_model draws fresh weights; the caller's random numbers are left as they were.
        with torch.random.fork_rng(devices=[]):
            module = build_model(run.model.name, run.model.input_shape, run.model.classes)
    except ConfigError as error:
        raise InputError(str(error), where=folder / RunDocument.FILE, hint=_TRAIN_AGAIN) from None
    load_strict(module, tensors, path, hint=_TRAIN_AGAIN)
    return ExportSource(
        module=module.float().eval(),
        inputs=(InputSpec(name=INPUT, shape=run.model.input_shape),),
        patterns={layer.name: layer.pattern for layer in run.layers if layer.pattern is not None},
        data=run.data,
        record=BuildSource(
            kind="run",
            name=folder.resolve().name,
            sha256=run.files[CHECKPOINT].sha256,
            method=run.method,
            pattern=run.pattern,
            data=run.data,
            model=run.model,
            result=run.result,
        ),
    )


def _read_checked(path: Path, expected: FileRecord | None) -> bytes:
    """Read a file once, so that what was checked is what is used."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"the run has no {path.name}", where=path.parent, hint=_TRAIN_AGAIN) from None
    if expected is None:
        raise InputError(f"run.json does not list {path.name}", where=path.parent, hint=_TRAIN_AGAIN)
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        raise InputError(
            f"sha256 {found} ({len(content)} bytes) is not {expected.sha256} ({expected.size_bytes} bytes) of run.json,"
            " so the file was changed or cut after training",
            where=path,
            hint=f"put the original file back, or {_TRAIN_AGAIN}",
        )
    return content
