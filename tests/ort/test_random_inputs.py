"""Random inputs: their types, ranges and shapes; and that nobody else draws any."""

from __future__ import annotations

import ast
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

from nm2trt.ort.random_inputs import NUMPY_TYPES, draw_tensor, draw_values, is_mask, make_mask

ROOT = Path(__file__).parents[2]
DRAWS_ITS_OWN = {
    "nm2trt/ort/random_inputs.py": "the one place",
    "nm2trt/models/encoder.py": "initial weights",
    "nm2trt/torch_sparse/products.py": "operands of a product, weights among them",
    "nm2trt/gpu_benchmark/device.py": "a buffer that warms a GPU up",
}


@pytest.mark.parametrize("dtype", [*NUMPY_TYPES.values(), ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 3), (200, 10)])
def test_values_have_the_type_and_the_shape(dtype, shape) -> None:
    values = draw_values(np.random.default_rng(0), shape, dtype)
    assert isinstance(values, np.ndarray)
    assert (values.shape, values.dtype) == (shape, np.dtype(dtype))
    if values.size < 100:
        return
    if np.dtype(dtype).kind in "iub":
        assert set(values.reshape(-1).tolist()) == {0, 1}
    else:
        wide = values.astype(np.float64)
        assert abs(wide.mean()) < 0.1
        assert 0.9 < wide.std() < 1.1


def test_integers_stay_in_their_range_and_a_seed_repeats_them() -> None:
    one, other = (draw_values(np.random.default_rng(3), (500,), np.int64, low=2, below=5) for _ in range(2))
    assert set(one.tolist()) == {2, 3, 4}
    assert np.array_equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool])
def test_tensors_have_the_type_the_shape_and_the_device(dtype) -> None:
    value = draw_tensor(torch.Generator("cpu").manual_seed(0), (100, 4), dtype, below=2)
    assert (value.dtype, tuple(value.shape), value.device.type) == (dtype, (100, 4), "cpu")
    assert value.unique().tolist() == [0, 1] if not dtype.is_floating_point else 0.8 < float(value.double().std()) < 1.2
    assert draw_tensor(torch.Generator(), (), dtype).shape == ()


def test_masks() -> None:
    assert is_mask("attention_Mask")
    assert not is_mask("ids")
    mask = make_mask((5, 8), np.int32, whole=2)
    assert mask.dtype == np.int32
    assert mask.sum(axis=1).tolist() == [8, 8, 6, 8, 6]
    assert mask[2].tolist() == [1] * 6 + [0] * 2


def test_the_names_of_types_are_those_of_onnxruntime() -> None:
    for name, dtype in NUMPY_TYPES.items():
        number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        ports = [helper.make_tensor_value_info(port, number, [1]) for port in "xy"]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "one", ports[:1], ports[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        assert onnxruntime.InferenceSession(model.SerializeToString()).get_inputs()[0].type == name


def test_no_other_module_draws_noise() -> None:
    words = ("standard_normal", "randn", "randn_like", "normal")
    found = set()
    for path in (path for folder in ("nm2trt", "calibration", "training") for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        # Parsing all of them takes seconds.
        tree = ast.parse(text if any(word in text for word in words) else "")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in words:
                found.add(path.relative_to(ROOT).as_posix())
    assert found == set(DRAWS_ITS_OWN)
