import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from run_folders import DIGITS, random_network

from nm2trt.artifacts import BatchRange
from nm2trt.data import load_data
from nm2trt.errors import InputError
from nm2trt.export import TOLERANCES, Samples, check_numerics, numerics_samples, onnx_bytes, onnx_from_module

RANGE = BatchRange(min=1, opt=4, max=9)


@pytest.fixture(scope="module")
def mlp():
    return random_network("mlp")


@pytest.fixture(scope="module")
def content(mlp):
    return onnx_bytes(onnx_from_module(mlp, DIGITS))


@pytest.fixture(scope="module")
def samples():
    x = np.random.default_rng(0).standard_normal((9, *DIGITS)).astype(np.float32)
    return Samples(x_BX=x, inputs="noise")


def edited(content, name, edit):
    model = onnx.load_from_string(content)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    edit(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model.SerializeToString()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_own_exports_pass(name, precision):
    module = random_network(name)
    record = check_numerics(
        module,
        onnx_bytes(onnx_from_module(module, DIGITS, precision=precision)),
        numerics_samples("digits", DIGITS, RANGE),
        RANGE,
        tolerance=TOLERANCES[precision],
        bf16=precision == "bf16",
    )
    assert record.passed, record
    assert record.batches == (1, 4, 9)
    assert record.inputs == "first 64 test samples of digits"
    assert ("bfloat16" in record.reference) == (precision == "bf16")


def test_a_wrong_bias_is_found_at_its_output(mlp, content, samples):
    def edit(bias):
        bias[3] += 0.5

    record = check_numerics(mlp, edited(content, "head.bias", edit), samples, RANGE, tolerance=1e-4)
    assert not record.passed
    assert record.max_abs_error == pytest.approx(0.5, abs=1e-5)
    assert "output 3:" in record.max_abs_error_at


def test_the_record_equals_a_plain_computation(mlp, content, samples):
    def edit(weight):
        weight[5, 100] += 1.0

    record = check_numerics(mlp, edited(content, "head.weight", edit), samples, RANGE, tolerance=1e-4)
    with torch.no_grad():
        x = torch.from_numpy(samples.x_BX)
        right = mlp(x)
        hidden = torch.relu(mlp.hidden2(torch.relu(mlp.hidden1(x.flatten(1)))))
    errors = [float(hidden[i, 100]) for i in range(9)]
    worst = max(range(9), key=lambda i: errors[i])
    assert record.max_abs_error == pytest.approx(errors[worst], rel=1e-4)
    assert record.max_abs_error_at.startswith(f"sample {worst}, output 5: torch {float(right[worst, 5]):.5g}"[:-1])
    assert record.max_rel_error == pytest.approx(errors[worst] / float(right.abs().max()), rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_never_pass(mlp, content, samples, value):
    def edit(bias):
        bias[2] = value

    record = check_numerics(mlp, edited(content, "head.bias", edit), samples, RANGE, tolerance=1e30)
    assert not record.passed
    assert "output 2:" in record.max_abs_error_at


def test_batches_are_capped_by_the_samples(mlp, content, samples):
    record = check_numerics(mlp, content, samples, BatchRange(min=2, opt=64, max=4096), tolerance=1e-4)
    assert record.batches == (2, 9)
    assert record.samples == 9


def test_real_samples_are_the_test_set_and_noise_is_named():
    taken = numerics_samples("digits", DIGITS, BatchRange(min=1, opt=8, max=100))
    assert np.array_equal(taken.x_BX, load_data("digits").test_samples(100))
    noise = numerics_samples(None, (3, 5), RANGE)
    assert noise.x_BX.shape == (64, 3, 5)
    assert "noise" in noise.inputs
    assert np.array_equal(noise.x_BX, numerics_samples(None, (3, 5), RANGE).x_BX)


def test_data_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"\[1, 8, 8\].*\[3, 32, 32\]"):
        numerics_samples("digits", (3, 32, 32), RANGE)


def test_a_file_that_onnx_runtime_refuses_is_one_line(mlp, samples):
    with pytest.raises(InputError, match="ONNX Runtime refuses") as caught:
        check_numerics(mlp, b"no onnx", samples, RANGE, tolerance=1e-4)
    assert "\n" not in str(caught.value)
