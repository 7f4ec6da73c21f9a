"""Permutation by the scores of a method with data, against every order there is and inputs that torch computes."""

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nm2trt.errors import InputError
from nm2trt.pattern import NMPattern
from nm2trt.pipelines.prune import PruneConfig, prune_file
from nm2trt.pipelines.prune_data import DataConfig

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("scipy")
F = torch.nn.functional
SAMPLES, DAMPING = 60, 0.01


def network(path, *, kernel=3, seed=0):
    """Conv, Relu, Conv with 8 input channels whose sizes differ much and whose weights grow with their index."""
    rng = np.random.default_rng(seed)
    spread = rng.permutation(np.geomspace(0.05, 5, 8))
    weights = {
        "first": rng.standard_normal((8, 4, 1, 1)) * spread[:, None, None, None],
        "bias": rng.standard_normal(8) * spread,
        "second": rng.standard_normal((8, 8, kernel, kernel)) * np.geomspace(1, 3, 8)[:, None, None],
    }
    nodes = [
        helper.make_node("Conv", ["x", "first", "bias"], ["a"], name="n1"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["y"], name="n2", pads=[kernel // 2] * 4),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 5, 5])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def tensors_of(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def samples(folder):
    x = np.random.default_rng(1).standard_normal((SAMPLES, 4, 5, 5)).astype(np.float32)
    # One direction carries most, so that the Hessian is far from diagonal.
    x += 2 * x[:, :1]
    np.savez(folder / "d.npz", x=x)
    order = np.random.default_rng(0).permutation(SAMPLES)
    return x[np.sort(order[: SAMPLES - SAMPLES // 5])]


def slow_scores(weights, x, method, kernel):
    """[O, C, positions]: from torch's own unfolding, columns as torch orders them, one column at a time."""
    c = F.relu(F.conv2d(torch.from_numpy(x), torch.tensor(weights["first"]), torch.tensor(weights["bias"])))
    columns = F.unfold(c, kernel, padding=kernel // 2).transpose(1, 2).reshape(-1, 8 * kernel**2).double().numpy()
    w = weights["second"].astype(np.float64).reshape(8, -1)
    if method == "magnitude":
        return np.abs(w).reshape(8, 8, -1)
    if method == "wanda":
        return np.array([[abs(v) * np.sqrt(sum(columns[:, j] ** 2)) for j, v in enumerate(row)] for row in w]).reshape(
            8, 8, -1
        )
    hessian = columns.T @ columns
    hessian += DAMPING * np.trace(hessian) / len(hessian) * np.eye(len(hessian))
    scores = np.empty_like(w)
    for j in range(len(hessian)):
        # Least rise of the error once weight j is zero and the others have made up for it, by the block inverse.
        others = np.delete(np.arange(len(hessian)), j)
        cross = hessian[others, j]
        rise = hessian[j, j] - cross @ np.linalg.solve(hessian[np.ix_(others, others)], cross)
        scores[:, j] = w[:, j] ** 2 * rise
    return scores.reshape(8, 8, -1)


def slow_kept(scores, order):
    """2:4 along the channels in an order, for every output and position."""
    total = 0.0
    for start in (0, 4):
        total += np.sort(scores[:, order[start : start + 4]], axis=1)[:, 2:].sum()
    return total


def best_kept(scores):
    halves = [(0, *rest) for rest in itertools.combinations(range(1, 8), 3)]
    return max(slow_kept(scores, [*half, *(set(range(8)) - set(half))]) for half in halves)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "obs"])
def test_the_order_is_the_best_of_all_for_the_method(tmp_path, method, kernel, monkeypatch):
    source, x = network(tmp_path / "a.onnx", kernel=kernel), samples(tmp_path)
    dense, permuted = tensors_of(source), {}
    watch_permuted(monkeypatch, permuted)
    document = prune(source, tmp_path / "b.onnx", method)
    scores = slow_scores(dense, x, method, kernel)
    channel_of = {row.tobytes(): index for index, row in enumerate(dense["first"])}
    order = [channel_of[row.tobytes()] for row in permuted["first"]]
    assert sorted(order) == list(range(8))
    np.testing.assert_array_equal(permuted["second"], dense["second"][:, order])
    np.testing.assert_array_equal(permuted["bias"], dense["bias"][order])
    best = best_kept(scores)
    assert slow_kept(scores, range(8)) < (1 - 1e-4) * best
    assert slow_kept(scores, order) == pytest.approx(best, rel=1e-5)
    found = document.permutation
    assert (found.scores, found.outputs) == (method, "agree")
    assert found.kept_before == pytest.approx(slow_kept(scores, range(8)) / scores.sum(), rel=1e-4)
    assert found.kept_after == pytest.approx(best / scores.sum(), rel=1e-4)


def prune(source, output, method):
    return prune_file(
        source,
        output,
        PruneConfig(
            exclude=("first",),
            permute_s=0.2,
            layer_patterns={"second": NMPattern(2, 4)},
            data=DataConfig(data=str(source.with_name("d.npz")), method=method, damping=DAMPING),
        ),
    )


def watch_permuted(monkeypatch, into):
    """Read the weights between permuting and pruning."""
    import nm2trt.pipelines.prune_onnx as pipeline

    pruned = pipeline.prune_onnx_with_data

    def watched(path, *arguments, **options):
        into.update(tensors_of(path))
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        into["outputs"] = session.run(None, {"x": np.ones((2, 4, 5, 5), np.float32)})[0]
        return pruned(path, *arguments, **options)

    monkeypatch.setattr(pipeline, "prune_onnx_with_data", watched)


@pytest.mark.parametrize("method", ["wanda", "obs"])
def test_the_permuted_network_computes_the_same_and_is_pruned_on_its_own_inputs(tmp_path, method, monkeypatch):
    source, x = network(tmp_path / "a.onnx"), samples(tmp_path)
    dense, permuted = tensors_of(source), {}
    watch_permuted(monkeypatch, permuted)
    document = prune(source, tmp_path / "b.onnx", method)
    session = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    before = session.run(None, {"x": np.ones((2, 4, 5, 5), np.float32)})[0]
    np.testing.assert_allclose(permuted["outputs"], before, rtol=1e-4, atol=1e-5 * np.abs(before).max())
    pruned = tensors_of(tmp_path / "b.onnx")["second"]
    columns = F.relu(F.conv2d(torch.from_numpy(x), torch.tensor(permuted["first"]), torch.tensor(permuted["bias"])))
    change, full = (
        F.conv2d(columns, torch.tensor(w), padding=1).double()
        for w in (pruned - permuted["second"], permuted["second"])
    )
    (row,) = (row for row in document.layers if row.output is not None)
    assert row.output.error == pytest.approx(float((change**2).sum() / (full**2).sum()), rel=1e-3)
    assert not np.array_equal(permuted["first"], dense["first"])


def test_weights_that_are_read_transposed_and_moved_twice(tmp_path):
    """Scores follow the weight when its outputs were moved for one reader and its inputs for itself."""
    rng = np.random.default_rng(3)
    weights = {
        "w1": rng.standard_normal((6, 8)),
        "w2": rng.standard_normal((8, 8)) * np.geomspace(1, 4, 8)[:, None],
        "w3": rng.standard_normal((5, 8)) * np.geomspace(1, 4, 8),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "w3"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    source = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), source)
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((SAMPLES, 6)).astype(np.float32))
    document = prune_file(
        source,
        tmp_path / "b.onnx",
        PruneConfig(
            exclude=("w1",),
            permute_s=0.2,
            layer_patterns={"w2": NMPattern(1, 4), "w3": NMPattern(2, 4)},
            data=DataConfig(data=str(tmp_path / "d.npz"), method="wanda"),
        ),
    )
    assert document.verdict == "pass"
    order = np.random.default_rng(0).permutation(SAMPLES)
    x = np.load(tmp_path / "d.npz")["x"][np.sort(order[: SAMPLES - SAMPLES // 5])].astype(np.float64)
    b = np.maximum(x @ weights["w1"].astype(np.float32), 0)
    d = np.maximum(b @ weights["w2"].astype(np.float32), 0)
    best = []
    for rows, keep in (
        (weights["w2"].T * np.linalg.norm(b, axis=0), 1),
        (weights["w3"] * np.linalg.norm(d, axis=0), 2),
    ):
        halves = [(0, *rest) for rest in itertools.combinations(range(1, 8), 3)]
        splits = [(list(half), list(set(range(8)) - set(half))) for half in halves]
        kept = [sum(np.sort(abs(rows[:, part]))[:, 4 - keep :].sum() for part in split) for split in splits]
        best.append(max(kept) / abs(rows).sum())
    assert document.permutation.kept_after == pytest.approx(np.mean(best), rel=1e-4)
    assert document.permutation.kept_before < document.permutation.kept_after


def test_samples_that_cannot_be_used_stop_before_anything_is_written(tmp_path):
    source = network(tmp_path / "a.onnx")
    np.savez(tmp_path / "d.npz", x=np.full((SAMPLES, 4, 5, 5), np.nan, np.float32))
    with pytest.raises(InputError, match="NaN or infinite"):
        prune(source, tmp_path / "b.onnx", "obs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "d.npz"]
