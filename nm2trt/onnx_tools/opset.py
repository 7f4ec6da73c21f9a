"""A newer opset for a graph, with the meaning that its operators had in the old one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from nm2trt.errors import InputError
from nm2trt.library_errors import one_line

_DEFAULT_DOMAINS = ("", "ai.onnx")
_RESIZES = ("Resize", "Upsample")
_NEW_RESIZE_OPSET = 11
"""Since then Resize has coordinate_transformation_mode, and half_pixel is the usual one; before, it was asymmetric."""


def raise_opset(proto: onnx.ModelProto, target: int, path: Path) -> onnx.ModelProto:
    """Convert to a newer opset of the default domain.

    onnx's converter carries Upsample and the Resize of opset 10 over without the coordinates that they had, which
    moves every interpolated pixel; they are written out here.

    Args:
        proto: Functions inlined.
        target: Opset; a graph that has it or a newer one is returned as it is.
        path: For error lines.

    Raises:
        InputError: The converter cannot convert it.
    """
    version = opset_of(proto)
    if version >= target:
        return proto
    old = [node for node in proto.graph.node if node.op_type in _RESIZES and node.domain in _DEFAULT_DOMAINS]
    constants = _constants(proto)
    rounding = ["ceil" if _shrinks(node, constants) else "floor" for node in old]
    names = [node.name for node in old]
    try:
        converted: onnx.ModelProto = onnx.version_converter.convert_version(proto, target)
    except Exception as error:  # noqa: BLE001 -- the converter's errors have no common class
        raise InputError(
            f"is of opset {version} and cannot be converted to {target}: {one_line(error, whole=True)}",
            where=path,
            hint="export it again with a newer opset",
        ) from None
    if version < _NEW_RESIZE_OPSET:
        new = [node for node in converted.graph.node if node.op_type == "Resize"]
        if len(new) != len(old):
            raise InputError(
                f"is of opset {version}, and its {len(old)} resizes cannot be followed to opset {target}",
                where=path,
                hint="export it again with opset 11 or newer",
            )
        for node, name, rounded in zip(new, names, rounding, strict=True):
            node.name = node.name or name
            _set_coordinates(node, rounded)
    return converted


def opset_of(proto: onnx.ModelProto) -> int:
    """Version of the default domain."""
    return max((entry.version for entry in proto.opset_import if entry.domain in _DEFAULT_DOMAINS), default=1)


def _set_coordinates(node: onnx.NodeProto, rounded: str) -> None:
    kept = [one for one in node.attribute if one.name not in ("coordinate_transformation_mode", "nearest_mode")]
    mode = next((one.s for one in kept if one.name == "mode"), b"nearest")
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
    if mode == b"nearest":
        node.attribute.append(onnx.helper.make_attribute("nearest_mode", rounded))


def _shrinks(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Whether an old resize makes its input smaller; ONNX Runtime then takes the next pixel and not the last."""
    stored = next((list(one.floats) for one in node.attribute if one.name == "scales"), None)
    tensor = constants.get(node.input[1]) if len(node.input) > 1 else None
    scales = np.array(stored) if stored else onnx.numpy_helper.to_array(tensor) if tensor is not None else np.ones(1)
    return bool(scales.size and scales.min() < 1)


def _constants(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            for one in node.attribute:
                if one.name == "value":
                    found[node.output[0]] = one.t
    return found
