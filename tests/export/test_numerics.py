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
from nm2trt.export import (
    INPUT,
    TOLERANCES,
    InputSpec,
    Samples,
    TorchReference,
    check_numerics,
    noise,
    onnx_bytes,
    onnx_from_module,
    sample_count,
    samples_of_data,
    samples_of_file,
)

RANGE = BatchRange(min=1, opt=4, max=9)
SPECS = (InputSpec(name=INPUT, shape=DIGITS),)


def check(module, content, samples, batch, folder, *, tolerance, precision="fp32", **options):
    path = folder / "model.onnx"
    path.write_bytes(content)
    reference = TorchReference(module, SPECS)
    return check_numerics(reference, path, samples, batch, tolerance=tolerance, precision=precision, **options)


@pytest.fixture(scope="module")
def mlp():
    return random_network("mlp")


@pytest.fixture(scope="module")
def content(mlp):
    return onnx_bytes(onnx_from_module(mlp, DIGITS))


@pytest.fixture(scope="module")
def samples():
    x = np.random.default_rng(0).standard_normal((9, *DIGITS)).astype(np.float32)
    return Samples(feeds={INPUT: x}, inputs="noise")


def edited(content, name, edit):
    model = onnx.load_from_string(content)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    edit(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model.SerializeToString()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_own_exports_pass(name, precision, tmp_path):
    module = random_network(name)
    record = check(
        module,
        onnx_bytes(onnx_from_module(module, DIGITS, precision=precision)),
        samples_of_data("digits", SPECS, 64, None),
        RANGE,
        tmp_path,
        tolerance=TOLERANCES[precision],
        precision=precision,
        probe=precision == "fp16",
    )
    assert record.passed, record
    assert record.batches == (1, 4, 9)
    assert record.inputs == "first 64 test samples of digits"
    assert ("bfloat16" in record.reference) == (precision == "bf16")


def test_a_wrong_bias_is_found_at_its_output(tmp_path, mlp, content, samples):
    def edit(bias):
        bias[3] += 0.5

    record = check(mlp, edited(content, "head.bias", edit), samples, RANGE, tmp_path, tolerance=1e-4)
    assert not record.passed
    assert record.max_abs_error == pytest.approx(0.5, abs=1e-5)
    assert "output 3:" in record.max_abs_error_at


def test_the_record_equals_a_plain_computation(tmp_path, mlp, content, samples):
    def edit(weight):
        weight[5, 100] += 1.0

    record = check(mlp, edited(content, "head.weight", edit), samples, RANGE, tmp_path, tolerance=1e-4)
    with torch.no_grad():
        x = torch.from_numpy(samples.feeds[INPUT])
        right = mlp(x)
        hidden = torch.relu(mlp.hidden2(torch.relu(mlp.hidden1(x.flatten(1)))))
    errors = [float(hidden[i, 100]) for i in range(9)]
    worst = max(range(9), key=lambda i: errors[i])
    assert record.max_abs_error == pytest.approx(errors[worst], rel=1e-4)
    assert record.max_abs_error_at.startswith(f"sample {worst}, output 5: reference {float(right[worst, 5]):.5g}"[:-1])
    assert record.max_rel_error == pytest.approx(errors[worst] / float(right.abs().max()), rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_never_pass(tmp_path, mlp, content, samples, value):
    def edit(bias):
        bias[2] = value

    record = check(mlp, edited(content, "head.bias", edit), samples, RANGE, tmp_path, tolerance=1e30)
    assert not record.passed
    assert "output 2:" in record.max_abs_error_at


def test_batches_are_capped_by_the_samples(tmp_path, mlp, content, samples):
    record = check(mlp, content, samples, BatchRange(min=2, opt=64, max=4096), tmp_path, tolerance=1e-4)
    assert record.batches == (2, 9)
    assert record.samples == 9


def test_real_samples_are_the_test_set_and_noise_is_named():
    taken = samples_of_data("digits", SPECS, 100, None)
    assert np.array_equal(taken.feeds[INPUT], load_data("digits").test_samples(100))
    assert taken.inputs == "first 100 test samples of digits"
    specs = (InputSpec(name="x", shape=(3, 5)),)
    assert noise(specs, 64).feeds["x"].shape == (64, 3, 5)
    assert "noise" in noise(specs, 64).inputs
    assert np.array_equal(noise(specs, 8).feeds["x"], noise(specs, 8).feeds["x"])


def test_integers_stay_below_their_table_and_masks_have_padding():
    specs = (
        InputSpec(name="ids", shape=(16,), dtype="int64", below=7),
        InputSpec(name="attention_mask", shape=(16,), dtype="int64"),
    )
    feeds = noise(specs, 8).feeds
    assert (feeds["ids"].min(), feeds["ids"].max()) == (0, 6)
    assert feeds["ids"].dtype == np.int64
    assert feeds["attention_mask"][0].tolist() == [1] * 16
    assert feeds["attention_mask"][1].tolist() == [1] * 12 + [0] * 4


def test_large_networks_are_checked_on_fewer_samples():
    assert sample_count(None, RANGE) == 64
    assert sample_count(1.0, BatchRange(min=1, opt=8, max=4096)) == 1024
    assert sample_count(1e9, RANGE) == 20
    assert sample_count(1e12, RANGE) == 8


def test_data_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"\[1, 8, 8\].*\[3, 32, 32\]"):
        samples_of_data("digits", (InputSpec(name="x", shape=(3, 32, 32)),), 8, None)


def test_samples_of_a_file_are_taken_whole_and_every_mistake_is_told(tmp_path):
    specs = (InputSpec(name="ids", shape=(4,), dtype="int64"), InputSpec(name="scale", shape=()))
    np.savez(tmp_path / "good.npz", ids=np.arange(12).reshape(3, 4), scale=np.ones(3))
    taken = samples_of_file(tmp_path / "good.npz", specs)
    assert taken.feeds["ids"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert taken.feeds["scale"].dtype == np.float32
    assert taken.inputs == "all 3 samples of good.npz"
    np.savez(tmp_path / "bad.npz", ids=np.ones((3, 4)), other=np.ones(3))
    with pytest.raises(InputError, match=r"no scale.*no input other.*ids is float64, not int64"):
        samples_of_file(tmp_path / "bad.npz", specs)
    np.savez(tmp_path / "uneven.npz", ids=np.ones((3, 4), dtype=int), scale=np.ones(2))
    with pytest.raises(InputError, match="different numbers"):
        samples_of_file(tmp_path / "uneven.npz", specs)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(InputError, match="no readable"):
        samples_of_file(tmp_path / "broken.npz", specs)


def test_a_file_that_onnx_runtime_refuses_is_one_line(tmp_path, mlp, samples):
    with pytest.raises(InputError, match="ONNX Runtime refuses") as caught:
        check(mlp, b"no onnx", samples, RANGE, tmp_path, tolerance=1e-4)
    assert "\n" not in str(caught.value)
