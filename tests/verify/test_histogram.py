"""Groups counted for the picture against an obvious loop, and the picture itself."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nm2trt.layers import LayerWeight
from nm2trt.pattern import NMPattern
from nm2trt.report.sparsity import SparsityRow, sparsity_figure, write_sparsity_png
from nm2trt.verify import group_histograms, verify_path
from nm2trt.verify import histogram as room


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data(), st.sampled_from((2, 4, 8)), st.sampled_from((1, 64))
)
def test_histogram_equals_a_loop(shape, data, m, piece):
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape[axis] = m * data.draw(st.integers(1, 3))
    weight = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)
    expected = [0] * (m + 1)
    for index in itertools.product(*map(range, shape)):
        if index[axis] % m == 0:
            members = [weight[(*index[:axis], index[axis] + i, *index[axis + 1 :])] for i in range(m)]
            expected[sum(member != 0 for member in members)] += 1
    layer = LayerWeight(
        name="w", op="linear", shape=tuple(shape), dtype="float32", reduction_axis=axis, weight=lambda: weight
    )
    usual, room._PIECE = room._PIECE, piece
    try:
        assert room.histogram(layer, NMPattern(1, m), axis).tolist() == expected
    finally:
        room._PIECE = usual


def test_judged_layers_of_a_file(tmp_path):
    weight = np.zeros((4, 8), np.float32)
    weight[0, :3] = 1
    save_file({"a.weight": weight, "a.bias": np.ones(4, np.float32)}, tmp_path / "m.safetensors")
    ((layer, groups),) = group_histograms(tmp_path / "m.safetensors", verify_path(tmp_path / "m.safetensors"))
    assert (layer.name, groups.tolist()) == ("a.weight", [7, 0, 0, 1, 0])


def row(name, groups, verdict="conforms", n=2):
    return SparsityRow(name=name, n=n, groups=groups, verdict=verdict, bad=verdict == "violates")


def test_bars_have_the_shares_and_every_layer_its_name(tmp_path):
    rows = [row(f"block.{i}.weight", [10, 20, 70, 0, 0]) for i in range(120)]
    rows.append(row("bad.weight", [0, 0, 5, 3, 2], "violates"))
    figure = sparsity_figure(rows, "title")
    (axes,) = figure.axes
    widths = np.array([[bar.get_extents().width for bar in layer.get_paths()] for layer in axes.collections])
    assert widths.shape == (len(rows), 5)
    np.testing.assert_allclose(widths[0], [0.1, 0.2, 0.7, 0, 0])
    np.testing.assert_allclose(widths[-1], [0, 0, 0.5, 0.3, 0.2])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [layer.name for layer in rows]
    # No two names may touch.
    assert figure.get_figheight() / len(rows) > 6.5 / 72
    write_sparsity_png(rows, tmp_path / "f.png", "title")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_few_and_many_layers(count):
    figure = sparsity_figure([row(f"l{i}", [0] * 8 + [1] + [0] * 8, n=8) for i in range(count)], "title")
    assert 1 < figure.get_figheight() <= 40
