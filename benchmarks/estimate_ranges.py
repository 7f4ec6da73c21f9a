"""Ranges of everything that the estimate prints, from errors held back, and how often they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from estimate_errors import CLAIMED, Error, groups_of, tails, values, weighted
from estimate_points import Point

from nm2trt.estimate.constants import KernelConstants, Spread
from nm2trt.estimate.ranges import names_for, product_ranges, spread_for, total_ranges

RICHEST = "A100"
"""Held back whole it leaves too little to fit on, so it has no say in the choice; its errors are shown."""
FEWEST_GROUPS = 3
"""From two engines it cannot be said on which side the next one lies: their range is made symmetric."""
STEPS = 16
Key = Callable[[Point], str]
Bounds = tuple[float, float]


def by_group(point: Point) -> str:
    return point.group


def by_family(point: Point) -> str:
    return point.family


def by_release(point: Point) -> str:
    return f"{point.family} {point.release}"


def is_tensorrt(point: Point) -> bool:
    return "TensorRT" in point.release


def symmetric(bounds: Bounds) -> Bounds:
    """The smallest range around zero that holds another."""
    far = max(-bounds[0], bounds[1])
    return -far, far


def shortest(errors: Sequence[Error], what: str, key: Key, share: float = CLAIMED) -> Bounds:
    """The shortest range of logs that holds `share` of the errors: one long tail does not widen it on both sides.

    Every group counts the same, however many errors it has; with fewer than FEWEST_GROUPS it is symmetric.
    """
    logs, weights = weighted(errors, what, key)
    ends = np.concatenate([[0.0], np.cumsum(weights)])
    last = np.searchsorted(ends, ends[:-1] + share * ends[-1] - 1e-9) - 1
    first = np.flatnonzero(last < len(logs))
    best = first[np.argmin(logs[last[first]] - logs[first])]
    found = min(0.0, float(logs[best])), max(0.0, float(logs[last[best]]))
    known = {key(error.point) for error in errors if getattr(error, what) is not None}
    return found if len(known) >= FEWEST_GROUPS else symmetric(found)


def conformal(errors: Sequence[Error], what: str, key: Key, claimed: float = CLAIMED) -> Bounds:
    """The shortest range that held for groups left out of it.

    A range made for 80 % of some groups holds less of another one. So it is made for the smallest share with which
    ranges of all groups but one hold `claimed` of the points left out; the largest share, where none does.
    """
    known = [error for error in errors if getattr(error, what) is not None]
    shares = claimed + (1 - claimed) * np.linspace(0.0, 0.95, STEPS)
    groups = groups_of(known, key)
    if len(groups) > 1:
        for share in shares:
            inside = []
            for group, own in groups.items():
                low, high = shortest([e for e in known if key(e.point) != group], what, key, share)
                inside += [low <= value <= high for value in values(own, what)]
            if np.mean(inside) >= claimed:
                return shortest(known, what, key, share)
    return shortest(known, what, key, shares[0] if len(groups) == 1 else shares[-1])


def worst_group(errors: Sequence[Error], what: str, share: float) -> Bounds:
    """The range that holds `share` of every engine: pooled, engines that are easy hide the others."""
    groups = [group for group in groups_of(errors, by_group).values() if values(group, what)]
    lows, highs = zip(*(tails(group, what, by_group, share) for group in groups), strict=True)
    found = min(lows), max(highs)
    return found if len(groups) >= FEWEST_GROUPS else symmetric(found)


def ranges(
    errors: dict[str, list[Error]], skip: Callable[[Error], bool] | None = None, share: float = CLAIMED
) -> dict[str, Spread]:
    """Ranges of layers, products and networks, by the names that nm2trt.estimate.ranges looks up.

    Times of layers: the worst engine, per precision where three engines ran in it. Everything else: `conformal`, by
    engine, and by GPU and release for networks, since releases of TensorRT differ by more than GPUs.

    Args:
        errors: By what was held back.
        skip: Errors that have no part in them.
        share: Of the errors that shall lie inside.
    """
    near = [error for error in errors["engine"] if skip is None or not skip(error)]
    unseen = [error for error in errors["gpu"] if error.point.family != RICHEST and (skip is None or not skip(error))]
    # Of the richest GPU, held back whole, too little is left to fit on: its engines stand in.
    far = [*unseen, *(error for error in near if error.point.family == RICHEST)]
    found: dict[str, Bounds] = {}
    for suffix, some in (("", near), (".far", far)):
        layers = [error for error in some if error.point.kind == "layer"]
        products = [error for error in some if error.point.kind == "product"]
        for what in ("dense", "sparse"):
            if values(layers, what):
                found[f"{what}{suffix}"] = worst_group(layers, what, share)
            for precision in ("tf32", "fp16", "int8"):
                own = [error for error in layers if error.point.precision == precision]
                engines = {error.point.group for error in own if getattr(error, what) is not None}
                if len(engines) >= FEWEST_GROUPS and not suffix:
                    found[f"{what}.{precision}"] = worst_group(own, what, share)
        # Without an unseen GPU among them the package squares the range of the others.
        if values([error for error in layers if not suffix or error.point.family != RICHEST], "ratio"):
            found[f"gain{suffix}"] = conformal(layers, "ratio", by_group, share)
        for name, what in (("dense", "dense"), ("sparse", "sparse"), ("gain", "ratio")):
            if values(products, what):
                found[f"{name}.gemm{suffix}"] = conformal(products, what, by_group, share)
    networks = [error for error in near if error.point.kind == "network" and is_tensorrt(error.point)]
    if networks:
        found["total"] = tails([*networks, *filter_networks(unseen)], "dense", by_release, share)
        found["ratio"] = conformal(networks, "ratio", by_release, share)
    return {name: Spread(low=float(np.exp(low)), high=float(np.exp(high))) for name, (low, high) in found.items()}


def filter_networks(errors: Iterable[Error]) -> list[Error]:
    """Whole networks that TensorRT ran."""
    return [error for error in errors if error.point.kind == "network" and is_tensorrt(error.point)]


def inside(error: Error, constants: KernelConstants, *, far: bool) -> tuple[bool | None, bool | None, float]:
    """Whether dense time and ratio lie in the range that would be printed, and the ratio's width."""
    point = error.point
    if point.kind == "network":
        dense, ratio = total_ranges(constants, error.predicted_ratio, far=far)
    else:
        dense, ratio = product_ranges(
            constants, "conv" if point.kind == "layer" else "gemm", point.precision, error.predicted_ratio, far=far
        )
    dense_in = None if error.dense is None else dense.low <= np.exp(error.dense) <= dense.high
    measured = None if error.ratio is None else np.exp(error.ratio) * error.predicted_ratio
    ratio_in = None if measured is None else ratio.low <= measured <= ratio.high
    return dense_in, ratio_in, ratio.high - ratio.low


def report_coverage(errors: dict[str, list[Error]], base: KernelConstants) -> None:
    """How often the printed ranges hold for groups whose errors had no part in the range."""
    print(f"\ncoverage where {100 * CLAIMED:.0f} % is claimed; the group itself left out of fit and range")
    print(f"{'':34}{'points':>8}{'dense':>9}{'ratio':>9}{'width':>8}")
    cases: list[tuple[str, str, Key]] = [
        ("engine", "engine", by_group),
        ("GPU", "gpu", by_family),
        ("release", "engine", by_release),
    ]
    for title, label, key in cases:
        total: list[tuple[bool | None, bool | None, float]] = []
        listed: list[Error] = []
        for group, some in groups_of(errors[label], key).items():
            if title == "release" and not filter_networks(some):
                continue
            spread = ranges(errors, lambda error, key=key, group=group: key(error.point) == group)
            constants = base.model_copy(update={"spread": spread})
            found = [inside(error, constants, far=title == "GPU") for error in some]
            total += found
            listed += some
            print(f"{title + ': ' + group[:25]:34}{coverage(found)}")
        print(f"{title + ', all':34}{coverage(total)}")
        if title == "engine":
            outside = [
                error for error, (_, ratio, _) in zip(listed, total, strict=True) if ratio is not None and not ratio
            ]
            report_outside([error for error in outside if error.point.kind == "network"])


def report_outside(errors: Sequence[Error]) -> None:
    """What the networks have in common whose ratio lies outside: side, release, batch."""
    sides = Counter("below" if (error.ratio or 0) < 0 else "above" for error in errors)
    releases = Counter(error.point.release for error in errors)
    batches = Counter(error.point.name.rpartition(" ")[2] for error in errors)
    cells = ("; ".join(f"{name} {count}" for name, count in some.most_common()) for some in (sides, releases, batches))
    print(f"networks whose ratio lies outside with the engine left out: {len(errors)}", *cells, sep="\n  ")


def report_halves(errors: Sequence[Error], constants: KernelConstants) -> None:
    """One engine's layers, every other one held back from the constants, in the ranges that the package prints."""
    print(f"\n{errors[0].point.engine}, every other layer held back from the constants")
    for what in ("dense", "sparse", "ratio"):
        known = np.array(values(errors, what))
        spread = spread_for(
            constants,
            "gain" if what == "ratio" else what,
            *names_for("conv", errors[0].point.precision),
            far=False,
        )
        held = (np.exp(known) >= spread.low) & (np.exp(known) <= spread.high)
        median = 100 * np.median(np.abs(known))
        print(f"{what:8}{len(known):4} layers{median:7.1f}% median{100 * held.mean():6.0f}% inside")


def coverage(found: Sequence[tuple[bool | None, bool | None, float]]) -> str:
    """Cells of one line: points, shares inside, median width of the ratio's range."""
    dense, ratio = ([pair[i] for pair in found if pair[i] is not None] for i in (0, 1))
    widths = [width for _, known, width in found if known is not None]
    cells = "".join(f"{100 * np.mean(some):8.0f}%" if some else " " * 9 for some in (dense, ratio))
    return f"{len(found):8}{cells}" + (f"{np.median(widths):8.2f}" if widths else "")


def reliability(errors: dict[str, list[Error]], base: KernelConstants) -> dict[str, list[tuple[float, float]]]:
    """Share that lies inside against the share that ranges are made for, groups left out of their own ranges.

    Networks' ranges are never narrower than their least width, so they start high.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for share in (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95):
        counts: dict[str, list[bool]] = {}
        for group, some in groups_of(errors["engine"], by_group).items():
            spread = ranges(errors, lambda error, group=group: error.point.group == group, share)
            constants = base.model_copy(update={"spread": spread})
            for error in some:
                dense, ratio, _ = inside(error, constants, far=False)
                for what, value in (("dense time", dense), ("dense/sparse", ratio)):
                    if value is not None:
                        counts.setdefault(f"{error.point.kind}s, {what}", []).append(value)
        for name, known in counts.items():
            curves.setdefault(name, []).append((share, float(np.mean(known))))
    return curves
