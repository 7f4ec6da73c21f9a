"""Sums of inputs, against plain products; unfolding, against torch."""

import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.errors import InputError
from nm2trt.prune.calibrated import (
    InputGram,
    columns_to_weight,
    iterate_unfolded,
    unfold_convolution,
    weight_to_columns,
)


def test_gram_sums_over_calls(monkeypatch):
    monkeypatch.setattr("nm2trt.prune.calibrated.gram._CHUNK_BYTES", 8 * 3 * 2)
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((2, rows, 3)).astype(np.float32) for rows in (5, 1, 0, 4)]
    gram = InputGram(3, 2)
    for part in parts:
        gram.add(part)
    x = np.concatenate(parts, axis=1).astype(np.float64)
    assert gram.rows == 10
    np.testing.assert_allclose(gram.gram_GCC, np.einsum("grc,grd->gcd", x, x), rtol=1e-12)
    np.testing.assert_allclose(gram.column_norms_GC, np.linalg.norm(x, axis=1), rtol=1e-12)
    change = rng.standard_normal((2, 7, 3))
    outputs = np.einsum("grc,goc->gro", x, change)
    np.testing.assert_allclose(gram.error_of(change), np.square(outputs).sum(), rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_gram_names_a_value_that_is_not_finite_and_adds_nothing(value):
    gram = InputGram(4, 2)
    x = np.ones((2, 3, 4), np.float32)
    x[1, 2, 3] = value
    with pytest.raises(InputError, match=r"conv1: 1 of its inputs .* at group, row, column \[1, 2, 3\]"):
        gram.add(x, "conv1")
    assert gram.rows == 0
    assert not gram.gram_GCC.any()


def test_gram_refuses_values_whose_squares_overflow():
    gram = InputGram(2)
    with pytest.raises(InputError, match="do not fit float64"):
        gram.add(np.full((1, 1, 2), 1e200))
    assert not gram.gram_GCC.any()
    with pytest.raises(ValueError, match="not \\[1, rows, 2\\]"):
        gram.add(np.ones((1, 1, 3)))


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    sizes = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    kernel, strides, dilations = draw(sizes), draw(sizes), draw(sizes)
    pads = draw(st.lists(st.integers(0, 2), min_size=rank, max_size=rank))
    extents = [(k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilations, pads, strict=True)]
    spatial = [max(1, extent) + draw(st.integers(0, 3)) for extent in extents]
    return groups, inputs, outputs, kernel, strides, dilations, pads, spatial


@examples(80)
@given(convolutions(), st.integers(0, 2**31))
def test_product_of_unfolded_inputs_is_the_convolution(case, seed):
    torch = pytest.importorskip("torch")
    groups, inputs, outputs, kernel, strides, dilations, pads, spatial = case
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, groups * inputs, *spatial))
    w = rng.standard_normal((groups * outputs, inputs, *kernel))
    convolve = (None, torch.conv1d, torch.conv2d, torch.conv3d)[len(kernel)]
    wanted = convolve(torch.from_numpy(x), torch.from_numpy(w), None, strides, pads, dilations, groups).numpy()
    options = {"strides": strides, "pads": [*pads, *pads], "dilations": dilations, "groups": groups}
    rows = unfold_convolution(x, kernel, **options)
    columns = weight_to_columns(w, groups)
    found = np.einsum("grk,gok->gor", rows, columns).reshape(groups * outputs, 2, *wanted.shape[2:])
    np.testing.assert_allclose(np.moveaxis(found, 1, 0), wanted, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(columns_to_weight(columns, w.shape), w)


def test_uneven_pads_are_zeros_before_and_behind():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 4))
    padded = torch.nn.functional.pad(torch.from_numpy(x), (0, 3, 1, 2))
    wanted = torch.nn.functional.unfold(padded, (3, 2)).numpy()
    rows = unfold_convolution(x, (3, 2), pads=[1, 0, 2, 3])
    # torch orders (channels, positions), and columns before rows.
    ordered = wanted.reshape(2, 6, -1).transpose(2, 1, 0).reshape(1, -1, 12)
    np.testing.assert_array_equal(rows, ordered)


def test_groups_of_m_lie_along_the_input_channels():
    w = np.zeros((1, 8, 3, 3))
    w[0, 4:8, 1, 2] = 1
    columns = weight_to_columns(w)[0, 0].reshape(-1, 4)
    assert [int(group) for group in np.flatnonzero(columns.any(axis=1))] == [(1 * 3 + 2) * 2 + 1]


def test_pieces_are_the_rows_of_the_whole(monkeypatch):
    monkeypatch.setattr("nm2trt.prune.calibrated.unfold._CHUNK_BYTES", 2000)
    x = np.random.default_rng(0).standard_normal((7, 4, 5, 5)).astype(np.float32)
    pieces = list(iterate_unfolded(x, (3, 3), pads=[1] * 4, strides=(2, 2), groups=2))
    assert len(pieces) > 1
    whole = unfold_convolution(x, (3, 3), pads=[1] * 4, strides=(2, 2), groups=2)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": (3,)},
        {"kernel": (9, 3)},
        {"kernel": (3, 3), "groups": 3},
        {"kernel": (3, 3), "pads": [1, 1]},
        {"kernel": (3, 3), "strides": [1]},
        {"kernel": (3, 3), "dilations": [0, 1]},
    ],
)
def test_what_does_not_fit_is_refused(options):
    with pytest.raises(ValueError, match=r"\d"):
        unfold_convolution(np.zeros((1, 4, 5, 5)), **options)
