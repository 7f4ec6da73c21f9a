"""Which layers cost most when they alone are quantized, and how many of them to keep in floating point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nm2trt.artifacts.calibration import Agreement, Sensitivity
from nm2trt.calibration.agreement import OutputChecker
from nm2trt.calibration.graph import Graph, Layer
from nm2trt.calibration.insertion import insert
from nm2trt.calibration.placement import Placement


def rank(
    graph: Graph,
    placement: Placement,
    scales: Mapping[str, float],
    checker: OutputChecker,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Sensitivity]:
    """Quantize layer by layer, its input and weight alone, and compare outputs; the worst comes first.

    Args:
        graph: The float graph.
        placement: Its layers are ranked.
        scales: Of the placement's tensors.
        checker: With calibration samples, so that held-out ones stay unseen.
        progress: Told of (layers done, of how many).
    """
    found = []
    for number, layer in enumerate(placement.layers, 1):
        agreement = checker.agreement(insert(graph, placement, scales, only={layer.node}))
        found.append(Sensitivity(layer=layer.name, sqnr_db=agreement.sqnr_db, score_drop_points=agreement.drop_points))
        progress(number, len(placement.layers))
    return sorted(found, key=lambda entry: entry.sqnr_db)


def within_drop(
    worst: Sequence[Layer],
    max_drop: float,
    first: Agreement,
    place: Callable[[Sequence[Layer]], Placement],
    check: Callable[[Placement], Agreement],
) -> tuple[Placement, list[Layer], Agreement]:
    """Keep the fewest of the worst layers in floating point that bring the score's drop within a bound.

    The number grows as 1, 2, 4, ... until the bound holds, then the gap is halved; with noise in the score the least
    number may be missed by a few.

    Args:
        worst: All layers, the most sensitive first.
        max_drop: In percentage points.
        first: With all of them quantized.
        place: Places Q/DQ for the layers that are given.
        check: Measures a placement.

    Returns:
        The placement, the layers kept in floating point, and its agreement. One layer stays INT8 in any case, so the
        bound may be missed.
    """
    tried: dict[int, tuple[Placement, Agreement]] = {}

    def good(count: int) -> bool:
        if count not in tried:
            placement = place(worst[count:])
            tried[count] = placement, check(placement)
        drop = tried[count][1].drop_points
        return drop is not None and drop <= max_drop

    most = len(worst) - 1
    if most < 1:
        return place(worst), [], first
    kept = find_fewest(most, good)
    placement, agreement = tried[kept]
    return placement, list(worst[:kept]), agreement


def find_fewest(most: int, good: Callable[[int], bool]) -> int:
    """Find the least number that is good, between 1 and `most`, taking all larger ones for good, too.

    The number grows as 1, 2, 4, ... until one is good, then the gap is halved.

    Args:
        most: At least 1; returned where none is good.
        good: Asked again for numbers that it was asked for before.
    """
    low, high = 0, 1
    while not good(high) and high < most:
        low, high = high, min(2 * high, most)
    while high - low > 1 and good(high):
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high
