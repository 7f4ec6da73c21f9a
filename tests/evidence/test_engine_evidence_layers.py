"""Log, inspector and graph joined, layer by layer."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from nm2trt.evidence import engine_evidence, onnx_nodes, parse_inspection, parse_log, read_inspection

SPARSE = "sm80_xmma_fprop_sparse_conv_f16f16_f16f16_f16_nhwckrsc_nhwc_sptensor"
DENSE = "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc"
STUB = "__myelin_CASK_STUB"


def layer(name, tactic="", sparse=None, kind="CaskConvolution", **more):
    made = {"Name": name, "LayerType": kind, "TacticName": tactic} | more
    return made if sparse is None else made | {"HasSparseWeights": sparse}


def check_layers(layers, log=None, graph=None, **options):
    found = engine_evidence(
        parse_inspection({"Layers": layers}) if layers is not None else None,
        parse_log(log.splitlines()) if log is not None else None,
        graph,
        **options,
    )
    return {one.name: one for one in found.layers}, found


def graph_of(*names):
    nodes = [
        helper.make_node("Conv", [f"t{index}", f"{name}.weight"], [f"t{index + 1}"], name=name)
        for index, name in enumerate(names)
    ]
    weights = [numpy_helper.from_array(np.zeros((8, 8, 1, 1), np.float16), f"{name}.weight") for name in names]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 8, 1, 1]) for name in ("t0", f"t{len(names)}")
    ]
    return onnx_nodes(helper.make_model(helper.make_graph(nodes, "net", ports[:1], ports[1:], weights)))


def test_has_sparse_weights_is_no_proof_of_a_sparse_kernel():
    """NVIDIA/TensorRT issue 4694: the flag of the weights is 1, and a dense kernel runs."""
    layers, _ = check_layers([layer("q", DENSE, 1), layer("i", SPARSE, 1), layer("none", "", 1), layer("w", DENSE, 0)])
    assert (layers["q"].eligible, layers["q"].chosen) == (True, False)
    assert (layers["i"].eligible, layers["i"].chosen) == (True, True)
    assert (layers["none"].eligible, layers["none"].chosen) == (True, None)
    assert (layers["w"].eligible, layers["w"].chosen) == (False, False)
    assert "not the kernel" in layers["q"].why


LOG = """\
(Sparsity) Found 3 layer(s) eligible to use sparse tactics: a, b + r, inner
(Sparsity) Chose 2 layer(s) using sparse tactics: a, inner
"""


def test_the_log_speaks_where_kernels_have_no_name():
    layers, found = check_layers([layer("a", "", 1), layer("b + r"), layer("c", sparse=0)], LOG)
    assert (layers["a"].eligible, layers["a"].chosen) == (True, True)
    assert (layers["b + r"].eligible, layers["b + r"].chosen) == (True, False)
    assert (layers["inner"].type, layers["inner"].chosen) == ("", True)
    assert "build log only" in layers["inner"].why
    assert (found.log_eligible, found.log_chosen) == (3, 2)


def test_the_log_of_another_engine_adds_no_layers():
    layers, found = check_layers([layer("x", SPARSE, 1), layer("y", DENSE, 0)], LOG)
    assert list(layers) == ["x", "y"]
    assert any("none of the 3 layers that the log lists is one of the engine's" in note for note in found.notes)
    hidden, _ = check_layers([layer("x", SPARSE, 1), layer("{ForeignNode[q...z]}", kind="Myelin")], LOG)
    assert list(hidden)[2:] == ["a", "b + r", "inner"]


@pytest.mark.parametrize(("profile", "number"), [(None, 0), (1, 1), (7, 0)])
def test_the_layers_of_the_profile_that_was_timed(profile, number):
    raw = [layer(f"{name} [profile {at}]", SPARSE if at else DENSE, 1) for at in (0, 1) for name in ("a", "b")]
    found = engine_evidence(parse_inspection({"Layers": raw}), None, profile=profile)
    assert [one.name for one in found.layers] == [f"a [profile {number}]", f"b [profile {number}]"]
    assert all(one.chosen is bool(number) for one in found.layers)


def test_layers_inside_a_foreign_node_are_found_in_the_log_by_their_nodes():
    graph = graph_of("a", "inner", "last")
    layers, _ = check_layers([layer("{ForeignNode[a...last]}", kind="Myelin")], LOG.replace("b + r", "last"), graph)
    (only,) = layers.values()
    assert only.onnx_nodes == ("a", "inner", "last")
    assert only.torch_names == ("a.weight", "inner.weight", "last.weight")
    assert (only.eligible, only.chosen) == (True, True)
    assert "2 of 3 sparse in the log" in only.why


def test_a_complete_list_makes_the_others_not_eligible():
    log = "(Sparsity) Layers eligible for sparse math: a\n"
    log += "(Sparsity) TRT inference plan picked sparse implementation for layers:\n"
    layers, _ = check_layers([layer("a", sparse=1), layer("b", sparse=1)], log)
    assert (layers["a"].eligible, layers["a"].chosen) == (True, False)
    assert (layers["b"].eligible, layers["b"].chosen) == (False, False)


def test_the_kernels_name_wins_over_the_log_and_says_so():
    layers, _ = check_layers([layer("a", DENSE), layer("b + r", SPARSE)], LOG)
    assert (layers["a"].chosen, layers["b + r"].chosen) == (False, True)
    assert "contradicts the log" in layers["a"].why


def test_what_rtx_hides_is_said_to_be_hidden():
    graph = graph_of("a", "b")
    nodes = {"Metadata": "[ONNX Layer: a]"}
    layers, _ = check_layers(
        [layer("a_myl0_2", STUB, kind="correlation", **nodes), layer("__mye1_myl0_0", kind="shape_call")],
        graph=graph,
        legal={"a": "eligible", "b": "2 groups"},
    )
    assert (layers["a_myl0_2"].eligible, layers["a_myl0_2"].chosen) == (True, None)
    assert "sparsity not observable" in layers["a_myl0_2"].why
    assert layers["a_myl0_2"].torch_names == ("a.weight",)
    assert not layers["__mye1_myl0_0"].has_weights
    layers, _ = check_layers([layer("b_myl0_2", STUB, kind="correlation")], graph=graph, legal={"b": "2 groups"})
    assert (layers["b_myl0_2"].eligible, layers["b_myl0_2"].chosen) == (False, False)
    assert "2 groups" in layers["b_myl0_2"].why


def test_generated_kernels_around_a_convolution_are_not_counted_twice():
    graph = graph_of("a", "b")
    made = [
        layer("__myl_Cast_myl0_1", "__myl_Cast_0x1", kind="kgen", Metadata="[ONNX Layer: a]"),
        layer("a_myl0_2", STUB, kind="correlation", Metadata="[ONNX Layer: a]"),
        layer("__myl_Tran_myl0_3", kind="kgen"),
        layer("__myl_FcMul_myl0_4", "__myl_FcMul_0x2", kind="kgen", Metadata="[ONNX Layer: b]"),
    ]
    layers, _ = check_layers(made, graph=graph)
    assert {name for name, one in layers.items() if one.has_weights} == {"a_myl0_2", "__myl_FcMul_myl0_4"}
    assert layers["__myl_FcMul_myl0_4"].torch_names == ("b.weight",)


def test_nothing_at_all_is_no_layers():
    found = engine_evidence(None, None)
    assert (found.layers, found.log_eligible, found.log_chosen) == ((), None, None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b + r", "{ForeignNode[a...inner]}", "x"]),
            st.sampled_from([SPARSE, DENSE, STUB, ""]),
            st.sampled_from([None, 0, 1]),
        ),
        max_size=5,
    ),
    st.sampled_from([None, LOG, ""]),
    st.booleans(),
)
def test_a_sparse_kernel_is_never_claimed_without_a_name_or_a_log_line(rows, log, with_graph):
    found = check_layers([layer(*row) for row in rows], log, graph_of("a", "inner") if with_graph else None)[1]
    for one in found.layers:
        if one.chosen:
            assert one.kernel == SPARSE or log == LOG
        assert one.why


def test_recorded_dense_engines_have_no_sparse_kernel(reference_data):
    for path in sorted(reference_data.glob("a100-resnet18/*/graph.json")):
        found = engine_evidence(read_inspection(path), None)
        weighted = [one for one in found.layers if one.has_weights]
        # resnet18: 20 convolutions, one of them 7x7, and a classifier. One INT8 kernel has no name.
        assert len(weighted) == 21
        named = [one for one in weighted if one.kernel]
        assert len(named) >= 20
        assert {one.chosen for one in named} == {False}
        assert {one.eligible for one in weighted} == {False}
        joined = " ".join(name for one in weighted for name in one.onnx_nodes)
        assert joined.count("Conv_") == 20
        assert json.loads(path.read_text())["Layers"]


def test_weights_of_a_file_with_constant_nodes():
    value = numpy_helper.from_array(np.zeros((8, 4), np.float32), "")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="m"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "net", [], []))
    assert onnx_nodes(onnx.ModelProto.FromString(model.SerializeToString())).nodes["m"].weight == "w"
