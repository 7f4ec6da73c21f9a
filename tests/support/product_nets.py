"""Networks of a few matrix products, for tests in several folders."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def onnx_net(path, *, rows=5):
    """MatMul [in, out], Gemm with transB, a 1x1 and a 3x3 convolution."""
    rng = np.random.default_rng(0)
    weights = {
        "point": rng.standard_normal((8, 4, 1, 1)),
        "square": rng.standard_normal((8, 8, 3, 3)),
        "product": rng.standard_normal((8, 12)),
        "gemm": rng.standard_normal((6, 12)),
    }
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    nodes = [
        helper.make_node("Conv", ["x", "point"], ["a"], name="point_node"),
        helper.make_node("Conv", ["a", "square"], ["b"], name="square_node", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], name="pool"),
        helper.make_node("Flatten", ["c"], ["d"], name="flat"),
        helper.make_node("MatMul", ["d", "product"], ["e"], name="product_node"),
        helper.make_node("Gemm", ["e", "gemm"], ["y"], name="gemm_node", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, rows, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return weights
