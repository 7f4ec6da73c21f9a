"""Inspector JSON of every known schema; the objects are made by hand after the documented forms."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.errors import InputError
from nm2trt.evidence import parse_inspection, read_inspection

CONV = {
    "Name": "conv1 + relu1",
    "LayerType": "CaskConvolution",
    "ParameterType": "Convolution",
    "Groups": 1,
    "OutMaps": 64,
    "Weights": {"Type": "Half", "Count": 36864},
    "TacticName": "sm80_xmma_fprop_sparse_conv_f16f16_f16f16_f16_nhwckrsc_nhwc_sptensor",
    "StreamId": 0,
    "Metadata": "[ONNX Layer: conv1]\u001e[ONNX Layer: relu1]",
}
TENSOR = {"Name": "x", "Location": "Device", "Dimensions": [8, 64, 56, 56]}
V8 = {
    "Layers": [
        CONV
        | {
            "HasSparseWeights": 1,
            "Inputs": [TENSOR | {"Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [],
        }
    ],
    "Bindings": ["x", "y"],
}
V84 = {"Layers": [CONV | {"AllowSparse": 0}], "Bindings": ["x"]}
V11 = {
    "Layers": [
        CONV
        | {
            "HasSparseWeights": True,
            "Inputs": [TENSOR | {"Format": "Channel major", "DataType": "Half", "Strides": [1, 2, 3, 4]}],
        }
    ],
    "I/O Tensors": [{"Name": "x", "IOMode": "Input", "DataType": "Half"}, {"Name": "y", "IOMode": "Output"}],
}
RTX = {
    "Layers": [
        CONV
        | {
            "LayerType": "correlation",
            "Inputs": [TENSOR | {"Datatype": "Half", "Format": "(NHWC)", "StrideOrder": [3, 0, 2, 1]}],
            "Constants": [{"Name": "w", "Dimensions": [64, 64, 3, 3], "Datatype": "Half", "Format": "(NHWC)"}],
        }
    ]
}
ACT_POOL = {"Layers": [{"Name": "c + p", "LayerType": "ConvActPool", "ConvHasSparseWeights": 1, "ConvGroups": 2,
                        "ConvWeights": {"Type": "Int8", "Count": 9408}, "TacticValue": "0x461"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "sparse", "bindings", "dtype"),
    [
        (V8, True, ("x", "y"), ""),
        (V84, False, ("x",), None),
        (V11, True, ("x", "y"), "Half"),
        (RTX, None, (), "Half"),
        ([V8["Layers"][0]], True, (), ""),
    ],
    ids=["8.5-10", "8.4", "11", "rtx", "list"],
)
def test_each_schema_gives_the_same_layer(raw, sparse, bindings, dtype):
    found = parse_inspection(raw)
    (layer,) = found.layers
    assert found.detailed
    assert found.bindings == bindings
    assert layer.name == "conv1 + relu1"
    assert layer.tactic == CONV["TacticName"]
    assert layer.has_sparse_weights is sparse
    assert layer.onnx_nodes == ("conv1", "relu1")
    assert (layer.groups, layer.weights_count, layer.weights_type) == (1, 36864, "Half")
    if dtype is not None:
        (tensor,) = layer.inputs
        assert (tensor.name, tensor.dimensions, tensor.dtype) == ("x", (8, 64, 56, 56), dtype)
        assert tensor.format


def test_fused_convolutions_have_their_own_keys():
    (layer,) = parse_inspection(ACT_POOL).layers
    assert (layer.has_sparse_weights, layer.groups, layer.weights_count, layer.tactic) == (True, 2, 9408, "")


def test_bare_names_are_said_to_be_bare():
    found = parse_inspection({"Layers": ["conv1 + relu1", "fc"], "Bindings": []})
    assert [layer.name for layer in found.layers] == ["conv1 + relu1", "fc"]
    assert not found.detailed
    assert "without detailed profiling verbosity" in found.notes[0]


def test_layers_as_strings_of_json_are_layers():
    found = parse_inspection({"Layers": [json.dumps(CONV), "{ForeignNode[a...b]}"]})
    assert [layer.name for layer in found.layers] == ["conv1 + relu1", "{ForeignNode[a...b]}"]
    assert found.layers[0].type == "CaskConvolution"
    assert found.detailed


def test_strange_entries_are_counted_and_passed_over():
    found = parse_inspection({"Layers": [CONV, 3, None, {"LayerType": "x"}]})
    assert len(found.layers) == 1
    assert "3 entries" in found.notes[0]


@pytest.mark.parametrize("raw", [{}, {"Layers": None}, {"Layers": {}}, "text", 3, None])
def test_no_layers_is_an_input_error_that_names_the_flag(raw):
    with pytest.raises(InputError, match="--exportLayerInfo"):
        parse_inspection(raw, where="l.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("Name", "LayerType", "Weights", "Groups", "HasSparseWeights", "TacticName", "Metadata", "Inputs", "Constants")


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), JSON) | JSON, max_size=4), JSON)
def test_no_json_breaks_the_reader(layers, bindings):
    found = parse_inspection({"Layers": layers, "Bindings": bindings})
    assert len(found.layers) <= len(layers)


def test_files_that_cannot_be_read_cost_one_line(tmp_path):
    path = tmp_path / "l.json"
    with pytest.raises(InputError, match="no such file"):
        read_inspection(path)
    for text, words in (("", "is empty"), ("{", "is cut off"), ("[" * 100_000, "nested too deeply")):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_inspection(path)
    with pytest.raises(InputError, match="is a folder"):
        read_inspection(tmp_path)


def test_recorded_a100_engines(reference_data):
    counts = {}
    for path in sorted(reference_data.glob("a100-resnet18/*/graph.json")):
        raw = json.loads(path.read_text())
        found = read_inspection(path)
        assert [layer.name for layer in found.layers] == [layer["Name"] for layer in raw["Layers"]]
        assert found.detailed
        assert len(found.bindings) == 2
        weighted = [layer for layer in found.layers if layer.has_sparse_weights is not None]
        assert all(layer.groups == 1 and layer.weights_count and layer.outputs for layer in weighted)
        counts[path.parent.name] = sum(layer.weights_count for layer in weighted)
    # torchvision's resnet18 has so many weights in its convolutions and its classifier.
    assert set(counts.values()) == {11166912 + 512 * 1000}
