"""Which inputs and outputs a Triton configuration can describe, and which a server can batch."""

from __future__ import annotations

from pathlib import Path

from nm2trt.artifacts import BuildDocument, GraphPort
from nm2trt.errors import InputError, MachineError
from nm2trt.serve.ports import is_served_type

_TRIED = (2, 3)
"""Batch sizes that an output of unknown kind is tried at."""


def check_types(build: BuildDocument, *, where: Path) -> None:
    """Refuse ports whose values no server's tensors hold here: text, complex numbers, 8-bit and 4-bit floats.

    Raises:
        InputError: There is one.
    """
    for kind, port in _all_ports(build):
        if is_served_type(port.dtype):
            continue
        text = port.dtype.lower() in ("object", "string", "str")
        raise InputError(
            f"{kind} {port.name!r} holds {'text' if text else port.dtype}, which nm2trt packages for no server",
            where=where,
            hint="end the network at numbers, and leave the lookup of text to the client"
            if text
            else "cast it in the network and export again",
        )


def check_described(build: BuildDocument, *, batched: bool, where: Path) -> None:
    """Refuse ports that no config.pbtxt can describe.

    Args:
        build: Names, types and shapes.
        batched: Whether the server adds the batch, so that dims lack it.
        where: Named in the error.

    Raises:
        InputError: A scalar where the server does not batch (Triton: "cannot have empty reshape for non-batching model
            as scalar tensors are not supported"), or a dimension of size 0.
    """
    for kind, port in _all_ports(build):
        if not port.shape and not batched:
            raise InputError(
                f"{kind} {port.name!r} is a scalar (rank 0), and Triton describes none",
                where=where,
                hint="give it one dimension in the network (Unsqueeze, or keepdims) and export again",
            )
        empty = [size for size in port.shape if isinstance(size, int) and size < 1]
        if empty:
            raise InputError(
                f"{kind} {port.name!r} has a dimension of size {empty[0]}: {list(port.shape)}",
                where=where,
                hint="drop that output from the network and export again",
            )


def unbatched_ports(build: BuildDocument, onnx: Path) -> list[str]:
    """Name, with their shape, the ports whose first dimension is not the batch.

    A port whose first dimension has the batch's name has one. An output whose first dimension is free under another
    name may have one (converters number the dimensions that they cannot name) or may be as long as the data wants
    (detections): it is run at two batch sizes.

    Raises:
        MachineError: An output must be run, and ONNX Runtime is not installed.
    """
    first = [port.shape[0] for port in build.inputs if port.shape and isinstance(port.shape[0], str)]
    batch = first[0] if first else None
    found, doubtful = [], []
    for kind, port in _all_ports(build):
        size = port.shape[0] if port.shape else None
        if isinstance(size, str) and size == batch:
            continue
        if kind == "output" and isinstance(size, str):
            doubtful.append(port)
        else:
            found.append(_named(kind, port))
    if doubtful and not found:
        lengths = _lengths(build, onnx, [port.name for port in doubtful])
        found = [_named("output", port) for port in doubtful if lengths[port.name] != list(_TRIED)]
    return found


def _all_ports(build: BuildDocument) -> list[tuple[str, GraphPort]]:
    return [*(("input", port) for port in build.inputs), *(("output", port) for port in build.outputs)]


def _named(kind: str, port: GraphPort) -> str:
    return f"{kind} {port.name!r} [{', '.join(map(str, port.shape))}]"


def _lengths(build: BuildDocument, onnx: Path, names: list[str]) -> dict[str, list[int]]:
    """First dimension of each named output, at each batch size that is tried."""
    try:
        from nm2trt.serve.reference import Reference

        reference = Reference(onnx)
    except ImportError:
        raise MachineError(
            f"only a run of the network tells whether {', '.join(names)} has a batch, and onnxruntime is missing",
            hint="pip install onnxruntime",
        ) from None
    from nm2trt.serve.warmup import sample_inputs

    lengths: dict[str, list[int]] = {name: [] for name in names}
    for size in _TRIED:
        try:
            results = reference.run(sample_inputs(build.inputs, onnx, batch=size))
        except InputError as error:
            raise InputError(
                f"whether {', '.join(names)} has a batch cannot be told: a run with made-up inputs failed",
                where=onnx,
                hint="serve it without batching: --max-batch 0",
            ) from error
        for name in names:
            lengths[name].append(results[name].shape[0] if results[name].ndim else -1)
    return lengths
