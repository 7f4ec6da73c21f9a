"""Layers back to nodes and weights; the oracle for paths is a slow walk over every pair of nodes."""

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from nm2trt.errors import InputError
from nm2trt.evidence import InspectedLayer, OnnxNode, OnnxNodes, match_layer, match_name, onnx_nodes, read_onnx_nodes
from nm2trt.evidence.matching import weights_of
from nm2trt.evidence.names import metadata_nodes, parse_name, split_list


def network():
    """conv -> relu -> add(skip) -> Q/DQ fc, with a node that has no name."""
    tensors = {
        "layer1.0.conv1.weight": np.zeros((8, 8, 3, 3), np.float32),
        "layer1.0.conv1.bias": np.zeros(8, np.float32),
        "fc.weight": np.zeros((4, 8), np.int8),
        "fc.scale": np.float32(0.1),
        "fc.zero": np.int8(0),
    }
    nodes = [
        helper.make_node("Conv", ["x", "layer1.0.conv1.weight", "layer1.0.conv1.bias"], ["c"], name="/layer1/0/Conv"),
        helper.make_node("Relu", ["c"], ["r"], name="/layer1/0/Relu"),
        helper.make_node("Add", ["r", "x"], ["a"], name="/layer1/0/Add"),
        helper.make_node("GlobalAveragePool", ["a"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("DequantizeLinear", ["fc.weight", "fc.scale", "fc.zero"], ["w"], name="fc.weight_DQ"),
        helper.make_node("Transpose", ["w"], ["wt"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["f", "wt"], ["y"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


GRAPH = onnx_nodes(network())


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("/layer1/0/Conv", ("/layer1/0/Conv",)),
        ("/layer1/0/Conv + /layer1/0/Relu", ("/layer1/0/Conv", "/layer1/0/Relu")),
        ("PWN(PWN(/layer1/0/Relu), /layer1/0/Add)", ("/layer1/0/Relu", "/layer1/0/Add")),
        ("/layer1/0/Conv + PWN(/layer1/0/Relu)", ("/layer1/0/Conv", "/layer1/0/Relu")),
        ("layer1.0.conv1.weight + QuantizeLinear_7 + /layer1/0/Relu", ("/layer1/0/Conv", "/layer1/0/Relu")),
        ("{ForeignNode[/layer1/0/Relu...fc]}", ("/layer1/0/Relu", "/layer1/0/Add", "flat", "fc")),
        ("{ForeignNode[fc.weight...fc]}", ("fc",)),
        ("{ForeignNode[/layer1/0/Conv]}", ("/layer1/0/Conv",)),
        ("fc_myl0_5", ("fc",)),
        ("fc_0", ("fc",)),
        ("fc [profile 1]", ("fc",)),
        ("Reformatting CopyNode for Input Tensor 0 to /layer1/0/Conv + /layer1/0/Relu", ()),
        ("__myl_FcAddCast_myl0_5", ()),
        ("", ()),
    ],
)
def test_names_lead_to_nodes(name, nodes):
    assert match_name(name, GRAPH) == nodes


def test_names_with_brackets_of_their_own():
    name = "{ForeignNode[(Unnamed Layer* 3) [Shuffle]...fc]} + {ForeignNode[solo[0]]}"
    assert parse_name(name).spans == (("(Unnamed Layer* 3) [Shuffle]", "fc"),)
    assert "solo[0]" in parse_name(name).parts


@pytest.mark.parametrize("piece", ["ForeignNode[", "ForeignNode[a.", "[ONNX Layer: ", "a + ", "{", "PWN("])
def test_names_without_end_are_read_in_time(piece):
    # Quadratic reading of these would take minutes.
    assert parse_name(piece * 20_000) is not None
    assert metadata_nodes(piece * 20_000) is not None


def test_metadata_is_believed_before_the_name():
    layer = InspectedLayer(name="__myl_FcAdd_myl0_5", onnx_nodes=("fc",))
    assert match_layer(layer, GRAPH) == ("fc",)
    assert weights_of(("fc", "/layer1/0/Conv", "flat"), GRAPH) == ("fc.weight", "layer1.0.conv1.weight")


def test_without_a_graph_the_names_stand_as_they_are():
    assert match_name("conv1 + relu1", None) == ("conv1", "relu1")
    assert match_name("{ForeignNode[a...b]}", None) == ("a", "b")
    assert weights_of(("conv1",), None) == ()


@pytest.mark.parametrize("mark", ["\x1e", "\x1f", "\n    ", ""])
def test_metadata_lists_are_split_at_every_known_mark(mark):
    nodes = ("a", "/b/Conv[0]", "c d")
    assert metadata_nodes(mark.join(f"[ONNX Layer: {node}]" for node in nodes)) == nodes


@given(st.text(alphabet="PWN(){}[]+, ab/._ForeignNode", max_size=60))
def test_no_name_breaks_the_reader(name):
    parse_name(name)
    assert all(part in GRAPH.nodes for part in match_name(name, GRAPH))


@given(st.lists(st.from_regex(r"\A[a-z]{1,4}(\([a-z, ]{0,5}\))?\Z"), max_size=8))
def test_lists_split_only_outside_brackets(names):
    assert split_list(", ".join(names)) == [name.strip() for name in names]


@given(st.integers(2, 7), st.data())
def test_paths_are_those_of_a_slow_walk(count, data):
    edges = {
        (a, b) for a, b in itertools.combinations(range(count), 2) if data.draw(st.booleans(), label=f"edge {a}-{b}")
    }
    graph = OnnxNodes.of(
        OnnxNode(
            name=f"n{index}",
            op="Sum",
            inputs=tuple(f"v{a}" for a, b in sorted(edges) if b == index),
            outputs=(f"v{index}",),
        )
        for index in range(count)
    )

    def reaches(a, b):
        return a == b or any(reaches(middle, b) for start, middle in edges if start == a)

    first, last = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count - 1))
    expected = tuple(f"n{index}" for index in range(count) if reaches(first, index) and reaches(index, last))
    assert graph.between(f"n{first}", f"n{last}") == expected


def test_files(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx")
    assert read_onnx_nodes(tmp_path / "m.onnx").nodes == GRAPH.nodes
    (tmp_path / "junk.onnx").write_bytes(b"\x01junk")
    for name, words in (("junk.onnx", "no readable ONNX"), ("none.onnx", "no such file"), (".", "no readable ONNX")):
        with pytest.raises(InputError, match=words):
            read_onnx_nodes(tmp_path / name)
