"""Permuted graphs compute what they computed, in ONNX Runtime and in ONNX's reference evaluator."""

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from nm2trt.pattern import NMPattern
from nm2trt.prune import Request
from nm2trt.prune.permutation.permute import permute_file
from nm2trt.prune.selection import decide
from nm2trt.prune.writers.open_file import open_stored

FLOAT = TensorProto.FLOAT
PATTERN = NMPattern(2, 4)


class Net:
    """Builds a graph node by node; random weights are made on the way."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.initializers, self.functions = [], [], []

    def weight(self, name, *shape, dtype=np.float32):
        array = (self.rng.standard_normal(shape) * self.rng.gamma(0.5, 1.0, shape)).astype(dtype)
        self.initializers.append(numpy_helper.from_array(array / math.sqrt(max(math.prod(shape[1:]), 1)), name))
        return name

    def constant(self, name, values, dtype=np.int64):
        self.initializers.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def node(self, op_type, inputs, output, **attributes):
        outputs = output if isinstance(output, list) else [output]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=f"n_{outputs[0]}", **attributes))
        return output

    def conv(self, x, output, out, channels, kernel=1, group=1, *, bias=True):
        inputs = [x, self.weight(f"{output}.weight", out, channels // group, kernel, kernel)]
        if bias:
            inputs.append(self.weight(f"{output}.bias", out))
        return self.node("Conv", inputs, output, group=group, pads=[kernel // 2] * 4)

    def save(self, path, shape, output="y"):
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", FLOAT, shape)],
            [helper.make_tensor_value_info(output, FLOAT, None)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
        model = helper.make_model(graph, opset_imports=opsets, functions=self.functions, ir_version=10)
        path.write_bytes(model.SerializeToString())
        return path


def run(path, shape):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    sizes = [size if isinstance(size, int) else 3 for size in shape]
    return session.run(None, {"x": np.random.default_rng(5).standard_normal(sizes).astype(np.float32)})[0]


def permuted(net, folder, shape, pattern=PATTERN, **request):
    path = net.save(folder / "m.onnx", shape)
    before = run(path, shape)
    weights = {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
    decisions = decide(open_stored(path).weights, Request(pattern=pattern, **request), path)
    found = permute_file(path, decisions, 0.2, 0, lambda _: None)
    after = run(path, shape)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * np.abs(before).max())
    assert found.outputs == "agree"
    now = {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
    for name, array in weights.items():
        assert np.array_equal(np.sort(array.reshape(-1)), np.sort(now[name].reshape(-1))), f"{name}: values kept"
    changed = {name for name, array in weights.items() if not np.array_equal(array, now[name])}
    moved = {name for group in found.groups if group.permuted for name in group.weights}
    return changed, moved, found


def reasons(found):
    return {name: group.reason for group in found.groups if not group.permuted for name in group.weights}


def test_residual_additions_couple_producers(tmp_path):
    net = Net()
    a = net.node("Relu", [net.conv("x", "a", 16, 3, 3)], "ar")
    b = net.conv(a, "b", 16, 16, 3)
    batchnorm = [net.weight(f"bn.{part}", 16) for part in ("scale", "bias", "mean")]
    net.initializers.append(numpy_helper.from_array(np.linspace(0.5, 2, 16, dtype=np.float32), "bn.var"))
    bn = net.node("BatchNormalization", [b, *batchnorm, "bn.var"], "bn")
    c = net.node("Add", [a, bn], "c")
    slope = net.weight("slope", 16, 1, 1)
    d = net.node("PRelu", [c, slope], "d")
    net.conv(d, "y", 8, 16)
    changed, moved, _ = permuted(net, tmp_path, ["n", 3, 6, 6])
    assert moved == {"b.weight", "y.weight"}
    assert changed == {
        *("a.weight", "a.bias", "b.weight", "b.bias", "bn.scale", "bn.bias", "bn.mean", "bn.var", "slope", "y.weight")
    }


def test_depthwise_and_squeeze_excite(tmp_path):
    net = Net()
    net.conv("x", "a", 16, 3)
    net.conv("a", "dw", 32, 16, 3, group=16)
    net.node("GlobalAveragePool", ["dw"], "p")
    net.conv("p", "s1", 8, 32)
    net.node("Relu", ["s1"], "sr")
    net.conv("sr", "s2", 32, 8)
    net.node("HardSigmoid", ["s2"], "gate")
    net.node("Mul", ["dw", "gate"], "scaled")
    net.conv("scaled", "y", 8, 32)
    _, moved, found = permuted(net, tmp_path, ["n", 3, 6, 6])
    # A multiplier of 2 moves channels in pairs, so groups of 4 are not free; the gate's own channels are.
    assert "s2.weight" in moved
    assert "y.weight" in moved | set(reasons(found))


def test_depthwise_without_multiplier(tmp_path):
    net = Net()
    net.conv("x", "a", 16, 3)
    net.conv("a", "dw", 16, 16, 3, group=16)
    net.conv("dw", "y", 8, 16)
    changed, moved, _ = permuted(net, tmp_path, ["n", 3, 6, 6])
    assert moved == {"y.weight"}
    assert {"dw.weight", "dw.bias", "a.weight"} <= changed


def test_grouped_convolution_moves_alike_in_every_group(tmp_path):
    net = Net()
    net.conv("x", "a", 32, 3)
    net.conv("a", "grouped", 16, 32, 3, group=2)
    net.conv("grouped", "y", 8, 16)
    changed, moved, found = permuted(net, tmp_path, ["n", 3, 6, 6])
    assert moved == {"grouped.weight"}
    assert {"a.weight", "a.bias"} <= changed
    assert "groups" in reasons(found)["y.weight"]


def test_concat_and_split(tmp_path):
    net = Net()
    net.conv("x", "a", 16, 3)
    net.conv("x", "b", 8, 3)
    net.node("Concat", ["a", "b"], "c", axis=1)
    net.conv("c", "d", 16, 24)
    net.constant("sizes", [8, 8])
    net.node("Split", ["d", "sizes"], ["e", "f"], axis=1)
    net.node("Mul", ["e", "f"], "g")
    net.conv("g", "y", 8, 8)
    changed, moved, _ = permuted(net, tmp_path, ["n", 3, 4, 4])
    assert moved == {"d.weight", "y.weight"}
    assert {"a.weight", "b.weight", "d.weight", "d.bias"} <= changed


def test_an_input_in_the_concat_stays(tmp_path):
    net = Net()
    net.conv("x", "a", 16, 8)
    net.node("Concat", ["a", "x"], "c", axis=1)
    net.conv("c", "y", 8, 24)
    changed, moved, _ = permuted(net, tmp_path, ["n", 8, 4, 4])
    assert moved == {"y.weight"}, "a's channels move, the input's do not"
    path = tmp_path / "m.onnx"
    now = {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
    original = {item.name: numpy_helper.to_array(item) for item in net.initializers}
    assert np.array_equal(now["y.weight"][:, 16:], original["y.weight"][:, 16:])
    assert "a.weight" in changed


@pytest.mark.parametrize("node", ["Flatten", "Reshape"])
def test_flatten_moves_blocks(tmp_path, node):
    net = Net()
    net.conv("x", "a", 8, 3)
    net.conv("a", "b", 8, 8)
    if node == "Flatten":
        net.node("Flatten", ["b"], "f", axis=1)
    else:
        net.node("Reshape", ["b", net.constant("shape", [0, -1])], "f")
    net.node("Gemm", ["f", net.weight("fc1.weight", 16, 32), net.weight("fc1.bias", 16)], "g", transB=1)
    net.node("Relu", ["g"], "gr")
    net.node("Gemm", ["gr", net.weight("fc2.weight", 16, 8)], "y")
    _, moved, found = permuted(net, tmp_path, ["n", 3, 2, 2], layer_patterns={"fc2": PATTERN})
    assert "fc2.weight" in moved
    assert "b.weight" in moved
    # Four pixels a channel: groups of 4 hold one channel each, so moving blocks gains nothing.
    assert "fill whole groups" in reasons(found)["fc1.weight"]


def test_flatten_of_single_pixels(tmp_path):
    net = Net()
    net.conv("x", "a", 16, 3)
    net.node("GlobalAveragePool", ["a"], "p")
    net.node("Flatten", ["p"], "f", axis=1)
    net.node("Gemm", ["f", net.weight("fc.weight", 8, 16)], "y", transB=1)
    changed, moved, _ = permuted(net, tmp_path, ["n", 3, 4, 4], layer_patterns={"fc": PATTERN})
    assert moved == {"fc.weight"}
    assert changed == {"a.weight", "a.bias", "fc.weight"}


def attention(net, x, tokens, width, heads):
    shape = net.constant("heads", [0, tokens, heads, width // heads])
    for part in "qkv":
        net.node("MatMul", [x, net.weight(f"{part}.weight", width, width)], part)
        net.node("Add", [part, net.weight(f"{part}.bias", width)], f"{part}b")
        net.node("Reshape", [f"{part}b", shape], f"{part}r")
        net.node("Transpose", [f"{part}r"], f"{part}t", perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3])
    net.node("MatMul", ["qt", "kt"], "scores")
    net.node("Softmax", ["scores"], "probabilities", axis=-1)
    net.node("MatMul", ["probabilities", "vt"], "mixed")
    net.node("Transpose", ["mixed"], "back", perm=[0, 2, 1, 3])
    net.node("Reshape", ["back", net.constant("joined", [0, tokens, width])], "merged")
    return net.node("MatMul", ["merged", net.weight("o.weight", width, width)], "attended")


def test_transformer_block(tmp_path):
    net = Net()
    net.node("MatMul", ["x", net.weight("embed.weight", 8, 32)], "e")
    normed = net.node("LayerNormalization", ["e", net.weight("ln.scale", 32), net.weight("ln.bias", 32)], "ln")
    attention(net, normed, 5, 32, 4)
    net.node("Add", ["e", "attended"], "r")
    net.node("MatMul", ["r", net.weight("up.weight", 32, 64)], "u")
    net.node("Gelu", ["u"], "ug")
    net.node("MatMul", ["ug", net.weight("down.weight", 64, 32)], "d")
    net.node("Add", ["r", "d"], "r2")
    net.node("MatMul", ["r2", net.weight("head.weight", 32, 8)], "y")
    changed, moved, found = permuted(net, tmp_path, ["n", 5, 8], layer_patterns={"head": PATTERN})
    # The residual stream, the features within heads, and the hidden layer.
    assert {"q.weight", "k.weight", "v.weight", "up.weight", "o.weight", "down.weight", "head.weight"} <= moved
    assert {"ln.scale", "ln.bias", "v.bias"} <= changed
    assert "embed.weight" in reasons(found)


def test_shared_weights_move_once_and_consistently(tmp_path):
    net = Net()
    net.conv("x", "a", 8, 3)
    shared = net.weight("shared", 8, 8, 1, 1)
    net.node("Conv", ["a", shared], "b")
    net.node("Conv", ["b", shared], "c")
    net.conv("c", "y", 8, 8)
    _, moved, _ = permuted(net, tmp_path, ["n", 3, 4, 4])
    assert {"shared", "y.weight"} <= moved


def test_function_called_twice(tmp_path):
    net = Net()
    array = np.random.default_rng(1).standard_normal((8, 8, 1, 1)).astype(np.float32)
    body = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(array, "inner.weight")),
        helper.make_node("Conv", ["i", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["o"]),
    ]
    net.functions.append(helper.make_function("local", "Block", ["i"], ["o"], body, [helper.make_opsetid("", 20)]))
    net.conv("x", "a", 8, 3)
    net.nodes.append(helper.make_node("Block", ["a"], ["b"], domain="local"))
    net.nodes.append(helper.make_node("Block", ["b"], ["c"], domain="local"))
    net.conv("c", "y", 8, 8)
    _, moved, _ = permuted(net, tmp_path, ["n", 3, 4, 4])
    assert "y.weight" in moved
    model = onnx.load(tmp_path / "m.onnx")
    assert len(model.functions) == 1, "functions stay functions"
    inner = numpy_helper.to_array(model.functions[0].node[0].attribute[0].t)
    assert not np.array_equal(inner, array)
    assert np.array_equal(np.sort(inner.reshape(-1)), np.sort(array.reshape(-1)))


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [("DepthToSpace", {"blocksize": 2}), ("LRN", {"size": 3}), ("CumSum", {}), ("GroupNormalization", {})],
)
def test_operators_that_mix_channels_hold_them(tmp_path, op_type, attributes):
    net = Net()
    net.conv("x", "a", 16, 3)
    inputs, channels = ["a"], 16
    if op_type == "DepthToSpace":
        channels = 4
    if op_type == "CumSum":
        inputs.append(net.constant("axis", 1))
    if op_type == "GroupNormalization":
        attributes = {"num_groups": 4}
        inputs += [net.weight("gn.scale", 4), net.weight("gn.bias", 4)]
    net.node(op_type, inputs, "b", **attributes)
    net.conv("b", "y", 8, channels)
    changed, moved, found = permuted(net, tmp_path, ["n", 3, 4, 4])
    assert not changed
    assert not moved
    # Shape inference does not see through GroupNormalization, which is named as that then.
    assert op_type in reasons(found)["y.weight"] or "shape of 'b' is unknown" in reasons(found)["y.weight"]


def test_a_rotated_copy_ties_all_channels(tmp_path):
    """x + x[rotated] is equivariant only under rotations: channels are one another's partners."""
    net = Net()
    net.conv("x", "a", 8, 3)
    net.node("Slice", ["a", net.constant("s1", [1]), net.constant("e1", [8]), net.constant("ax", [1])], "tail")
    net.node("Slice", ["a", net.constant("s2", [0]), net.constant("e2", [1]), "ax"], "head")
    net.node("Concat", ["tail", "head"], "rotated", axis=1)
    net.node("Add", ["a", "rotated"], "sum")
    net.conv("sum", "y", 8, 8)
    changed, _, _ = permuted(net, tmp_path, ["n", 3, 4, 4])
    assert not changed


def test_quantized_weights_move_with_their_scales(tmp_path):
    net = Net()
    for name, channels in (("a", 3), ("y", 16)):
        out = 16 if name == "a" else 8
        stored = net.rng.integers(-127, 127, (out, channels, 1, 1)).astype(np.int8)
        net.initializers.append(numpy_helper.from_array(stored, f"{name}.weight"))
        net.initializers.append(numpy_helper.from_array(np.linspace(0.01, 0.1, out, dtype=np.float32), f"{name}.scale"))
        net.node("DequantizeLinear", [f"{name}.weight", f"{name}.scale"], f"{name}.dq", axis=0)
        net.node("Conv", ["x" if name == "a" else "a", f"{name}.dq"], name)
    changed, moved, _ = permuted(net, tmp_path, ["n", 3, 4, 4])
    assert moved == {"y.weight"}
    assert changed == {"a.weight", "a.scale", "y.weight"}


def test_subgraphs_hold_what_they_read(tmp_path):
    net = Net()
    net.conv("x", "a", 8, 3)
    branches = {}
    for name in ("then_branch", "else_branch"):
        node = helper.make_node("Relu" if name == "then_branch" else "Identity", ["a"], [f"{name}_o"])
        output = helper.make_tensor_value_info(f"{name}_o", FLOAT, None)
        branches[name] = helper.make_graph([node], name, [], [output])
    net.initializers.append(numpy_helper.from_array(np.array(True), "condition"))
    net.node("If", ["condition"], "b", **branches)
    net.conv("b", "y", 8, 8)
    changed, _, found = permuted(net, tmp_path, ["n", 3, 4, 4])
    assert not changed
    assert reasons(found)["y.weight"]


@pytest.mark.parametrize("text", ["1:4", "2:8", "1:2", "4:8"])
def test_other_patterns(tmp_path, text):
    net = Net()
    net.conv("x", "a", 16, 3)
    net.conv("a", "y", 8, 16)
    _, moved, _ = permuted(net, tmp_path, ["n", 3, 4, 4], pattern=NMPattern.parse(text))
    assert moved == {"y.weight"}
