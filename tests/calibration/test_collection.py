"""Samples are streamed: one batch is alive at a time, and what is kept does not grow."""

import weakref

import int8_networks as nets
import numpy as np
import pytest

from nm2trt.calibration.collection import collect, ranges_of, scales_of
from nm2trt.calibration.graph import open_float_graph
from nm2trt.calibration.placement import PLACEMENTS, place
from nm2trt.calibration.ranges import Method
from nm2trt.errors import InputError


@pytest.fixture
def graph(tmp_path):
    return open_float_graph(nets.saved(nets.concatenated(), tmp_path / "m.onnx"))


def batches(count, alive):
    rng = np.random.default_rng(0)
    for _ in range(count):
        x = rng.standard_normal((4, 4, 2, 2)).astype(np.float32)
        alive.append(weakref.ref(x))
        assert sum(ref() is not None for ref in alive) <= 2
        yield {"x": x}, 4


def test_no_batch_outlives_the_next_one(graph):
    found = place(graph, PLACEMENTS["default"], tuple(graph.layers), set())
    alive = []
    stats = collect(graph, found.edges, batches(40, alive))
    assert len(alive) == 40
    kept = sum(one.counts.nbytes for one in stats.values())
    few = collect(graph, found.edges, batches(2, []))
    assert kept == sum(one.counts.nbytes for one in few.values())
    assert stats["x"].values == 40 * 4 * 16


def test_the_batch_size_changes_nothing(graph):
    x = np.random.default_rng(1).standard_normal((24, 4, 2, 2)).astype(np.float32)
    found = place(graph, PLACEMENTS["default"], tuple(graph.layers), set())
    results = []
    for size in (1, 5, 24):
        stats = collect(graph, found.edges, (({"x": x[at : at + size]}, size) for at in range(0, 24, size)))
        results.append(ranges_of(stats, Method.parse("minmax")))
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)


def test_one_scale_is_the_largest_of_those_that_share_it(graph):
    found = place(graph, PLACEMENTS["default"], tuple(graph.layers), set())
    scales = scales_of({name: float(i + 1) for i, name in enumerate(found.edges)}, found)
    assert set(scales.values()) == {len(found.edges) / 127}


def test_no_batch_at_all_is_an_error(graph):
    with pytest.raises(InputError, match="no sample"):
        collect(graph, ["x"], [])
