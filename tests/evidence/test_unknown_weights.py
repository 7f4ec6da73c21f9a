"""What is not known is never counted: weights, precision, optimization profiles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.evidence import engine_evidence, parse_inspection, parse_log
from nm2trt.evidence.evidence_schema import InspectedEngine
from nm2trt.evidence.precision import differs, precision_of

DENSE = "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc"
SPARSE = "sm80_xmma_fprop_sparse_conv_f16f16_f16f16_f16_nhwckrsc_nhwc"


def totals(layers, log=None):
    found = engine_evidence(parse_inspection({"Layers": layers}), parse_log(log.split("\n")) if log else None)
    return InspectedEngine.of(found, name="x").totals


@pytest.mark.parametrize(
    "kind",
    ["CudnnPooling", "CaskPooling", "Padding", "CaskSoftMaxV2", "MyelinReformat", "Reformat", "Shuffle", "PointWiseV2",
     "ElementWise", "Reduce", "Concatenation", "Slice", "NoOp", "Cast", "TopK", "Resize", "CudaSoftMax", "Gather"],
)  # fmt: skip
def test_layers_without_weights_are_none(kind):
    found = totals([{"Name": "a", "LayerType": kind}])
    assert (found.with_weights, found.weights_unknown, found.dense) == (0, 0, 0)


@pytest.mark.parametrize(
    "kind", ["PluginV2", "PluginV3", "Myelin", "MatrixMultiply", "gemm", "SomethingOfTomorrow", ""]
)
def test_layers_that_do_not_show_it_are_unknown(kind):
    found = totals([{"Name": "a", "LayerType": kind}])
    assert (found.with_weights, found.weights_unknown, found.hidden) == (0, 1, 0)


@pytest.mark.parametrize(
    "layer",
    [
        {"LayerType": "CaskConvolution"},
        {"LayerType": "FusedConvActConvolution"},
        {"LayerType": "CaskGemmConvolution"},
        {"LayerType": "CudaDepthwiseConvolution"},
        {"LayerType": "CaskFullyConnected"},
        {"LayerType": "Myelin", "HasSparseWeights": 0},
        {"LayerType": "gemm", "Weights": {"Type": "Half", "Count": 4096}},
    ],
)
def test_layers_with_weights_are_counted(layer):
    found = totals([{"Name": "a"} | layer])
    assert (found.with_weights, found.weights_unknown) == (1, 0)


def test_bare_names_are_unknown_and_those_that_the_log_lists_are_not():
    log = "(Sparsity) Found 1 layer(s) eligible to use sparse tactics: b\n"
    log += "(Sparsity) Chose 1 layer(s) using sparse tactics: b"
    assert totals(["a", "b", "c"]).weights_unknown == 3
    found = totals(["a", "b", "c"], log)
    assert (found.with_weights, found.weights_unknown, found.sparse) == (1, 2, 1)


def test_a_sparse_kernel_shows_that_the_weights_have_the_pattern():
    found = totals([{"Name": "a", "LayerType": "CaskConvolution", "TacticName": SPARSE}])
    assert (found.eligible, found.eligible_unknown, found.sparse) == (1, 0, 1)
    assert totals([{"Name": "a", "LayerType": "CaskConvolution", "TacticName": DENSE}]).eligible_unknown == 1


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "Name": st.sampled_from("abc"),
                "LayerType": st.sampled_from(["", "Myelin", "CaskConvolution", "Pooling", "X"]),
            },
            optional={
                "TacticName": st.sampled_from([SPARSE, DENSE, "", "odd"]),
                "HasSparseWeights": st.sampled_from([0, 1]),
            },
        ),
        max_size=6,
    )
)
def test_every_layer_is_in_one_count(layers):
    found = totals(layers)
    assert found.sparse + found.dense + found.hidden == found.with_weights
    assert found.with_weights + found.weights_unknown <= found.layers <= len(layers)
    assert found.eligible + found.eligible_unknown <= found.with_weights


def test_optimization_profiles_do_not_multiply_the_layers():
    layers = [
        {"Name": f"{name}{ending}", "LayerType": "CaskConvolution", "HasSparseWeights": 1, "TacticName": kernel}
        for ending, kernel in (("", DENSE), (" [profile 1]", SPARSE), (" [profile 2]", DENSE))
        for name in ("a", "b")
    ]
    found = engine_evidence(parse_inspection({"Layers": layers}), None)
    assert [layer.name for layer in found.layers] == ["a", "b"]
    assert "3 optimization profiles" in found.notes[0]
    assert "profile 0: 0, profile 1: 2, profile 2: 0" in found.notes[0]


def test_a_list_that_stands_twice_is_counted_once():
    layers = [{"Name": name, "LayerType": "CaskConvolution", "HasSparseWeights": 1} for name in ("a", "b", "c")]
    found = engine_evidence(parse_inspection({"Layers": layers * 2}), None)
    assert [layer.name for layer in found.layers] == ["a", "b", "c"]
    assert "every layer 2 times" in found.notes[0]


def test_merged_convolutions_are_one_layer_of_two_nodes():
    found = engine_evidence(
        parse_inspection({"Layers": [{"Name": "a + r || b", "LayerType": "CaskConvolution"}]}), None
    )
    (layer,) = found.layers
    assert layer.onnx_nodes == ("a", "r", "b")


def layers_of(*kinds):
    made = [{"Name": kind, "LayerType": "CaskConvolution", "Weights": {"Type": kind, "Count": 9}} for kind in kinds]
    return parse_inspection({"Layers": made}).layers


def test_precision_is_that_of_the_weights():
    assert precision_of(layers_of("Half", "Int8", "Half")) == ("fp16", "int8")
    assert precision_of(layers_of("Float")) == ("fp32",)
    assert precision_of(parse_inspection({"Layers": ["a", "b"]}).layers) == ()
    tensor = {
        "Name": "x",
        "Dimensions": [1],
        "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
    }
    made = {"Name": "a", "LayerType": "CaskConvolution", "Inputs": [tensor]}
    assert precision_of(parse_inspection({"Layers": [made]}).layers) == ("int8",)


@pytest.mark.parametrize(
    ("one", "other", "asked", "expected"),
    [
        ("FP32+FP16", "FP32+FP16", (True, True), False),
        ("FP32+FP16", "FP32+FP16+INT8", (True, True), True),
        ("FP32+FP16", "", (True, False), False),
        ("FP32+FP16", "fp16", (True, False), False),
        ("FP32+FP16", "fp32", (True, False), False),
        ("FP32+FP16", "int8", (True, False), True),
        ("FP32", "fp16", (True, False), True),
        ("fp16+int8", "fp32+int8", (False, False), False),
        ("fp16", "int8", (False, False), True),
    ],
)
def test_precisions_that_compare(one, other, asked, expected):
    assert differs(one, other, one_is_asked=asked[0], other_is_asked=asked[1]) is expected
    assert differs(other, one, one_is_asked=asked[1], other_is_asked=asked[0]) is expected


DUMP = (
    "[V] Name: c + r, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: [1,64,8,8], "
    "Format/Datatype: Half }], "
    "Outputs: [ { Name: y, Location: Device, Dimensions: [1,64,8,8], Format/Datatype: Half }], "
    'ParameterType: Convolution, Groups: 1, Weights: {"Type": "Half", "Count": 36864}, '
    'Bias: {"Type": "Half", "Count": 64}, '
    "HasSparseWeights: 1, HasResidual: 0, TacticName: "
    + DENSE
    + ", TacticValue: 0x01, StreamId: 0, Metadata: [ONNX Layer: c]"
)


def test_weights_and_their_pattern_are_read_from_the_dump():
    (layer,) = parse_log([DUMP]).layers
    assert (layer.has_sparse_weights, layer.weights_count, layer.weights_type, layer.groups) == (True, 36864, "Half", 1)
    assert (layer.tactic, layer.onnx_nodes, layer.inputs[0].dimensions) == (DENSE, ("c",), (1, 64, 8, 8))


ENGINE = """\
[V] [TRT] --------------- Timing Runner: c (CaskConvolution)
[V] [TRT] Set Tactic Name: {sparse} Tactic: 0x00000000000000a1
[V] [TRT] --------------- Timing Runner: d (CaskConvolution)
[V] [TRT] Set Tactic Name: {dense} Tactic: 0x00000000000000a1
[V] [TRT] Engine Layer Information:
Layer(CaskConvolution): c, Tactic: 0x00000000000000a1, x (Half[1,64,8,8]) -> y (Half[1,64,8,8])
Layer(CaskConvolution): d, Tactic: 161, x[Half(1,64,8,8)] -> y[Half(1,64,8,8)]
Layer(CaskConvolution): e, Tactic: 0x00000000000000a1, x (Half[1,64,8,8]) -> y (Half[1,64,8,8])
Layer(CaskConvolution): f, x (Half[1,64,8,8]) -> y (Half[1,64,8,8])
Layer(Reformat): Reformatting CopyNode for Input Tensor 0 to g, Tactic: 0, x[Float(-6,1)] -> y[Half(-6,1)]
[I] [TRT] done
"""


def test_the_engines_layers_get_the_kernels_that_they_timed():
    layers = parse_log(ENGINE.format(sparse=SPARSE, dense=DENSE).split("\n")).layers
    # Two kernels share a number, so a layer that did not time it itself shows none.
    assert [(layer.name, layer.tactic) for layer in layers[:4]] == [("c", SPARSE), ("d", DENSE), ("e", ""), ("f", "")]
    assert layers[4].name == "Reformatting CopyNode for Input Tensor 0 to g"
    assert [tensor.dimensions for tensor in (*layers[0].inputs, *layers[1].outputs)] == [(1, 64, 8, 8)] * 2
