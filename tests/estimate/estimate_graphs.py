"""Small ONNX graphs for the tests of estimates."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save(path, nodes, inputs, outputs, weights, opset=20):
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ports, ends, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), str(path))
    return path


def two_of_four(*shape, axis=1, seed=0):
    """Random weights in which every group of four along `axis` keeps two."""
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + 3
    last = np.moveaxis(weight, axis, -1)
    last[..., 1::4] = 0
    last[..., 2::4] = 0
    return np.ascontiguousarray(np.moveaxis(last, -1, axis))


def conv_net(path, *, c_in=64, c_out=128, size=28, kernel=3, stride=1, groups=1, pruned=True, batch="batch", extra=()):
    """One convolution (padding keeps the size at stride 1) with what is in `extra` behind it."""
    shape = (c_out, c_in // groups, kernel, kernel)
    weight = two_of_four(*shape) if pruned else np.ones(shape, np.float32)
    nodes = [
        helper.make_node(
            "Conv", ["x", "conv.weight"], ["y"], name="conv", group=groups, strides=[stride] * 2, pads=[kernel // 2] * 4
        ),
        *extra,
    ]
    end = nodes[-1].output[0]
    return save(path, nodes, {"x": [batch, c_in, size, size]}, [end], {"conv.weight": weight})
