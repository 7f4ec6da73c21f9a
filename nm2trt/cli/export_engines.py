"""The engine part of `nm2trt export`: its options, and the arms that are built."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from nm2trt.artifacts import BatchRange, EngineRecord, GraphPort
    from nm2trt.engine import Chosen, EngineSettings

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--builder",
        default="auto",
        show_default=True,
        metavar="auto|tensorrt|tensorrt-rtx|none",
        help="auto: tensorrt where it and a GPU are present, else tensorrt-rtx, else none.",
    ),
    click.option(
        "--rebuilds",
        type=int,
        default=1,
        show_default=True,
        metavar="N",
        help="How often each engine is built; builds of one network differ, and `profile` can tell by how much.",
    ),
    click.option(
        "--sm", metavar="NN", help="Compute capability to compile for. Default: the GPU's; 80 for tensorrt-rtx."
    ),
)


def engine_options(command: F) -> F:
    """Add the options of the engine part; all but --builder and --sm are fields of `nm2trt.engine.EngineSettings`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def build_engines(
    folder: Path,
    inputs: tuple[GraphPort, ...],
    *,
    onnx: str,
    batch: BatchRange | None,
    chosen: Chosen,
    sm: str | None,
    settings: EngineSettings,
    progress: Callable[[str], None],
) -> list[EngineRecord]:
    """Build the arms of one network; a failed build is a record with an error.

    Args:
        folder: Build folder, which holds the ONNX file.
        inputs: Of the graph; the dynamic dimension of each is its batch.
        onnx: Name of the ONNX file with the sparse weights.
        batch: Sizes to build for; None where every shape is fixed.
        chosen: The builder, or none.
        sm: Compute capability, as the builder settled it.
        settings: What the user set.
        progress: Called with what is being done, in words.

    Raises:
        OSError: The disk is full.
    """
    from nm2trt.artifacts import Arm
    from nm2trt.engine import EngineJob

    if chosen.builder is None:
        return []
    arms: tuple[Arm, ...] = ("control", "sparse")
    records = []
    for rebuild, arm in itertools.product(range(settings.rebuilds), arms):
        again = f", {rebuild + 1} of {settings.rebuilds}" if settings.rebuilds > 1 else ""
        progress(f"building the {arm} engine with {chosen.builder.name}{again}")
        job = EngineJob(
            backend=chosen.builder.name,
            onnx=folder / onnx,
            folder=folder,
            arm=arm,
            rebuild=rebuild,
            sm=sm,
            profile=profile_of(inputs, batch),
            batch=batch,
        )
        records.append(chosen.builder.build(job))
    return records


def profile_of(
    inputs: tuple[GraphPort, ...], batch: BatchRange | None
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Smallest, optimal and largest shape of each input that has a dynamic dimension.

    Raises:
        InputError: A dimension other than the first is dynamic: no batch size settles it.
    """
    from nm2trt.errors import InputError

    profile = {}
    for port in inputs:
        dynamic = [index for index, size in enumerate(port.shape) if not isinstance(size, int)]
        if not dynamic:
            continue
        if dynamic != [0] or batch is None:
            named = ", ".join(f"{index} ({port.shape[index]})" for index in dynamic)
            raise InputError(
                f"dimension {named} of input {port.name!r} has no size",
                where="model.onnx",
                mend="only the first, the batch, may vary: fix the others before the export",
            )
        smallest, optimal, largest = (
            tuple(size if isinstance(size, int) else count for size in port.shape)
            for count in (batch.min, batch.opt, batch.max)
        )
        profile[port.name] = (smallest, optimal, largest)
    return profile
