"""Shapes of an ONNX file's inputs: which axis is the batch, and sizes that the user settles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from nm2trt.errors import ConfigError, InputError
from nm2trt.export.inputs import InputSpec

Size: TypeAlias = "int | str | None"
"""A number, the name of a free axis, or None for a free axis without a name."""

_DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "bool", "uint8", "int8")


def settle_inputs(
    model: ir.Model, shapes: Mapping[str, InputSpec], sizes: Mapping[str, int], file: Path
) -> tuple[tuple[InputSpec, ...], bool]:
    """What the file takes; dimensions that the user settles are written into the model.

    The batch is the free first axis; in an input whose first axis is a number, the axis of the same name; where no
    first axis is free, the name that is the only one. `shapes` overrides that with a star.

    Args:
        model: Of the file.
        shapes: Input name -> one sample without its batch, the whole shape with a star for it, or the whole shape.
        sizes: Axis name -> size.
        file: For error lines.

    Returns:
        The inputs, and whether one of them has a free batch.

    Raises:
        ConfigError: The user names an input or axis that the file does not have, or contradicts its shape.
        InputError: There is no input, one has no shape or an unusable type, or sizes beside the batch are open.
    """
    values = [value for value in model.graph.inputs if not value.is_initializer()]
    if not values:
        raise InputError("has no inputs", where=file)
    if unknown := sorted(shapes.keys() - {str(value.name) for value in values}):
        names = ", ".join(str(value.name) for value in values)
        raise ConfigError(f"{file.name} has no input {', '.join(unknown)}", where="--input", hint=f"it has {names}")
    layouts = {str(value.name): _sizes(value, file) for value in values}
    _apply_sizes(layouts, sizes, model, file)
    axes = _batch_axes(layouts, shapes)
    open_inputs, specs = [], []
    for value in values:
        name = str(value.name)
        before = layouts[name]
        settled, axis = _settled(name, before, axes[name], shapes.get(name), file)
        if settled != _sizes(value, file):
            value.shape = ir.Shape(settled)
        if any(not isinstance(size, int) for place, size in enumerate(settled) if place != axis):
            open_inputs.append(f"{name} [{', '.join(map(_shown, settled))}]")
        fixed = tuple(size for place, size in enumerate(settled) if isinstance(size, int) and place != axis)
        specs.append(
            InputSpec(
                name=name,
                shape=fixed,
                dtype=_dtype(value, file),
                batched=axis is not None,
                batch_axis=axis or 0,
            )
        )
    if open_inputs:
        raise InputError(
            f"sizes beside the batch are open: {', '.join(open_inputs)}",
            where=file,
            hint="settle them with --size AXIS=128 or, one sample without its batch, with --input NAME=3,224,224; a "
            "star is the batch: --input NAME=2x*x32",
        )
    return tuple(specs), any(one.batched for one in specs)


def _sizes(value: ir.Value, file: Path) -> list[Size]:
    if value.dtype is None or value.shape is None:
        raise InputError(f"input {value.name!r} has no type or shape", where=file)
    return [size if isinstance(size, int) else size.value or None for size in value.shape]


def _apply_sizes(layouts: dict[str, list[Size]], sizes: Mapping[str, int], model: ir.Model, file: Path) -> None:
    named = {size for layout in layouts.values() for size in layout if isinstance(size, str)}
    if unknown := sorted(sizes.keys() - named):
        raise ConfigError(
            f"no input of {file.name} has an axis {', '.join(unknown)}",
            where="--size",
            hint=f"it has {', '.join(sorted(named))}" if named else "its free axes have no names: use --input",
        )
    for name, layout in layouts.items():
        layouts[name] = [sizes.get(size, size) if isinstance(size, str) else size for size in layout]
    for value in model.graph.outputs if sizes else ():
        if value.shape is not None:
            value.shape = ir.Shape(
                [size if isinstance(size, int) else sizes.get(str(size.value), size) for size in value.shape]
            )


def _batch_axes(layouts: Mapping[str, list[Size]], shapes: Mapping[str, InputSpec]) -> dict[str, int | None]:
    stars = {name: spec.batch_axis for name, spec in shapes.items() if spec.star}
    starred = {layouts[name][axis] for name, axis in stars.items() if axis < len(layouts[name])}
    named = {size for size in starred if isinstance(size, str)}
    names = set(named)
    if not names:
        names = {layout[0] for layout in layouts.values() if layout and isinstance(layout[0], str)}
    if not names:
        every = {size for layout in layouts.values() for size in layout if isinstance(size, str)}
        names = every if len(every) == 1 else set()
    axes: dict[str, int | None] = {}
    for name, layout in layouts.items():
        if name in stars:
            axes[name] = stars[name]
        elif layout and not isinstance(layout[0], int) and (not named or layout[0] is None or layout[0] in names):
            axes[name] = 0
        else:
            axes[name] = next((place for place, size in enumerate(layout) if size in names), None)
    return axes


def _settled(
    name: str, layout: list[Size], axis: int | None, wanted: InputSpec | None, file: Path
) -> tuple[list[Size], int | None]:
    """The shape with what the user says of it, and its batch axis."""
    if wanted is None or (not wanted.shape and not wanted.star):
        return layout, axis
    given: list[Size] = list(wanted.shape)
    if wanted.star:
        given.insert(wanted.batch_axis, layout[wanted.batch_axis] if wanted.batch_axis < len(layout) else None)
    elif len(given) == len(layout):
        # A whole shape settles the batch, too.
        axis = None
    elif len(given) == len(layout) - 1:
        place = 0 if axis is None else axis
        given.insert(place, layout[place])
    fits = len(given) == len(layout) and all(
        not isinstance(have, int) or have == want for have, want in zip(layout, given, strict=True)
    )
    if not fits:
        batch = f", its batch axis {axis}" if axis else ""
        kind = "whole" if wanted.star else "without its batch"
        raise ConfigError(
            f"{name} of {file.name} is [{', '.join(map(_shown, layout))}]{batch}, and cannot be "
            f"{list(wanted.shape)} {kind}",
            where="--input",
            hint=f"one sample of it is {_sample(layout, axis)}; a whole shape has a star for the batch: 2x*x32",
        )
    if axis is not None and isinstance(layout[axis], int):
        raise ConfigError(f"axis {axis} of {name} is {layout[axis]} in {file.name} and no free batch", where="--input")
    return given, axis


def _sample(layout: list[Size], axis: int | None) -> str:
    return "x".join(_shown(size) for place, size in enumerate(layout) if place != axis) or "one number"


def _shown(size: Size) -> str:
    return "?" if size is None else str(size)


def _dtype(value: ir.Value, file: Path) -> str:
    assert value.dtype is not None
    name = str(value.dtype.numpy())
    if name not in _DTYPES:
        raise InputError(f"input {value.name!r} is {name}, which TensorRT does not take", where=file)
    return name
