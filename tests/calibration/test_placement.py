"""Each placement rule on a graph where the right answer is plain."""

import int8_networks as nets
import pytest

from nm2trt.calibration.graph import open_float_graph
from nm2trt.calibration.placement import (
    CONCATS,
    GLOBAL_POOLS,
    GRAPH_OUTPUT,
    LAYER_INPUTS,
    PLACEMENTS,
    RESIDUAL_SKIPS,
    SPARSE_OUTPUTS,
    ends_in_int8,
    output_of,
    place,
)

CONVS = {f"{name}.weight" for name in ("c1", "c2", "c3", "c4", "proj")}


@pytest.fixture
def opened(tmp_path):
    return lambda made: open_float_graph(nets.saved(made, tmp_path / "m.onnx"))


def placed(graph, rules, *, without=(), sparse=frozenset()):
    layers = tuple(layer for layer in graph.layers if layer.name not in without)
    found = place(graph, rules, layers, sparse)
    readers = {
        tensor: {("output" if n == GRAPH_OUTPUT else graph.name_of(n), side) for n, side in edges}
        for tensor, edges in found.edges.items()
    }
    return found, readers


def test_layer_inputs_take_what_layers_read_and_nothing_else(opened):
    _, readers = placed(opened(nets.residual()), (LAYER_INPUTS,))
    assert readers == {
        "x": {("stem", 0)},
        "a": {("c1", 0)},
        "b1": {("c2", 0)},
        "f": {("c3", 0), ("proj", 0)},
        "g1": {("c4", 0)},
        "l": {("fc", 0)},
    }


def test_products_of_activations_are_left_alone(opened):
    graph = opened(nets.products())
    assert [layer.name for layer in graph.layers] == ["up", "down"]
    assert [layer.channel_axis for layer in graph.layers] == [1, 1]


def test_the_skip_input_of_each_residual_addition_is_quantized_and_the_main_branch_is_not(opened):
    _, readers = placed(opened(nets.residual()), (RESIDUAL_SKIPS,))
    # The longer branch (c3, c4) is the main one, so the projection is the skip, whatever the order of the inputs.
    assert readers == {"a": {("add1", 1)}, "p": {("add2", 0)}}


def test_a_skip_goes_where_a_quantized_convolution_is_left(opened):
    _, readers = placed(opened(nets.residual()), (RESIDUAL_SKIPS,), without=("c4",))
    assert readers["h"] == {("add2", 1)}
    _, readers = placed(opened(nets.residual()), (RESIDUAL_SKIPS,), without=("c4", "proj", "c2"))
    assert readers == {}


def test_residual_additions_behind_products_stay_in_floating_point(opened):
    _, readers = placed(opened(nets.products()), (RESIDUAL_SKIPS,))
    assert readers == {}


def test_global_pooling_reads_int8(opened):
    _, readers = placed(opened(nets.residual()), (GLOBAL_POOLS,))
    assert readers == {"j": {("gap", 0)}}


def test_all_inputs_of_nested_concats_share_the_output_scale(opened):
    found, readers = placed(opened(nets.concatenated()), (LAYER_INPUTS, CONCATS))
    assert readers["a"] == {("inner", 0)}
    assert readers["ab"] == {("outer", 0)}
    assert readers["x"] == {("c1", 0), ("c2", 0), ("outer", 1), ("outer", 2)}
    assert found.one_scale == [{"abxx", "ab", "x", "a", "b"}]


def test_a_concat_that_nothing_reads_quantized_is_left_alone(opened):
    found, readers = placed(opened(nets.concatenated()), (LAYER_INPUTS, CONCATS), without=("c3",))
    assert set(readers) == {"x"}
    assert not found.one_scale


def test_sparse_layers_of_a_resnet_end_in_int8_by_default(opened):
    graph = opened(nets.residual())
    found, _ = placed(graph, PLACEMENTS["default"], sparse=CONVS)
    ends = {layer.name: ends_in_int8(graph, found, output_of(graph, layer)) for layer in graph.layers}
    assert ends == {"stem": True, "c1": True, "c2": True, "c3": True, "c4": True, "proj": True, "fc": False}
    assert output_of(graph, graph.layers[2]).name == "f"  # convolution, addition and ReLU are one kernel


def test_minimal_placement_leaves_residual_blocks_half_in_floating_point(opened):
    graph = opened(nets.residual())
    found, _ = placed(graph, PLACEMENTS["minimal"], sparse=CONVS)
    ends = {layer.name: ends_in_int8(graph, found, output_of(graph, layer)) for layer in graph.layers}
    assert [name for name, end in ends.items() if not end] == ["stem", "c4", "proj", "fc"]


def test_sparse_outputs_are_quantized_behind_the_bias_for_readers_in_floating_point(opened):
    graph = opened(nets.products())
    sparse = {"up.weight", "down.weight"}
    found, readers = placed(graph, (LAYER_INPUTS, SPARSE_OUTPUTS), sparse=sparse)
    # `up` ends behind its ReLU, whose reader is INT8 already; `down` ends before the skip.
    assert readers == {"x": {("up", 0)}, "c": {("down", 0)}, "d": {("skip", 0)}}
    assert all(ends_in_int8(graph, found, output_of(graph, layer)) for layer in graph.layers)


def test_the_output_of_a_sparse_classifier_is_quantized_under_its_own_name(opened):
    _, readers = placed(opened(nets.residual()), PLACEMENTS["sparse"], sparse={"fc.weight"})
    assert readers["logits"] == {("output", 0)}
