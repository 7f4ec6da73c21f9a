"""The engines of an export: the variants of one network, and the dense one they are compared with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx

from nm2trt.artifacts import BatchRange, EngineRecord, GraphPort, Variant
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.engine import BuildProgress, Chosen, EngineSettings, Network, build_variants, legal_nodes, ort_session
from nm2trt.errors import InputError
from nm2trt.onnx_tools.graph_compare import find_difference
from nm2trt.onnx_tools.lazy_file import read_model
from nm2trt.verify import ELIGIBLE, verify_path

DENSE_MODEL = "dense.onnx"
_BAR = 24


def build_engines(
    folder: Path,
    inputs: tuple[GraphPort, ...],
    *,
    onnx: str,
    batch: BatchRange | None,
    chosen: Chosen,
    sm: str | None,
    settings: EngineSettings,
    progress: Callable[[str], object],
) -> list[EngineRecord]:
    """Build the variants of one network; a failed build is a record with an error.

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
        ConfigError: The builder cannot do what the settings ask.
        InputError: The graph refuses the batch sizes, or the dense network is another one.
        OSError: The disk is full.
    """
    if settings.ort:
        ort_session(folder / onnx, profile_of(inputs, batch), workspace=settings.workspace).write(folder)
    if chosen.builder is None:
        return []
    name = chosen.builder.name

    def tell(variant: Variant, rebuild: int, step: BuildProgress | None) -> None:
        again = f", {rebuild + 1} of {settings.rebuilds}" if settings.rebuilds > 1 else ""
        bar = "" if step is None else f"  {progress_bar(step)}"
        progress(f"building the {variant} engine with {name}{again}{bar}")

    network = Network(
        folder=folder,
        onnx=onnx,
        dense_onnx=_take_dense(settings.dense, folder, onnx) if settings.dense is not None else None,
        profile=profile_of(inputs, batch),
        batch=batch,
        sm=sm,
    )
    return build_variants(chosen.builder, network, settings, tell)


def progress_bar(step: BuildProgress) -> str:
    """One line: how far the builder's present phase is, and its name."""
    full = _BAR * step.done // step.of
    return f"{'━' * full}{'─' * (_BAR - full)} {step.done} of {step.of}, {step.phase}"


def profile_of(
    inputs: tuple[GraphPort, ...], batch: BatchRange | None
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Smallest, optimal and largest shape of each input that has a dynamic dimension.

    Raises:
        InputError: A second dimension is dynamic: no batch size settles it.
    """
    profile = {}
    for port in inputs:
        dynamic = [index for index, size in enumerate(port.shape) if not isinstance(size, int)]
        if not dynamic:
            continue
        if len(dynamic) != 1 or batch is None:
            named = ", ".join(f"{index} ({port.shape[index]})" for index in dynamic)
            raise InputError(
                f"dimension {named} of input {port.name!r} has no size",
                where=ONNX_FILE,
                hint="only the batch may vary: fix the others before the export",
            )
        smallest, optimal, largest = (
            tuple(size if isinstance(size, int) else count for size in port.shape)
            for count in (batch.min, batch.opt, batch.max)
        )
        profile[port.name] = (smallest, optimal, largest)
    return profile


def _take_dense(source: Path, folder: Path, sparse: str) -> str:
    """Copy the dense network into the build folder, with its external data, once it has proved to be the same one."""
    path = source / ONNX_FILE if source.is_dir() else source
    hint = "--dense takes the same network with other weights, exported with the same options"
    if not path.is_file():
        raise InputError("no ONNX file", where=path, hint=hint)
    difference = find_difference(
        read_model(path), read_model(folder / sparse), words=("it", "the sparse network"), names="ports"
    )
    if difference:
        raise InputError(f"is not the sparse network with other weights: {difference}", where=path, hint=hint)
    _check_dense(path, folder / sparse)
    copy_onnx(path, folder / DENSE_MODEL)
    return DENSE_MODEL


def _check_dense(path: Path, sparse: Path) -> None:
    """Refuse a variant that would be called dense and is as sparse as the other."""
    count, most = (list(legal_nodes(verify_path(one)).values()).count(ELIGIBLE) for one in (path, sparse))
    if count and count >= most:
        raise InputError(
            f"{count} of its layers hold 2:4, so its weights are not dense",
            where=path,
            hint="--dense takes dense weights",
        )


def copy_onnx(source: Path, target: Path) -> None:
    """Copy an ONNX file; external data become one file beside it, whose name the copy holds.

    Raises:
        OSError: The disk is full.
    """
    model = onnx.load(str(source), load_external_data=False)
    if not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        shutil.copyfile(source, target)
        return
    onnx.load_external_data_for_model(model, str(source.parent))
    data = f"{target.name}.data"
    (target.parent / data).unlink(missing_ok=True)
    onnx.save(model, str(target), save_as_external_data=True, location=data, size_threshold=1024)
