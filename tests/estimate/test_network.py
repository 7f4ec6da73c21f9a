"""Whole networks: what is eligible, what is summed up, what the ranges are, and the plan."""

import json
from itertools import pairwise

import numpy as np
import pytest
from estimate_graphs import conv_net, save, two_of_four
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from nm2trt.errors import ConfigError, InputError, Nm2trtError
from nm2trt.estimate.gpus import find_gpu, read_gpu_file
from nm2trt.estimate.network import estimate_network
from nm2trt.estimate.recommend import make_plan
from nm2trt.estimate.sensitivity import read_sensitivity
from nm2trt.pattern import NMPattern

A100 = find_gpu("a100-pcie-80gb")
TWO_OF_FOUR = NMPattern(2, 4)


def chain(path, widths=(64, 256, 512, 256), size=28, pruned=True):
    """3x3 convolutions one behind the other."""
    nodes, weights, x = [], {}, "x"
    for index, (c_in, c_out) in enumerate(pairwise(widths)):
        name = f"layers.{index}"
        shape = (c_out, c_in, 3, 3)
        weights[f"{name}.weight"] = two_of_four(*shape, seed=index) if pruned else np.ones(shape, np.float32)
        nodes.append(helper.make_node("Conv", [x, f"{name}.weight"], [f"{name}.y"], name=name, pads=[1] * 4))
        x = f"{name}.y"
    return save(path, nodes, {"x": ["n", widths[0], size, size]}, [x], weights)


def test_pattern_is_counted_in_the_weights(tmp_path):
    pruned = estimate_network(conv_net(tmp_path / "a.onnx", c_in=256, c_out=256), A100, batch=32)
    dense = estimate_network(conv_net(tmp_path / "b.onnx", c_in=256, c_out=256, pruned=False), A100, batch=32)
    assert pruned.layers[0].tensorrt == "eligible"
    assert pruned.speedup.value > 1
    assert dense.layers[0].tensorrt.startswith("not 2:4-legal: 147456 of 147456")
    assert dense.speedup.value == dense.speedup.low == dense.speedup.high == 1
    assumed = estimate_network(tmp_path / "b.onnx", A100, batch=32, assume=TWO_OF_FOUR)
    assert assumed.speedup == pruned.speedup
    assert assumed.dense_ms == dense.dense_ms


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"c_in": 6}, "6 input channels: no multiple of 4"),
        ({"c_in": 64, "groups": 4}, "4 groups: TensorRT does not consider"),
        ({"c_in": 64, "c_out": 64, "groups": 64}, "64 groups"),
    ],
)
def test_what_tensorrt_never_considers(arguments, reason, tmp_path):
    path = conv_net(tmp_path / "m.onnx", pruned=False, **arguments)
    (layer,) = estimate_network(path, A100, batch=8, assume=TWO_OF_FOUR).layers
    assert layer.tensorrt.startswith(reason)
    assert (layer.sparse, layer.expectation, layer.chosen) == (None, "", False)


def test_fp32_has_no_sparse_kernels(tmp_path):
    (layer,) = estimate_network(conv_net(tmp_path / "m.onnx"), A100, "fp32", batch=8).layers
    assert layer.tensorrt.startswith("FP32")
    assert layer.precision == "tf32"


def quantized(path, *, int8_out):
    """A pruned INT8 convolution between Q/DQ nodes."""
    weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    weights["w"] = np.clip(np.round(20 * two_of_four(256, 256, 3, 3)), -127, 127).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q0"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dq0"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], name="dqw"),
        helper.make_node("Conv", ["xd", "wd"], ["y"], name="conv", pads=[1] * 4),
    ]
    if int8_out:
        nodes.append(helper.make_node("QuantizeLinear", ["y", "s", "z"], ["yq"], name="q1"))
        nodes.append(helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["yd"], name="dq1"))
    return save(path, nodes, {"x": ["n", 256, 16, 16]}, [nodes[-1].output[0]], weights)


def test_int8_without_q_dq_is_an_assumption_that_is_said(tmp_path):
    path = conv_net(tmp_path / "m.onnx")
    assert "no Q/DQ" in estimate_network(path, A100, "int8", batch=1).notes[0]
    assert not estimate_network(path, A100, "fp16", batch=1).notes
    assert not estimate_network(quantized(tmp_path / "q.onnx", int8_out=True), A100, "int8", batch=1).notes


def test_int8_layers_want_an_int8_output(tmp_path):
    for int8_out in (True, False):
        found = estimate_network(quantized(tmp_path / "m.onnx", int8_out=int8_out), A100, batch=32)
        (conv,) = [layer for layer in found.layers if layer.geometry.kind == "conv"]
        assert (conv.precision, conv.tensorrt) == ("int8", "eligible")
        assert conv.chosen is int8_out
        assert (conv.why is not None and conv.why.code == "float-output") is not int8_out


@examples(150)
@given(data=st.data())
def test_damaged_models_are_read_or_refused(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "whole.onnx"
    if not path.exists():
        chain(path, widths=(4, 8, 8), size=5)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 700) - 1))] = data.draw(st.integers(0, 255))
    (folder / "damaged.onnx").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        found = estimate_network(folder / "damaged.onnx", A100, batch=2)
    except Nm2trtError as error:
        assert "\n" not in str(error)
    else:
        assert all(layer.dense.total_us > 0 for layer in found.layers)


def test_dense_layers_are_left_out_and_globs_checked(tmp_path):
    path = chain(tmp_path / "m.onnx")
    every = estimate_network(path, A100, batch=32)
    some = estimate_network(path, A100, batch=32, dense_layers=["layers.1"])
    assert [layer.tensorrt for layer in some.layers] == ["eligible", "kept dense by --exclude", "eligible"]
    assert 1 < some.speedup.value < every.speedup.value
    with pytest.raises(ConfigError, match="no layer with weights matches"):
        estimate_network(path, A100, batch=32, dense_layers=["nothing*"])


def test_a_pattern_that_tensorrt_refuses_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="4:8"):
        estimate_network(conv_net(tmp_path / "m.onnx"), A100, batch=1, assume=NMPattern(4, 8))


@examples(20)
@given(
    batch=st.integers(1, 64), precision=st.sampled_from(["fp16", "int8", "bf16"]), gpu=st.sampled_from(["l4", "h200"])
)
def test_ranges_are_ordered_and_sums_are_sums(batch, precision, gpu, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "ordered.onnx"
    if not path.exists():
        chain(path, widths=(16, 64, 64), size=14)
    found = estimate_network(path, find_gpu(gpu), precision, batch=batch)
    for value in (found.dense_ms, found.sparse_ms, found.speedup, *(layer.dense_us for layer in found.layers)):
        assert 0 < value.low <= value.value <= value.high
    assert found.speedup.high - found.speedup.low >= 0.2
    assert found.sparse_ms.value <= found.dense_ms.value
    total_us = sum(layer.dense.total_us for layer in found.layers)
    assert found.dense_ms.value == pytest.approx((total_us - found.profile_us * len(found.layers)) / 1e3)


def test_what_was_never_measured_is_said_and_widened(tmp_path):
    path = conv_net(tmp_path / "m.onnx", c_in=256, c_out=256)
    known = estimate_network(path, A100, batch=32)
    other = estimate_network(path, find_gpu("h100-sxm"), batch=32)
    assert known.outside == ()
    assert "NVIDIA H100" in other.outside[0]
    width = [found.speedup.high / found.speedup.low for found in (known, other)]
    assert width[0] < width[1]
    bf16 = estimate_network(path, A100, "bf16", batch=32)
    assert "bf16" in bf16.outside


def test_clocks_are_told_apart_from_sparsity(tmp_path):
    path = conv_net(tmp_path / "m.onnx", c_in=256, c_out=256)
    board = estimate_network(path, find_gpu("a100-pcie-40gb"), batch=32)
    assert 1 < board.clock_gain < 1.1
    assert estimate_network(path, A100, batch=32).clock_gain == 1
    layer = board.layers[0]
    ratio = (layer.dense.total_us - board.profile_us) / (layer.best_us - board.profile_us)
    assert board.speedup.value == pytest.approx(ratio)


def test_plan_is_greedy_and_reaches_its_target(tmp_path):
    path = chain(tmp_path / "m.onnx", pruned=False)
    every = estimate_network(path, A100, batch=32, assume=TWO_OF_FOUR)
    whole = make_plan(every)
    assert [step.speedup for step in whole.steps] == sorted(step.speedup for step in whole.steps)
    assert whole.best_speedup == pytest.approx(every.speedup.value)
    saved = [step.saved_us for step in whole.steps]
    assert saved == sorted(saved, reverse=True)
    first = whole.steps[0]
    plan = make_plan(every, target=1 + (first.speedup - 1) / 2)
    assert [layer.geometry.weight for layer in plan.sparse] == [first.layer.geometry.weight]
    assert plan.estimate.speedup.value == pytest.approx(first.speedup)
    # The same network with the others kept dense.
    rest = [layer.geometry.weight for layer in plan.dense]
    again = estimate_network(path, A100, batch=32, assume=TWO_OF_FOUR, dense_layers=rest)
    assert again.speedup.value == pytest.approx(plan.estimate.speedup.value)
    assert plan.train_arguments == ("--pattern=2:4", *(f"--exclude={name.removesuffix('.weight')}" for name in rest))
    assert plan.prune_arguments == ("--pattern=2:4", *(f"--exclude={name}" for name in rest))
    assert not make_plan(every, target=1.9).reached
    with pytest.raises(ConfigError, match="no speed-up"):
        make_plan(every, target=0.9)


def test_sensitivity_turns_the_order(tmp_path):
    every = estimate_network(chain(tmp_path / "m.onnx", pruned=False), A100, batch=32, assume=TWO_OF_FOUR)
    plain = make_plan(every)
    worst = plain.steps[0].layer.geometry.weight
    costs = {step.layer.geometry.weight: 1.0 for step in plain.steps} | {worst: 1000.0}
    assert make_plan(every, sensitivity=costs).steps[-1].layer.geometry.weight == worst
    del costs[plain.steps[1].layer.geometry.weight]
    assert "1 of 3 layers" in make_plan(every, sensitivity=costs).notes[0]
    with pytest.raises(ConfigError, match="none of its 1 names"):
        make_plan(every, sensitivity={"other": 1.0})


@pytest.mark.parametrize(
    ("text", "costs"),
    [
        ('{"a": 1, "b": 0.5}', {"a": 1.0, "b": 0.5}),
        ("layer,cost\na,1\n\nb,0.5\n", {"a": 1.0, "b": 0.5}),
        (
            json.dumps(
                {
                    "schema": "nm2trt.calibration/1",
                    "sensitivity": [
                        {"layer": "a", "sqnr_db": 20.0, "score_drop_points": None},
                        {"layer": "b", "sqnr_db": 20.0, "score_drop_points": -0.5},
                    ],
                }
            ),
            {"a": 0.01, "b": 0.0},
        ),
    ],
)
def test_sensitivities_are_read(text, costs, tmp_path):
    (tmp_path / "s").write_text(text)
    found, note = read_sensitivity(tmp_path / "s")
    assert found == pytest.approx(costs)
    assert bool(note) == ("schema" in text)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"a": "x"}', '{"a": NaN}', '{"a": -1}', "a,b,c\n", "a,1\nb,x\n"]
)
def test_broken_sensitivities_are_one_line(text, tmp_path):
    (tmp_path / "s").write_text(text)
    with pytest.raises(InputError) as caught:
        read_sensitivity(tmp_path / "s")
    assert "\n" not in str(caught.value)


@examples(60)
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
def test_any_gpu_file_is_read_or_refused(content, tmp_path_factory):
    for suffix in ("toml", "json"):
        path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_gpu_file(path)
        assert "\n" not in str(caught.value)


def test_gpu_files_are_checked_whole(tmp_path):
    fields = A100.model_dump(exclude={"key"})
    (tmp_path / "g.json").write_text(json.dumps({"mine": fields}))
    assert read_gpu_file(tmp_path / "g.json").spec == A100.model_copy(update={"key": ""})
    (tmp_path / "g.json").write_text(json.dumps({**fields, "sms": 0, "bandwidth_gb_s": -1, "other": 1}))
    with pytest.raises(InputError) as caught:
        read_gpu_file(tmp_path / "g.json")
    for name in ("sms", "bandwidth_gb_s", "other"):
        assert name in str(caught.value)
    (tmp_path / "g.json").write_text(json.dumps({**fields, "sparse": {"fp16": 1.0}}))
    with pytest.raises(InputError, match="below dense"):
        read_gpu_file(tmp_path / "g.json")


def test_names_close_to_a_gpu_are_offered():
    assert find_gpu("A100_PCIe 40GB".replace(" ", "_")).key == "a100-pcie-40gb"
    for name, offered in (("a100", "a100-"), ("h100-pci", "h100-pcie"), ("rtx4090", "rtx-4090"), ("zzz", "known: ")):
        with pytest.raises(ConfigError, match=offered):
            find_gpu(name)
