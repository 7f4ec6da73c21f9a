"""Layers of two engines: which belong together, what they show, and what is sparsity in it."""

import numpy as np
import onnx
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from small_networks import small_network

from nm2trt.artifacts import LayerEvidence
from nm2trt.artifacts.ratio import RatioRecord
from nm2trt.artifacts.report_layers import LayerTimeRecord
from nm2trt.profile.layer_summary import summarized
from nm2trt.profile.layers import Network, layer_tables, layers_record, matched
from nm2trt.profile.reasons import Setting
from nm2trt.profile.runners.onnxruntime_layers import layer_times
from nm2trt.profile.runners.onnxruntime_runner import OnnxRuntimeRunner
from nm2trt.profile.runners.runner import LayerTimes


def layer(name, *nodes, ms=1.0):
    return LayerTimes(name=name, type="t", times_ms=(ms, ms, ms), onnx_nodes=nodes)


def test_layers_that_fused_differently_meet_in_one_row():
    dense = [layer("conv+relu", "conv", "relu", ms=3.0), layer("fc", "fc"), layer("copy")]
    sparse = [layer("conv", "conv", ms=1.0), layer("relu", "relu", ms=0.5), layer("fc", "fc"), layer("other")]
    rows = matched(dense, sparse)
    assert [(len(row.dense), len(row.sparse)) for row in rows] == [(1, 2), (1, 1), (0, 1), (1, 0)]
    assert rows[0].nodes == ("conv", "relu")


sides = st.lists(st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3), max_size=5)


@examples(60)
@given(sides, sides)
def test_rows_are_the_connected_groups(dense, sparse):
    """Against the slow way: merge any two sets of layers that share a node until nothing merges."""
    tables = [
        [layer(f"{variant}{i}", *sorted(nodes)) for i, nodes in enumerate(side)]
        for variant, side in (("d", dense), ("s", sparse))
    ]
    groups = [({one.name}, set(one.onnx_nodes)) for table in tables for one in table]
    merged = True
    while merged:
        merged = False
        for i in range(len(groups)):
            for j in range(i + 1, len(groups)):
                if groups[i][1] & groups[j][1]:
                    groups[i] = (groups[i][0] | groups[j][0], groups[i][1] | groups[j][1])
                    del groups[j]
                    merged = True
                    break
            if merged:
                break
    found = {frozenset(one.name for one in (*row.dense, *row.sparse)) for row in matched(*tables)}
    assert found == {frozenset(names) for names, _ in groups}


def row(name, dense_ms, sparse_ms, chosen, *, weighted=True):
    ratio = dense_ms / sparse_ms
    return LayerTimeRecord(
        name=name,
        type="Conv",
        dense_ms=dense_ms,
        sparse_ms=sparse_ms,
        share=0.1,
        weighted=weighted,
        chosen=chosen,
        ratio=RatioRecord(value=ratio, low=ratio, high=ratio),
    )


@pytest.mark.parametrize("background", [1.0, 1.04, 0.97])
def test_what_shows_without_sparse_kernels_too_is_no_gain_of_theirs(background):
    """Truth by construction: every layer changed by `background`, and sparse kernels gain 1.3 on top."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(40):
        sparse_ms = float(rng.uniform(0.05, 0.2))
        kernel = index % 2 == 0
        true = background * (1.3 if kernel else 1.0) * float(np.exp(0.01 * rng.standard_normal()))
        rows.append(row(f"l{index}", true * sparse_ms, sparse_ms, kernel))
    found = summarized(rows, batch=1, source="made up", calls=1, seed=0)
    assert found.chosen == 20
    assert found.with_kernel.value == pytest.approx(1.3 * background, rel=0.01)
    assert found.without_kernel.value == pytest.approx(background, rel=0.01)
    assert found.without_kernel.low <= background <= found.without_kernel.high
    # Sparse kernels alone: their own layers' 1.3, spread over all layers by time.
    ones = sum(one.sparse_ms for one in rows)
    alone = sum(one.sparse_ms * (1.3 if one.chosen else 1.0) for one in rows) / ones
    assert found.net.value == pytest.approx(alone, rel=0.01)
    assert f"sparse kernels account for {found.net.value:.2f}x" in found.sentence


def test_without_a_sparse_kernel_nothing_is_put_down_to_sparsity():
    found = summarized(
        [row("a", 1.3, 1.0, chosen=False), row("b", 1.2, 1.0, chosen=False)], batch=1, source="s", calls=1, seed=0
    )
    assert found.net is None
    assert "no layer runs a sparse kernel" in found.sentence
    unseen = summarized([row("a", 1.3, 1.0, chosen=None)], batch=1, source="s", calls=1, seed=0)
    assert "not observed" in unseen.sentence


SETTING = Setting(batch=1, sparse_kernels=True, tuned_for=8, multiprocessors=108, launch_bound=True, clocks_moved=True)


def test_reasons_of_a_layer_that_kept_its_dense_kernel():
    evidence = [LayerEvidence(name="c", type="conv", torch_names=("c.weight",), eligible=True, chosen=False)]
    tables = {"dense": [layer("c", "c")], "sparse": [layer("c", "c")]}
    found = layers_record(tables, {"sparse": evidence}, Network(), SETTING, source="s", seed=0).layers[0]
    text = "; ".join(found.reasons)
    for wanted in ("kept a dense one", "tuned for batch 8, measured at 1", "launch bound", "clocks not locked"):
        assert wanted in text
    assert len(found.reasons) == len(found.advice)
    gained = [one.model_copy(update={"chosen": True}) for one in evidence]
    tables["dense"] = [layer("c", "c", ms=1.3)]
    assert layers_record(tables, {"sparse": gained}, Network(), SETTING, source="s", seed=0).layers[0].reasons == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_layers_of_onnxruntime_lead_back_to_the_graph(dtype):
    model = small_network(sparse=True, dtype=dtype)
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}_{node.op_type}"
    runners = {name: OnnxRuntimeRunner(model, name="net") for name in ("dense", "sparse")}
    for runner in runners.values():
        runner.prepare(2)
    tables = layer_tables(runners, seed=0)
    for table in tables.values():
        convolutions = [one for one in table if "Conv" in one.type]
        assert len(convolutions) == 2
        assert {"n0_Conv", "n2_Conv"} <= {node for one in convolutions for node in one.onnx_nodes}
        assert {len(one.times_ms) for one in table} == {len(table[0].times_ms)}
        assert sum(sum(one.times_ms) for one in table) > 0
    for runner in runners.values():
        runner.close()


def test_profiler_events_are_summed_by_call_and_the_first_call_is_left_out():
    def event(name, us, index="0", op="Conv"):
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": {"node_index": index, "op_name": op}}

    model = small_network()
    events = [{"cat": "Session", "name": "model_run", "dur": 9}]
    for call in range(3):
        events += [event("c0", 1000 + call), event("twice", 10, "1"), event("twice", 30, "1")]
    events.append(event("sometimes", 5, "2"))
    found = {one.name: one for one in layer_times(events, model, calls=3)}
    assert found["c0"].times_ms == (1.001, 1.002)
    assert found["c0"].onnx_nodes == ("c0",)
    assert found["twice"].times_ms == (0.04, 0.04)
    assert "sometimes" not in found
    onnx.checker.check_model(model)
