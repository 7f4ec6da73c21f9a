"""One rule for NaN, infinities and fill values, wherever two outputs are held against each other."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from nm2trt.calibration.agreement import OutputChecker
from nm2trt.calibration.as_given import check_against_given
from nm2trt.calibration.feeds import Batch
from nm2trt.calibration.graph import Graph
from nm2trt.errors import InputError
from nm2trt.ort import Reason, compare_output
from nm2trt.ort.similarity import comparable_values, cosines_of_rows
from nm2trt.torch_sparse.products import relative_error

NAN, INF, FILL = math.nan, math.inf, -3.4028234663852886e38
CASES = [
    # (reference, other side, whether NaN, infinities and fill values are the same)
    ([1, 2, 3, NAN], [1, 2, 3, NAN], True),
    ([1, 2, 3, NAN], [1, 2, 3, 4], False),
    ([1, 2, 3, 4], [1, 2, 3, NAN], False),
    ([1, 2, 3, INF], [1, 2, 3, INF], True),
    ([1, 2, 3, -INF], [1, 2, 3, INF], False),
    ([1, 2, 3, INF], [1, 2, 3, NAN], False),
    ([1, 2, 3, FILL], [1, 2, 3, FILL], True),
    ([1, 2, 3, FILL], [1, 2, 3, -INF], False),
    ([1, 2, 3, FILL], [1, 2, 3, 0], False),
    ([NAN, NAN, NAN, NAN], [NAN, NAN, NAN, NAN], True),
    ([0, 0, 0, 0], [0, 0, 0, 0], True),
]


@pytest.mark.parametrize(("expected", "found", "same"), CASES)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_one_rule_for_nan_everywhere(expected, found, same, tmp_path: Path) -> None:
    expected, found = np.array(expected, np.float32), np.array(found, np.float32)
    assert (compare_output("y", expected, found, tolerance=1e-3).reason is Reason.AGREE) == same
    assert math.isfinite(relative_error(torch.from_numpy(found), torch.from_numpy(expected))) == same
    agreement = OutputChecker(
        _adds(expected, tmp_path / "a.onnx"),
        lambda: [Batch(feed={"x": np.zeros((1, 4), np.float32)}, count=1)],
        None,
        "",
    ).agreement(_proto(found))
    assert (not agreement.outputs[0].problem) == same
    if same:
        # What is the same on both sides is no noise, and hides none.
        assert (agreement.cosine, agreement.sqnr_db) == (1.0, 200.0)
    graph = Graph(_proto(found), _adds(expected, tmp_path / "a.onnx"))
    if same:
        check_against_given(graph, {"x": np.zeros((1, 4), np.float32)}, resymmetrized=True)
    else:
        with pytest.raises(InputError, match="without its quantization"):
            check_against_given(graph, {"x": np.zeros((1, 4), np.float32)}, resymmetrized=True)


def _proto(row: np.ndarray):
    """y = x + row."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4], row)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _adds(row: np.ndarray, path: Path) -> Path:
    path.write_bytes(_proto(row).SerializeToString())
    return path


@pytest.mark.filterwarnings("error")
def test_figures_leave_out_what_is_no_ordinary_number() -> None:
    left, right = comparable_values(
        np.array([1, NAN, 3, FILL, 5], np.float32), np.array([2, 2, INF, FILL, 6], np.float32)
    )
    assert left.tolist() == [1, 0, 0, 0, 5]
    assert right.tolist() == [2, 0, 0, 0, 6]
    assert left.dtype == right.dtype == np.float64


def test_cosines_of_rows() -> None:
    a = np.array([[3.0, 4], [0, 0], [0, 0], [1, 0], [1, 0]])
    b = np.array([[4.0, 3], [0, 0], [1, 0], [-2, 0], [0, 5]])
    assert cosines_of_rows(a, b) == pytest.approx([24 / 25, 1, 0, -1, 0])


def test_the_relative_error_of_tensors() -> None:
    assert relative_error(torch.tensor([1.0, -4.5]), torch.tensor([1.0, -5.0])) == pytest.approx(0.1)
    assert relative_error(torch.tensor([0.25]), torch.tensor([0.0])) == 0.25
    assert relative_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0
    assert relative_error(torch.tensor([7], dtype=torch.int32), torch.tensor([8], dtype=torch.int32)) == 0.125
