"""All layers of an ONNX file, with what each computes and moves at one batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.errors import InputError
from nm2trt.estimate.fusion import fused_layers
from nm2trt.estimate.geometry import LayerGeometry
from nm2trt.library_errors import one_line
from nm2trt.onnx_tools.constants import UNREADABLE
from nm2trt.onnx_tools.shape_inference import shaped_graph


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkGeometry:
    """All layers in the graph's order, and what was not counted."""

    layers: tuple[LayerGeometry, ...]
    inputs: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """Of all products."""
        return sum(layer.flops for layer in self.layers)


def network_geometry(
    path: Path | str, *, batch: int | None = None, shapes: Mapping[str, Sequence[int]] | None = None
) -> NetworkGeometry:
    """Read an ONNX file and lay out its layers.

    Args:
        path: An ONNX file, or a build folder (its model.onnx). Weights are not loaded.
        batch: Value of dynamic first dimensions.
        shapes: Shapes of inputs by name, for other dynamic dimensions.

    Raises:
        ConfigError: Dynamic dimensions are left without a value, or a value contradicts the file.
        InputError: There is no model, it is broken, or it holds no layer.
    """
    file = model_file(Path(path))
    try:
        graph = shaped_graph(file, batch=batch, shapes=shapes)
        layers, notes = fused_layers(graph)
    except UNREADABLE as error:
        raise InputError(
            f"is no valid ONNX model: {one_line(error)}", where=file, hint="check it with onnx.checker"
        ) from None
    return NetworkGeometry(layers=layers, inputs=graph.inputs, notes=(*graph.notes, *notes))


def layer_geometries(
    path: Path | str, batch: int | None = None, *, shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[LayerGeometry, ...]:
    """The layers of `network_geometry`; same arguments and errors."""
    return network_geometry(path, batch=batch, shapes=shapes).layers


def model_file(path: Path) -> Path:
    """The ONNX file itself, also where a build folder was given.

    Raises:
        InputError: There is none.
    """
    file = path / ONNX_FILE if path.is_dir() else path
    if not file.is_file():
        what = f"holds no {ONNX_FILE}" if path.is_dir() else "no such file"
        raise InputError(what, where=path, hint="pass an .onnx file or a build folder")
    if file.stat().st_size == 0:
        raise InputError("is empty", where=file, hint="pass an .onnx file")
    return file
