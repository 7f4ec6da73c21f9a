"""A float16 network that ONNX Runtime's layout pass crashes on is timed all the same, at a level that is recorded."""

import subprocess
import sys

_SCRIPT = """
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from nm2trt.profile.runners.onnxruntime_runner import OnnxRuntimeRunner
half = TensorProto.FLOAT16
nodes = [
    helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
    helper.make_node("MatMul", ["t", "w"], ["p"]),
    helper.make_node("Transpose", ["p"], ["y"], perm=[1, 0, 2]),
]
info = helper.make_tensor_value_info
weight = numpy_helper.from_array(np.ones((16, 16), np.float16), "w")
graph = helper.make_graph(nodes, "g", [info("x", half, ["n", 3, 16])], [info("y", half, ["n", 3, 16])], [weight])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
runner = OnnxRuntimeRunner(model, name="m.onnx")
runner.prepare(2)
assert runner.run_once() > 0
print(runner.record.settings["graph optimization"])
"""


def test_a_float16_transpose_before_a_product_is_timed():
    # In a process of its own: a crash of this one would be no test result.
    ended = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    level = ended.stdout.strip()
    assert level == "all" or "crashes on this network at higher levels" in level
