"""What moves a kernel's time from GPU to GPU: power, clocks, operands, waves, weights, few rows."""

import math

import pytest
from estimate_graphs import save, two_of_four
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from test_kernel import conv

from nm2trt.estimate.constants import fitted_constants
from nm2trt.estimate.gpus import find_gpu, gpu_table
from nm2trt.estimate.kernel import kernel_time, sparse_factor, sustained_share
from nm2trt.estimate.network import estimate_network
from nm2trt.estimate.recommend import make_plan

A100 = find_gpu("a100-pcie-40gb")
FITTED = fitted_constants()
gpus = st.sampled_from(list(gpu_table().values()))
precisions = st.sampled_from(["fp16", "bf16", "int8", "tf32"])


@given(gpu=gpus, precision=precisions, sparse=st.booleans(), more=st.floats(1.0, 4.0))
def test_more_power_never_slows_down(gpu, precision, sparse, more):
    stronger = gpu.model_copy(update={"power_w": gpu.power_w * more})
    one, other = (sustained_share(board, precision, FITTED, sparse=sparse) for board in (gpu, stronger))
    assert 0 < one <= other <= 1


def test_boards_with_few_watts_for_their_peak_are_slowed_down():
    # Watts for a TFLOPS of FP16: L4 0.6, A100 PCIe 40 GB 0.8, L40S 0.97.
    shares = [sustained_share(find_gpu(name), "fp16", FITTED) for name in ("l4", "a100-pcie-40gb", "l40s")]
    assert shares == sorted(shares)
    assert shares[0] < 0.9


@given(gpu=gpus, precision=precisions, faster=st.floats(1.0, 8.0))
def test_a_sparse_factor_is_at_most_two_and_falls_as_tensor_cores_get_faster(gpu, precision, faster):
    quick = gpu.model_copy(update={"dense": {name: peak * faster for name, peak in gpu.dense.items()}})
    one, other = (sparse_factor(board, precision, FITTED) for board in (gpu, quick))
    assert other <= one * (1 + 1e-12)
    assert one <= 2


@given(
    batch=st.integers(1, 40), size=st.integers(4, 40), c_out=st.sampled_from([32, 64, 256]), soft=st.floats(0.0, 1.0)
)
def test_a_softer_last_wave_is_never_slower_and_never_below_its_share(batch, size, c_out, soft):
    layer = conv(batch=batch, size=size, c_out=c_out)
    hard, softer, all_soft = (
        kernel_time(layer, A100, "fp16", constants=FITTED.model_copy(update={"soft_wave": value})).compute_us
        for value in (0.0, soft, 1.0)
    )
    assert all_soft <= softer * (1 + 1e-12)
    assert softer <= hard * (1 + 1e-12)


def test_weights_come_from_memory_however_large_l2_is():
    large = A100.model_copy(update={"l2_mib": 1e6})
    layer = conv(batch=1, c_in=1024, c_out=1024, size=8)
    weights_us = layer.weight_elements * 2 / (A100.bytes_per_us * FITTED.memory_efficiency)
    assert kernel_time(layer, large, "fp16").memory_us == pytest.approx(weights_us, rel=1e-3)


def test_a_floor_is_shorter_where_clocks_are_higher():
    layer = conv(batch=1, c_in=16, c_out=16, size=2)
    slow, fast = (kernel_time(layer, find_gpu(name), "fp16").floor_us for name in ("a100-pcie-40gb", "l40s"))
    own = FITTED.kernel_us - FITTED.profile_us
    assert slow == pytest.approx(FITTED.kernel_us)
    assert fast == pytest.approx(own * 1410 / 2520 + FITTED.profile_us)


@pytest.mark.parametrize("name", ["a100-pcie-80gb", "l4", "h100-sxm"])
def test_fused_attention_reaches_its_share_of_the_peak(name, tmp_path):
    gpu = find_gpu(name)
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"], name="scores"),
        helper.make_node("Softmax", ["s"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="values"),
    ]
    inputs = {"q": [64, 16, 512, 64], "k": [64, 16, 64, 512], "v": [64, 16, 512, 64]}
    path = save(tmp_path / "m.onnx", nodes, inputs, ["y"], {})
    (layer,) = estimate_network(path, gpu).layers
    assert layer.geometry.kind == "attention"
    reached = layer.geometry.flops / layer.dense.compute_us / gpu.peak_flop_per_us("fp16")
    assert reached <= FITTED.attention_share * (1 + 1e-9)
    assert reached == pytest.approx(FITTED.attention_share * sustained_share(gpu, "fp16", FITTED), rel=0.02)


@pytest.fixture(scope="module")
def wide_matmul(tmp_path_factory):
    weights = {"a.weight": two_of_four(4096, 4096, axis=0)}
    nodes = [helper.make_node("MatMul", ["x", "a.weight"], ["y"], name="a")]
    return save(tmp_path_factory.mktemp("wide") / "m.onnx", nodes, {"x": ["n", 4096]}, ["y"], weights)


@pytest.mark.parametrize("rows", [1, 2, 16])
@pytest.mark.parametrize(("gpu", "precision"), [("a100-sxm-80gb", "fp16"), ("l4", "int8"), ("h100-pcie", "fp16")])
def test_few_rows_are_open_and_no_gain_is_promised(rows, gpu, precision, wide_matmul):
    found = estimate_network(wide_matmul, find_gpu(gpu), precision, batch=rows)
    (layer,) = found.layers
    assert (layer.tensorrt, layer.expectation, layer.chosen) == ("eligible", "open", False)
    assert layer.why.words().startswith(f"few rows: {rows}")
    # Engines at batch 1 were recorded between 0.84x and 1.2x.
    assert "1 layers have at most 16 rows" in make_plan(found).notes[0]
    assert found.speedup.value == 1
    assert found.speedup.low <= 0.9
    assert found.speedup.high >= 1.1


def test_many_rows_are_not_open_for_that_reason(wide_matmul):
    found = estimate_network(wide_matmul, find_gpu("a100-sxm-80gb"), batch=4096)
    assert found.layers[0].expectation == "likely"
    assert math.isclose(found.speedup.value, found.layers[0].gain, rel_tol=0.1)


@given(
    gpu=gpus,
    precision=precisions,
    sparse=st.booleans(),
    batch=st.integers(1, 64),
    size=st.sampled_from([7, 14, 28, 56]),
    c_out=st.sampled_from([16, 64, 128, 512]),
)
def test_more_tiles_to_choose_from_never_slow_a_kernel_down(gpu, precision, sparse, batch, size, c_out):
    few, more = (
        FITTED.model_copy(update={"tile_rows": rows}) for rows in ((32, 64, 128, 256), (32, 64, 128, 192, 256))
    )
    layer = conv(batch=batch, size=size, c_out=c_out)
    one, other = (kernel_time(layer, gpu, precision, sparse=sparse, constants=some) for some in (few, more))
    assert other.compute_us <= one.compute_us


def test_a_tile_has_rows_that_are_allowed():
    only = FITTED.model_copy(update={"tile_rows": (192,), "split_convolutions": False})
    found = kernel_time(conv(c_in=64, c_out=64, size=56), A100, "int8", constants=only)
    assert found.tile == (192, 64)
    # 522.67 tiles are 523, on 108 SMs.
    assert found.waves == pytest.approx(523 / 108)
