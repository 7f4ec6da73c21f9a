"""ONNX graphs built by hand, for tests of what others made."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes, initializers, inputs, outputs, opset=20):
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    domains = {node.domain for node in nodes} - {""}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    model = helper.make_model(graph, opset_imports=imports)
    model.ir_version = 10
    return model


def write_gemm(path, *, scale=1.0, batch="N", opset=20, extra=(), weight="w", initializers=()):
    """x [batch, 16] -> y [batch, 8], after the `extra` nodes, which may make `weight`."""
    w_NK = (np.random.default_rng(0).standard_normal((8, 16)) * scale).astype(np.float32)
    gemm = helper.make_node("Gemm", ["x", weight], ["y"], name="fc", transB=1)
    tensors = {"w": w_NK, **dict(initializers)}
    onnx.save(model_of([*extra, gemm], tensors, [value("x", [batch, 16])], [value("y", [batch, 8])], opset), path)
    return w_NK
