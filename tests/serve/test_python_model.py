"""The Python backend's model, with Triton's module replaced by the three classes that it uses."""

import json
import sys
import types

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

ROWS = 10


class Tensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array


class InferenceResponse:
    def __init__(self, output_tensors, error=None):
        self.outputs = {one.name: one.array for one in output_tensors}
        self.error = error


@pytest.fixture(scope="module")
def code():
    """The module as Triton would import it."""
    fake = types.ModuleType("triton_python_backend_utils")
    fake.Tensor, fake.InferenceResponse, fake.TritonError = Tensor, InferenceResponse, str
    fake.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])
    sys.modules["triton_python_backend_utils"] = fake
    import nm2trt.serve.python_model as module

    yield module
    del sys.modules["triton_python_backend_utils"], sys.modules["nm2trt.serve.python_model"]


def network(*, pooled):
    """ids [N, 3] -> y [N, 3, 2] of a table, and with `pooled` one more output whose 2 is no batch."""
    table = np.arange(ROWS * 2, dtype=np.float32).reshape(ROWS, 2)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 2])]
    if pooled:
        nodes.append(helper.make_node("ReduceMean", ["y"], ["mean"], axes=[0, 1], keepdims=0))
        outputs.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, [2]))
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(table, "table")])
    return table, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module", params=[False, True], ids=["batched", "with an output without a batch"])
def served(request, code, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "1").mkdir()
    table, graph = network(pooled=request.param)
    onnx.save(graph, folder / "1/model.onnx")
    model = code.TritonPythonModel()
    config = json.dumps({"max_batch_size": 8})
    model.initialize({"model_config": config, "model_repository": str(folder), "model_version": "1"})
    yield table, model
    model.finalize()


REQUESTS = st.lists(
    st.lists(st.lists(st.integers(0, ROWS + 1), min_size=3, max_size=3), min_size=1, max_size=3), min_size=1, max_size=9
)


@given(requests=REQUESTS)
def test_a_wrong_request_fails_alone(served, requests):
    table, model = served
    answers = model.execute([{"ids": np.array(ids, np.int64)} for ids in requests])
    assert len(answers) == len(requests)
    for ids, answer in zip(requests, answers, strict=True):
        if max(max(row) for row in ids) >= ROWS:
            assert "indices element out of data bounds" in answer.error
            assert answer.outputs == {}
            continue
        assert answer.error is None
        right = np.array([[table[token] for token in row] for row in ids])
        np.testing.assert_array_equal(answer.outputs["y"], right)
        if "mean" in answer.outputs:
            np.testing.assert_allclose(answer.outputs["mean"], right.mean(axis=(0, 1)), rtol=1e-5)


def test_another_shape_fails_alone(served):
    _, model = served
    good, bad = np.zeros((1, 3), np.int64), np.zeros((1, 4), np.int64)
    answers = model.execute([{"ids": good}, {"ids": bad}, {"ids": good}])
    assert [answer.error is None for answer in answers] == [True, False, True]


def test_requests_that_agree_run_once(served, monkeypatch):
    table, model = served
    runs = []
    session = model._session

    class Counting:
        def run(self, names, feed):
            runs.append(len(feed["ids"]))
            return session.run(names, feed)

    monkeypatch.setattr(model, "_session", Counting())
    answers = model.execute([{"ids": np.full((2, 3), at, np.int64)} for at in range(3)])
    np.testing.assert_array_equal(answers[2].outputs["y"], np.broadcast_to(table[2], (2, 3, 2)))
    assert runs == ([6] if "mean" not in answers[0].outputs else [2, 2, 2])
