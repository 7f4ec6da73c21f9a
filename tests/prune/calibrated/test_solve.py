"""Pruning one layer by its inputs, against brute force over all masks and exact least squares."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.errors import InputError
from nm2trt.pattern import NMPattern
from nm2trt.prune.calibrated import InputGram, prune_columns
from nm2trt.prune.calibrated.solve import score_columns

TWO_OF_FOUR = NMPattern(2, 4)


def layer(seed, outputs, columns, rows, groups=1, correlation=1.0, dtype=np.float64):
    """Weights, inputs whose columns depend on each other, and the inputs' sum."""
    rng = np.random.default_rng(seed)
    mix = np.eye(columns) + correlation * rng.standard_normal((columns, columns)) / np.sqrt(columns)
    x = rng.standard_normal((groups, rows, columns)) @ mix
    gram = InputGram(columns, groups)
    gram.add(x)
    return rng.standard_normal((groups, outputs, columns)).astype(dtype), x, gram


def masks_of(columns, pattern):
    """Every mask that keeps exactly N of each M."""
    group = [np.isin(np.arange(pattern.m), kept) for kept in itertools.combinations(range(pattern.m), pattern.n)]
    return [np.concatenate(parts) for parts in itertools.product(group, repeat=columns // pattern.m)]


def least_squares(w, x, kept, extra=0.0):
    """The best weights that are zero outside `kept`, for one output; `extra` rows add to the Hessian's diagonal."""
    rows = np.concatenate([x, np.sqrt(extra) * np.eye(len(w))]) if extra else x
    best = np.zeros_like(w)
    best[kept] = np.linalg.lstsq(rows[:, kept], rows @ w, rcond=None)[0]
    return best, float(np.square(rows @ (best - w)).sum())


def optimum(w, x, pattern):
    return min(least_squares(w, x, kept)[1] for kept in masks_of(len(w), pattern))


@pytest.mark.parametrize(("pattern", "columns"), [("2:4", 8), ("1:4", 8), ("2:4", 16), ("1:2", 8), ("4:8", 8)])
def test_between_the_best_of_all_masks_and_magnitude(pattern, columns):
    pattern = NMPattern.parse(pattern)
    ratios = []
    for seed in range(20 if columns < 16 else 5):
        w, x, gram = layer(seed, 1, columns, 64)
        found = prune_columns(w, gram, pattern, method="obs", damping=1e-6)
        best = optimum(w[0, 0], x[0], pattern)
        assert best * (1 - 1e-9) <= found.error <= found.magnitude_error * (1 + 1e-12)
        ratios.append(found.error / best)
    # What one pass from left to right is known to leave: neither masks nor values look back.
    assert np.median(ratios) < 4


def test_one_group_whose_mask_is_given_is_the_closed_form():
    # With 1:2 a group has one choice, and nothing left of it is kept that could still change.
    for seed in range(20):
        w, x, gram = layer(seed, 1, 2, 16)
        found = prune_columns(w, gram, NMPattern(1, 2), method="obs", damping=0)
        kept = found.mask[0, 0]
        # Where the last column goes, earlier ones stay as they are.
        wanted = np.where(kept, w[0, 0], 0) if kept[0] else least_squares(w[0, 0], x[0], kept)[0]
        if found.magnitude_rows == 0:
            np.testing.assert_allclose(found.weights[0, 0], wanted, rtol=1e-10, atol=1e-12)


def sequential_obs(w, x, pattern, extra):
    """SparseGPT as it is derived: after each column, exact least squares of all columns to its right."""
    rows = np.concatenate([x, np.sqrt(extra) * np.eye(x.shape[1])])
    hessian = rows.T @ rows
    target, w = w.copy(), w.copy()
    kept = np.ones(len(w), bool)
    for column in range(len(w)):
        if column % pattern.m == 0:
            group = np.arange(column, column + pattern.m)
            losses = []
            for place in group:
                inverse = np.linalg.inv(hessian[place:, place:])
                losses.append(w[place] ** 2 / inverse[0, 0])
            kept[group[np.argsort(losses, kind="stable")[: pattern.m - pattern.n]]] = False
        if not kept[column]:
            w[column] = 0
        left, right = slice(0, column + 1), slice(column + 1, None)
        moved = rows @ target - rows[:, left] @ w[left]
        if column + 1 < len(w):
            w[right] = np.linalg.lstsq(rows[:, right], moved, rcond=None)[0]
    return w, kept


@examples(60)
@given(
    st.integers(0, 2**31),
    st.sampled_from(["2:4", "1:4", "4:8", "1:2", "3:4"]),
    st.integers(1, 3),
    st.sampled_from([0.01, 0.1, 1e-4]),
    st.sampled_from([4, 8, 128]),
)
def test_update_is_least_squares_of_what_is_right_of_every_column(seed, pattern, outputs, damping, block):
    pattern = NMPattern.parse(pattern)
    w, x, gram = layer(seed, outputs, 16, 40)
    found = prune_columns(w, gram, pattern, method="obs", damping=damping, block=block)
    extra = damping * np.diagonal(gram.gram_GCC[0]).mean()
    assert found.damping == damping
    assert not found.damped
    replaced = 0
    for output in range(outputs):
        wanted, kept = sequential_obs(w[0, output], x[0], pattern, extra)
        error = np.square(x[0] @ (wanted - w[0, output])).sum()
        plain = prune_columns(w[:, output : output + 1], gram, pattern, method="magnitude")
        if error > plain.error:
            replaced += 1
            np.testing.assert_array_equal(found.weights[0, output], plain.weights[0, 0])
            continue
        np.testing.assert_array_equal(found.mask[0, output], kept)
        np.testing.assert_allclose(found.weights[0, output], wanted, rtol=1e-7, atol=1e-9)
    assert found.magnitude_rows == replaced


@examples(60)
@given(
    st.integers(0, 2**31),
    st.sampled_from(["2:4", "1:4", "4:8", "2:8"]),
    st.integers(1, 3),
    st.integers(1, 30),
    st.sampled_from([np.float64, np.float32, np.float16, ml_dtypes.bfloat16]),
    st.sampled_from([0.0, 0.01, 1.0]),
    st.floats(-30, 30),
)
def test_errors_are_measured_and_never_above_magnitude(seed, pattern, groups, rows, dtype, damping, exponent):
    pattern = NMPattern.parse(pattern)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, rows, 16)) * rng.choice([0.0, 1e-3, 1.0, 50.0], 16) * 2.0**exponent
    gram = InputGram(16, groups)
    gram.add(x)
    w = rng.standard_normal((groups, 4, 16)).astype(dtype)
    for method in ("obs", "wanda", "magnitude"):
        found = prune_columns(w, gram, pattern, method=method, damping=damping)
        assert found.weights.dtype == dtype
        assert (found.mask.reshape(-1, pattern.m).sum(axis=1) == pattern.n).all()
        assert not found.weights[~found.mask].any()
        wide, dense = found.weights.astype(np.float64), w.astype(np.float64)
        outputs = np.einsum("grc,goc->gro", x, wide - dense)
        scale = np.square(np.einsum("grc,goc->gro", np.abs(x), np.abs(dense))).sum()
        assert abs(found.error - np.square(outputs).sum()) <= 1e-9 * scale
        assert found.error <= found.magnitude_error or method == "wanda"
        if method != "obs":
            np.testing.assert_array_equal(found.weights[found.mask], w[found.mask])
        again = prune_columns(w, gram, pattern, method=method, damping=damping)
        assert again.weights.tobytes() == found.weights.tobytes()


@pytest.mark.parametrize("columns", [8, 100])
def test_scores_are_what_one_weight_alone_costs(columns):
    w, x, gram = layer(2, 3, columns, 300, groups=2)
    found = score_columns(w, gram, method="obs", damping=0.01)
    for group, output, column in [(0, 0, 0), (0, 2, columns - 1), (1, 1, 5)]:
        extra = 0.01 * np.diagonal(gram.gram_GCC[group]).mean()
        kept = np.arange(columns) != column
        cost = least_squares(w[group, output], x[group], kept, extra)[1]
        assert found[group, output, column] == pytest.approx(cost, rel=1e-8)
    np.testing.assert_array_equal(score_columns(w, gram, method="magnitude"), np.abs(w))
    norms = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(score_columns(w, gram, method="wanda"), np.abs(w) * norms[:, None], rtol=1e-12)
    silent = InputGram(8)
    silent.add(np.zeros((1, 9, 8)))
    assert np.isfinite(score_columns(w[:1, :, :8], silent, method="obs")).all()


def test_wanda_is_its_definition():
    w, x, gram = layer(3, 5, 16, 30, groups=2)
    found = prune_columns(w, gram, TWO_OF_FOUR, method="wanda")
    for group, output, start in itertools.product(range(2), range(5), range(0, 16, 4)):
        scores = [abs(w[group, output, c]) * np.sqrt(np.sum(x[group, :, c] ** 2)) for c in range(start, start + 4)]
        kept = sorted(range(4), key=lambda place: -scores[place])[:2]
        assert set(np.flatnonzero(found.mask[group, output, start : start + 4])) == set(kept)
    np.testing.assert_array_equal(found.weights, np.where(found.mask, w, 0))


def test_groups_are_solved_by_their_own_inputs():
    w, x, gram = layer(4, 6, 8, 40, groups=3)
    found = prune_columns(w, gram, TWO_OF_FOUR, method="obs")
    for group in range(3):
        alone = InputGram(8)
        alone.add(x[group : group + 1])
        single = prune_columns(w[group : group + 1], alone, TWO_OF_FOUR, method="obs")
        np.testing.assert_array_equal(found.weights[group], single.weights[0])


def test_result_does_not_depend_on_the_block():
    w, _, gram = layer(5, 8, 192, 400)
    found = [prune_columns(w, gram, TWO_OF_FOUR, method="obs", block=block) for block in (4, 30, 128, 1000)]
    for other in found[1:]:
        np.testing.assert_array_equal(other.mask, found[0].mask)
        np.testing.assert_allclose(other.weights, found[0].weights, rtol=1e-9, atol=1e-12)


def test_few_rows_are_damped_and_said():
    w, _, gram = layer(6, 4, 16, 3)
    found = prune_columns(w, gram, TWO_OF_FOUR, method="obs")
    assert found.damped
    assert found.damping == 0.01
    assert found.error < found.magnitude_error
    without = prune_columns(w, gram, TWO_OF_FOUR, method="obs", damping=0)
    assert without.damped
    assert without.damping > 0


def test_repeated_inputs_are_damped_and_said():
    rng = np.random.default_rng(7)
    x = rng.standard_normal((1, 100, 16))
    x[..., 5] = x[..., 2]
    gram = InputGram(16)
    gram.add(x)
    found = prune_columns(rng.standard_normal((1, 4, 16)), gram, TWO_OF_FOUR, method="obs")
    assert found.damped
    assert np.isfinite(found.weights).all()


def test_dead_inputs_go_first_and_are_counted():
    rng = np.random.default_rng(8)
    x = rng.standard_normal((1, 100, 16))
    x[..., [1, 2, 8, 9, 10]] = 0
    gram = InputGram(16)
    gram.add(x)
    w = rng.standard_normal((1, 6, 16)) + 5
    found = prune_columns(w, gram, TWO_OF_FOUR, method="obs")
    assert found.dead_columns == 5
    assert found.damped
    assert not found.mask[..., [1, 2]].any()
    # Three of these four inputs are dead: one of them stays, and as it was, since nothing is known of it.
    kept = found.mask[0, :, 8:11]
    assert (kept.sum(axis=1) == 1).all()
    np.testing.assert_allclose(found.weights[0, :, 8:11][kept], w[0, :, 8:11][kept], rtol=1e-12)
    silent = InputGram(16)
    silent.add(np.zeros((1, 9, 16)))
    nothing = prune_columns(w, silent, TWO_OF_FOUR, method="obs")
    assert nothing.error == nothing.magnitude_error == nothing.dense_energy == 0
    np.testing.assert_array_equal(nothing.weights, prune_columns(w, silent, TWO_OF_FOUR, method="magnitude").weights)


def test_half_precision_that_overflows_falls_back_to_magnitude():
    rng = np.random.default_rng(9)
    shared = rng.standard_normal((1, 200, 1))
    x = np.repeat(shared, 8, axis=2) * np.array([1, 1, 1, 1, 1, 1, 1, 1e-4]) + 1e-6 * rng.standard_normal((1, 200, 8))
    gram = InputGram(8)
    gram.add(x)
    w = np.full((1, 1, 8), 30000.0, np.float16)
    found = prune_columns(w, gram, NMPattern(1, 8), method="obs", damping=1e-9)
    assert np.isfinite(found.weights.astype(np.float64)).all()
    assert found.error <= found.magnitude_error


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"w": np.full((1, 2, 8), np.nan)}, InputError, "NaN or infinity"),
        ({"gram": InputGram(8)}, InputError, "no sample reached it"),
        ({"pattern": NMPattern(2, 5)}, ValueError, "2:5"),
        ({"w": np.zeros((2, 2, 8))}, ValueError, "1 x 8"),
        ({"damping": -1.0}, ValueError, "damping"),
    ],
)
def test_what_cannot_be_pruned_is_refused(change, error, words):
    w, _, gram = layer(0, 2, 8, 20)
    options = {"w": w, "gram": gram, "pattern": TWO_OF_FOUR, "damping": 0.01} | change
    with pytest.raises(error, match=words):
        prune_columns(options["w"], options["gram"], options["pattern"], method="obs", damping=options["damping"])
