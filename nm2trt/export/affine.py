"""A scale and a shift of each channel behind a convolution -> its weight and bias.

torchvision's detection backbones hold BatchNorm frozen as a plain product and sum (FrozenBatchNorm2d), which no rule
for BatchNorm recognizes. Each output channel is scaled as a whole, so that zeros of the weight stay zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_CHANNEL_AXIS = 1


def fold_affine(model: ir.Model) -> int:
    """Fold Mul and Add with one constant for each channel into the Conv before them, in place.

    Args:
        model: In float32, constants lifted to initializers.

    Returns:
        Number of operators that went.
    """
    count = 0
    for conv in list(model.graph):
        if conv.op_type != "Conv" or conv.domain not in ("", "ai.onnx"):
            continue
        while (step := _step(conv)) is not None:
            _absorb(model, conv, *step)
            count += 1
    return count


def _step(conv: ir.Node) -> tuple[ir.Node, NDArray[Any]] | None:
    """The only reader of a convolution and its constant [channels], where both can be folded."""
    weight, output = conv.inputs[1], conv.outputs[0]
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if output.is_graph_output() or any(not _own(value) for value in (weight, bias) if value is not None):
        return None
    users = [user for user, _ in output.uses()]
    if len(users) != 1 or users[0].op_type not in ("Mul", "Add") or users[0].domain not in ("", "ai.onnx"):
        return None
    user = users[0]
    other = user.inputs[1] if user.inputs[0] is output else user.inputs[0]
    if weight is None or weight.const_value is None or other is None:
        return None
    if not other.is_initializer() or other.is_graph_input() or other.const_value is None:
        return None
    constant, kernel = other.const_value.numpy(), weight.const_value.numpy()
    # Aligned at the end, as ONNX broadcasts: [1, channels, 1, 1] or [channels, 1, 1] for an image.
    wanted = (kernel.shape[0], *[1] * (kernel.ndim - 2))
    if constant.ndim > kernel.ndim or constant.shape[-len(wanted) :] != wanted or constant.size != kernel.shape[0]:
        return None
    if constant.dtype != kernel.dtype or not np.isfinite(constant).all():
        return None
    return user, constant.reshape(-1)


def _own(value: ir.Value) -> bool:
    """Whether a constant is read by one operator only, so that it may change."""
    return (
        value.is_initializer()
        and not value.is_graph_input()
        and value.const_value is not None
        and len(list(value.uses())) == 1
    )


def _absorb(model: ir.Model, conv: ir.Node, user: ir.Node, constant_O: NDArray[Any]) -> None:
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    kernel = weight.const_value.numpy()
    bias_O = _bias(model, conv, str(weight.name), kernel)
    held = bias_O.const_value
    assert held is not None
    if user.op_type == "Mul":
        scale = constant_O.reshape(-1, *[1] * (kernel.ndim - 1))
        weight.const_value = ir.tensor(kernel * scale, name=weight.name)
        bias_O.const_value = ir.tensor(held.numpy() * constant_O, name=bias_O.name)
    else:
        bias_O.const_value = ir.tensor(held.numpy() + constant_O, name=bias_O.name)
    old, new = user.outputs[0], conv.outputs[0]
    if old.is_graph_output():
        # The graph's output keeps its name.
        name, old.name = old.name, f"{old.name}/folded"
        new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    assert user.graph is not None
    user.graph.remove(user, safe=True)


def _bias(model: ir.Model, conv: ir.Node, weight: str, kernel: NDArray[Any]) -> ir.Value:
    """The convolution's bias; a new one of zeros where it has none."""
    given = conv.inputs[2] if len(conv.inputs) > 2 else None
    if given is not None:
        return given
    name = f"{weight.removesuffix('.weight')}.bias"
    while name in model.graph.initializers:
        name += "_"
    zeros = np.zeros(kernel.shape[0], kernel.dtype)
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.from_numpy(kernel.dtype)),
        shape=ir.Shape(zeros.shape),
        const_value=ir.tensor(zeros, name=name),
    )
    model.graph.initializers[name] = value
    conv.resize_inputs(3)
    conv.replace_input_with(2, value)
    return value
