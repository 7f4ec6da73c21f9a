"""Verdicts, against weights made by hand."""

import gc
import json
import math
import weakref

import numpy as np
import pytest

from nm2trt.layers import LayerWeight
from nm2trt.pattern import NMPattern, mask
from nm2trt.reasons import Reason
from nm2trt.verify import VerifyDocument, check_layers, json_of

TWO_FOUR, ONE_FOUR, FOUR_EIGHT = (NMPattern.parse(text) for text in ("2:4", "1:4", "4:8"))


def dense(shape, seed=0):
    return np.random.default_rng(seed).uniform(1, 2, shape).astype(np.float32)


def sparse(shape, pattern=TWO_FOUR, axis=1, seed=0):
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return weight * mask(weight, pattern, axis)


def flat_sparse(shape, pattern=TWO_FOUR):
    return sparse((shape[0], math.prod(shape[1:])), pattern).reshape(shape)


def layer(array, name="w.weight", /, **changes):
    usual = {
        "name": name,
        "op": "conv" if array.ndim > 2 else "linear",
        "shape": array.shape,
        "dtype": array.dtype.name,
        "reduction_axis": 1,
        "weight": lambda: array,
    }
    return LayerWeight(**{**usual, **changes})


def verdict_of(one, pattern=TWO_FOUR, **rules):
    return check_layers([one], pattern, **rules).layers[0]


def broken(shape=(8, 8, 3, 3), index=(5, 2, 1, 2)):
    weight = sparse(shape)
    start = index[1] - index[1] % 4
    weight[(index[0], slice(start, start + 4), *index[2:])] = (1, -2, float("nan"), -0.0)
    return weight


@pytest.mark.parametrize(
    ("weight", "pattern", "verdict"),
    [
        (sparse((8, 8)), TWO_FOUR, "conforms"),
        (sparse((8, 8, 3, 3)), TWO_FOUR, "conforms"),
        (sparse((8, 8, 3, 3), ONE_FOUR), TWO_FOUR, "conforms"),
        (sparse((8, 16), FOUR_EIGHT), FOUR_EIGHT, "conforms"),
        (np.zeros((8, 8), np.float32), TWO_FOUR, "conforms"),
        (dense((8, 8)), TWO_FOUR, "dense"),
        (dense((8, 8, 3, 3)), TWO_FOUR, "dense"),
        (broken(), TWO_FOUR, "violates"),
        (sparse((8, 16), FOUR_EIGHT), TWO_FOUR, "violates"),
        (sparse((8, 8), axis=0), TWO_FOUR, "wrong-axis"),
        (flat_sparse((8, 8, 3, 3)), TWO_FOUR, "wrong-axis"),
        (sparse((16, 16, 1, 4), axis=3), TWO_FOUR, "wrong-axis"),
        (dense((8, 6)), TWO_FOUR, "indivisible"),
        (sparse((8, 12)), NMPattern(4, 8), "indivisible"),
    ],
)
def test_verdicts(weight, pattern, verdict):
    assert verdict_of(layer(weight), pattern).verdict == verdict


def test_mostly_legal_groups_are_a_violation_at_any_density():
    """1:16 with a few full groups is nearly dense nowhere; 15:16 with one full group is nearly dense everywhere."""
    weight = sparse((8, 32), NMPattern(15, 16))
    weight[0, :16] = 1
    found = verdict_of(layer(weight), NMPattern(15, 16))
    assert found.density > 0.9
    assert (found.verdict, found.violations) == ("violates", 1)


def test_the_first_broken_group_is_named_with_its_values():
    found = verdict_of(layer(broken()))
    assert found.violations == 1
    assert found.first_violation.index == (5, 0, 1, 2)
    assert found.first_violation.values[:2] == (1.0, -2.0)
    assert math.isnan(found.first_violation.values[2])
    assert found.first_violation.values[3] == 0
    assert found.nonfinite == 1
    assert "NaN" in found.note


def test_wrong_axis_names_the_axis_it_holds_along():
    assert "flattened kernel" in verdict_of(layer(flat_sparse((8, 8, 3, 3)))).note
    assert "axis 0 (output channels)" in verdict_of(layer(sparse((8, 8, 3, 3), axis=0))).note
    assert "axis 0 (output features)" in verdict_of(layer(sparse((8, 8), axis=0))).note


def test_layers_that_cannot_be_pruned_are_not_read():
    def never():
        raise AssertionError("was read")

    one = layer(np.zeros((4, 1, 3, 3)), reduction_axis=None, reason=Reason("depthwise-groups"), weight=never)
    document = check_layers([one, layer(dense((4, 6)), weight=never)])
    assert [found.verdict for found in document.layers] == ["not-prunable", "indivisible"]
    assert document.verdict == "fail"
    assert document.problems == ["no layer conforms"]
    empty = layer(np.zeros((0, 4)), weight=never)
    assert verdict_of(empty).verdict == "not-prunable"


def test_zero_point():
    found = check_layers([layer(sparse((8, 8)), zero_point=True)])
    assert found.layers[0].verdict == "zero-point"
    assert found.layers[0].tensorrt.startswith("zero point is not 0")
    assert found.verdict == "fail"


@pytest.mark.parametrize(
    ("changes", "weight", "words"),
    [
        ({"graph_dtype": "float16"}, sparse((8, 8)), "eligible"),
        ({"graph_dtype": "int8"}, sparse((8, 8)), "eligible"),
        ({}, sparse((8, 8)), "eligible"),
        ({"graph_dtype": "float32"}, sparse((8, 8)), "float32: TensorRT's sparse kernels need FP16 or INT8"),
        ({"graph_dtype": "bfloat16"}, sparse((8, 8)), "bfloat16: unverified"),
        ({"graph_dtype": "float8_e4m3fn"}, sparse((8, 8)), "float8_e4m3fn: TensorRT's"),
        ({"groups": 2}, sparse((8, 8, 3, 3)), "2 groups"),
        ({"op": "conv-transpose", "reduction_axis": 0}, sparse((8, 8, 3, 3), axis=0), "ConvTranspose"),
        ({"graph_dtype": "float16"}, dense((8, 8)), "not 2:4-legal: 16 of 16"),
        ({"graph_dtype": "float16"}, dense((8, 6)), "6 input channels"),
        ({"op": "matmul", "reduction_axis": 1}, sparse((8, 8)), "weight on the left"),
        ({"op": "matmul", "reduction_axis": 1}, sparse((3, 8, 8)), "batched MatMul"),
        ({"op": "matmul", "reduction_axis": 1}, sparse((1, 8, 8)), "eligible"),
    ],
)
def test_the_tensorrt_column(changes, weight, words):
    assert verdict_of(layer(weight, **changes)).tensorrt.startswith(words)


def test_tensorrt_counts_the_weights_whatever_pattern_is_asked_for():
    # 4:8 is not legal in general; these weights happen to be.
    weight = sparse((8, 16))
    assert verdict_of(layer(weight), FOUR_EIGHT).tensorrt == "eligible"
    assert verdict_of(layer(sparse((8, 16), FOUR_EIGHT)), FOUR_EIGHT).tensorrt.startswith("not 2:4-legal")
    # 2:4 weights break 1:4, and TensorRT does not mind.
    assert verdict_of(layer(weight), ONE_FOUR).verdict == "violates"
    assert verdict_of(layer(weight), ONE_FOUR).tensorrt == "eligible"
    # 1:3 groups are not aligned with groups of 4.
    thirds = sparse((8, 12), NMPattern(1, 3))
    assert verdict_of(layer(thirds), NMPattern(1, 3)).tensorrt == "eligible"
    assert verdict_of(layer(sparse((8, 6), NMPattern(1, 3))), NMPattern(1, 3)).tensorrt.startswith("6 input channels")


def test_a_transposed_convolution_may_not_group_across_its_groups():
    weight = sparse((12, 4, 3, 3), axis=0)
    assert verdict_of(layer(weight, op="conv-transpose", reduction_axis=0, groups=3)).verdict == "conforms"
    assert verdict_of(layer(weight, op="conv-transpose", reduction_axis=0, groups=2)).verdict == "indivisible"


GOOD, LOOSE = layer(sparse((8, 8)), "good.weight", node="/good/MatMul"), layer(dense((8, 8)), "loose.weight")
NORM = layer(np.ones(8), "norm.weight", op="other", reduction_axis=None, reason=Reason("vector"))


@pytest.mark.parametrize(
    ("rules", "verdict", "problem"),
    [
        ({}, "pass", ""),
        ({"strict": True}, "fail", "--strict: 1 layer that could conform did not, first loose.weight"),
        ({"strict": True, "exclude": ["loose*"]}, "pass", ""),
        ({"strict": True, "exclude": ["loose"]}, "pass", ""),
        ({"require": ["good*"]}, "pass", ""),
        ({"require": ["/good/*"]}, "pass", ""),
        ({"require": ["loose"]}, "fail", "required layer loose.weight is dense"),
        ({"require": ["renamed.*"]}, "fail", "--require renamed.* matches no prunable layer"),
        ({"require": ["norm*"]}, "fail", "--require norm* matches no prunable layer"),
        ({"exclude": ["good"]}, "fail", "no layer conforms"),
        ({"exclude": ["*"]}, "fail", "there is no layer to judge"),
        ({"layer_patterns": {"*": ONE_FOUR}}, "fail", "1 layer meant to be sparse"),
        ({"layer_patterns": {"*": ONE_FOUR, "good*": TWO_FOUR}}, "pass", ""),
    ],
)
def test_rules(rules, verdict, problem):
    document = check_layers([GOOD, LOOSE, NORM], **rules)
    assert document.verdict == verdict
    assert bool(document.problems) == bool(problem)
    if problem:
        assert document.problems[0].startswith(problem)


def test_what_the_file_claims_must_hold_and_the_rest_is_dense_on_purpose():
    half = layer(sparse((8, 8), axis=0), "half.weight")
    layers = [GOOD, LOOSE, half, NORM]
    document = check_layers(layers, claims={"good.weight": TWO_FOUR}, method="sr-ste")
    assert document.verdict == "pass"
    assert document.method == "sr-ste"
    assert {found.name: found.verdict for found in document.layers} == {
        "good.weight": "conforms",
        "loose.weight": "dense",
        "half.weight": "dense",
        "norm.weight": "not-prunable",
    }
    assert document.layers[1].note == "left dense on purpose"
    lied = check_layers(layers, claims={"good.weight": TWO_FOUR, "loose.weight": TWO_FOUR})
    assert (lied.verdict, lied.layers[1].verdict) == ("fail", "violates")
    gone = check_layers(layers, claims={"good.weight": TWO_FOUR, "gone.weight": TWO_FOUR})
    assert gone.problems == ["gone.weight is sparse by the file's metadata, but is not in the file"]
    stem = check_layers([GOOD, layer(dense((8, 3)), "stem")], claims={"good.weight": TWO_FOUR, "stem": TWO_FOUR})
    assert stem.problems == ["stem is sparse by the file's metadata, but is indivisible"]


def test_totals_and_density():
    weight = sparse((8, 8))
    totals = check_layers([GOOD, LOOSE, NORM]).totals
    assert (totals.layers, totals.prunable, totals.eligible) == (3, 2, 1)
    assert totals.verdicts == {"conforms": 1, "dense": 1, "not-prunable": 1}
    assert (totals.weights, totals.zeros, totals.weights_in_conforming) == (128, int((weight == 0).sum()), 64)
    assert (totals.groups, totals.violations) == (32, 16)
    assert check_layers([GOOD]).layers[0].density == pytest.approx((weight != 0).mean())


def test_json_has_the_documented_keys_and_reads_back():
    document = check_layers([layer(broken()), GOOD], source="model.onnx", kind="onnx")
    raw = json.loads(json_of([document]))
    assert raw["schema"] == "nm2trt.verify/1"
    assert {"source", "pattern", "verdict", "layers", "totals", "nm2trt_version"} <= set(raw)
    documented = "name op shape dtype axis pattern verdict groups violations first_violation density tensorrt"
    assert set(documented.split()) <= set(raw["layers"][0])
    assert VerifyDocument.model_validate(raw).to_json() == json.dumps(raw, indent=2) + "\n"


def test_one_tensor_is_held_at_a_time():
    made = []

    def make():
        gc.collect()
        assert all(reference() is None for reference in made), "the tensor before is still held"
        weight = sparse((8, 8))
        made.append(weakref.ref(weight))
        return weight

    check_layers([layer(sparse((8, 8)), str(i), weight=make) for i in range(3)])
    assert len(made) == 3


@pytest.mark.parametrize(
    ("weight", "pattern", "verdict"),
    [
        (sparse((8, 64), NMPattern(2, 4)), "2:4", "conforms"),
        (sparse((8, 64), NMPattern(1, 4)), "1:4", "conforms"),
        (sparse((8, 64), NMPattern(2, 8)), "2:8", "conforms"),
        (sparse((8, 64), NMPattern(4, 8)), "4:8", "conforms"),
        (sparse((8, 64), NMPattern(1, 16)), "1:16", "conforms"),
        (sparse((8, 64, 3, 3), NMPattern(3, 4)), "3:4", "conforms"),
        (sparse((8, 6), NMPattern(1, 2)), "1:2", "conforms"),
        (np.zeros((8, 64), np.float32), "1:32", "conforms"),
        (sparse((8, 64), NMPattern(7, 8)), "2:4", "dense"),
        (dense((8, 64)), "2:4", "dense"),
        (dense((8, 7)), "2:4", "indivisible"),
        (sparse((64, 64), axis=0), "2:4", "wrong-axis"),
    ],
)
def test_auto_names_the_strongest_pattern_that_holds(weight, pattern, verdict):
    found = verdict_of(layer(weight), "auto")
    assert (found.pattern, found.verdict) == (pattern, verdict)
