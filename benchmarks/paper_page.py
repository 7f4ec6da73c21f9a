"""docs/results.md: the paper's comparison as tables, pictures, and sentences computed from the figures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from paper_grid import DECAYS, DENSE, PATTERNS, Cell, Estimate, Grid, estimate, paired

from nm2trt.artifacts.files import write_atomic
from nm2trt.report.compared_runs import draw_flips, read_run_curves
from nm2trt.report.figure import ACCENT, MUTED, SPARSE, house_style, new_figure, note, png_bytes

# ImageNet top-1 of ResNet-50. SR-STE's 2:4, 1:4, 2:8 and 4:8 stand in the authors' model zoo
# (github.com/aojunzz/NM-sparsity); what carries an asterisk is quoted from memory of the paper's tables.
PAPER = {
    "2:4": {"ste": "76.4*", "sr-ste": "77.0", "asp": "76.8*"},
    "1:4": {"sr-ste": "75.9"},
    "2:8": {"sr-ste": "76.4"},
    "4:8": {"sr-ste": "77.4"},
    "1:16": {"sr-ste": "71.5*"},
}
PAPER_DENSE = "77.3*"
WITHIN_POINTS = 0.1
_NOT_RUN = "not run"


def markdown(grid: Grid, command: str, pictures: tuple[str, str] | None) -> Iterator[str]:
    """Yield the page's paragraphs and tables."""
    runs = [run for cell in (DENSE, *_both()) for run in grid.runs(cell).values()]
    if not runs:
        yield f"# The paper's comparison, small\n\nNothing has been run yet: {command}"
        return
    score, lower = runs[0].result.score_name, runs[0].result.score_better == "lower"
    counts = [len(grid.runs(cell)) for cell in (DENSE, *_both())]
    say = partial(_text, usual=max(counts))
    yield "# The paper's comparison, small\n"
    yield (
        f"{grid.model} ({runs[0].model.parameters:,} weights) on {grid.data}, {runs[0].train_samples:,} training "
        f"samples, {grid.epochs} epochs of batch 128, SGD with momentum, the same seeds, order and schedule for all "
        "methods; "
        f"{_range(counts)} a cell, on {runs[0].device}. Written by\n"
    )
    yield f"    {command}\n"
    yield (
        "Small networks on small images are not ImageNet: what can carry over is the order of the methods, not the "
        "figures. ± is the half width of the 95 % Student interval over the seeds, n of them where that differs; "
        "differences are taken seed by seed; one seed has no interval.\n"
    )
    yield "## What the paper found, and what these runs say\n"
    yield from _findings(grid, lower=lower)
    yield f"\n## Test {score}, %\n"
    yield f"Dense: {say(estimate(grid.scores(DENSE)))}; the paper's ResNet-50 on ImageNet: {PAPER_DENSE}.\n"
    yield "| pattern | STE | SR-STE | ASP | SR-STE less STE | paper: STE | paper: SR-STE | paper: ASP |"
    yield "|---|---|---|---|---|---|---|---|"
    for pattern in PATTERNS:
        own = [say(estimate(grid.scores(Cell(method, pattern)))) for method in ("ste", "sr-ste", "asp")]
        theirs = [PAPER[pattern].get(method, "") for method in ("ste", "sr-ste", "asp")]
        gap = say(_gap(grid, pattern), signed=True)
        yield f"| {pattern} | {' | '.join([*own, gap, *theirs])} |"
    yield (
        "\n\\* quoted from memory of the paper (Zhou et al., ICLR 2021); the others stand in the authors' model zoo. "
        "ASP has half of the epochs for its dense network here, not a schedule of its own as in the paper.\n"
    )
    if pictures:
        yield f"![Gap between SR-STE and STE by pattern; score and flips by lambda](images/{pictures[0]})\n"
    yield "## Mask flips a weight over the whole run\n"
    yield "SAD summed over all optimizer steps, divided by the number of weights.\n"
    yield "| pattern | STE | SR-STE | SR-STE less STE |"
    yield "|---|---|---|---|"
    for pattern in PATTERNS:
        ste, srste = (grid.flips(Cell(method, pattern)) for method in ("ste", "sr-ste"))
        columns = say(estimate(ste)), say(estimate(srste)), say(paired(srste, ste), signed=True)
        yield f"| {pattern} | {' | '.join(columns)} |"
    yield f"\nThe masks that the dense network would have at 2:4: {say(estimate(grid.flips(DENSE)))}.\n"
    if pictures:
        yield f"![Mask flips a weight over the steps, STE against SR-STE, seed 0](images/{pictures[1]})\n"
    yield "## The decay at 2:4\n"
    yield "0 is STE; the paper chose 2e-4.\n"
    yield f"| lambda | {score} | flips a weight |"
    yield "|---|---|---|"
    for decay, cell in _sweep():
        yield f"| {decay:g} | {say(estimate(grid.scores(cell)))} | {say(estimate(grid.flips(cell)))} |"


def _both() -> list[Cell]:
    return [Cell(method, pattern) for pattern in PATTERNS for method in ("ste", "sr-ste")]


def _sweep() -> list[tuple[float, Cell]]:
    return [(0.0, Cell("ste", "2:4")), *((decay, Cell("sr-ste", "2:4", decay)) for decay in DECAYS)]


def _range(counts: list[int]) -> str:
    least, most = min(counts), max(counts)
    words = "seed" if most == 1 else "seeds"
    return f"{most} {words}" if least == most else f"{least} to {most} {words}"


def _text(found: Estimate | None, *, signed: bool = False, usual: int = 0) -> str:
    return _NOT_RUN if found is None else found.text(signed=signed, usual=usual)


def _gap(grid: Grid, pattern: str) -> Estimate | None:
    """SR-STE's score less STE's."""
    return paired(grid.scores(Cell("sr-ste", pattern)), grid.scores(Cell("ste", pattern)))


def sign_of(found: Estimate) -> int:
    """1 or -1 where the interval leaves zero out, else 0; a single seed settles nothing."""
    if found.half is None or abs(found.mean) <= found.half:
        return 0
    return 1 if found.mean > 0 else -1


def _better(found: Estimate, *, lower: bool) -> Estimate:
    """Turn a difference of scores round where lower is better, so that a positive one is better."""
    return Estimate(-found.mean, found.half, found.seeds) if lower else found


def _findings(grid: Grid, *, lower: bool) -> Iterator[str]:
    gaps = {pattern: _better(gap, lower=lower) for pattern in PATTERNS if (gap := _gap(grid, pattern)) is not None}
    yield f"1. **SR-STE at or above STE at every sparsity.** {every(gaps, 'SR-STE')}"
    yield f"2. **The gap widens with sparsity.** {widening(_seed_gaps(grid, lower=lower))}"
    flips = {
        pattern: found
        for pattern in PATTERNS
        if (found := paired(grid.flips(Cell("ste", pattern)), grid.flips(Cell("sr-ste", pattern)))) is not None
    }
    yield f"3. **STE's masks move more (higher SAD).** {every(flips, 'STE')}"
    distance = paired(grid.scores(Cell("sr-ste", "2:4")), grid.scores(DENSE))
    yield f"4. **SR-STE at 2:4 within {WITHIN_POINTS} point of dense.** {within(distance, lower=lower)}"


def every(differences: dict[str, Estimate], who: str) -> str:
    """Say in how many patterns `who` is higher: settled by the intervals, or only in the mean."""
    if not differences:
        return "Not run."
    ahead = [pattern for pattern, found in differences.items() if found.mean >= 0]
    settled = {sign: [p for p, found in differences.items() if sign_of(found) == sign] for sign in (1, -1)}
    listed = ", ".join(f"{pattern} {found.text(signed=True)}" for pattern, found in differences.items())
    complete = len(differences) == len(PATTERNS)
    if settled[-1]:
        verdict = "Not reproduced"
    elif complete and len(settled[1]) == len(PATTERNS):
        verdict = "Reproduced"
    elif complete and len(ahead) == len(PATTERNS):
        verdict = "Seen in every mean, but not settled everywhere"
    else:
        verdict = "Not settled"
    missing = "" if complete else f" of {len(PATTERNS)} patterns, {len(differences)} have been run;"
    words = f"{verdict}:{missing} {who} is ahead in the mean at {len(ahead)} of {len(differences)}"
    words += f", beyond its interval at {', '.join(settled[1]) or 'none'}"
    if settled[-1]:
        words += f", and behind beyond it at {', '.join(settled[-1])}"
    return f"{words}. {who}'s lead: {listed}."


def _seed_gaps(grid: Grid, *, lower: bool) -> dict[float, dict[int, float]]:
    """Share of kept weights -> seed -> SR-STE's lead, the mean of the patterns with that share."""
    found: dict[float, dict[int, list[float]]] = {}
    for pattern in PATTERNS:
        ste, srste = (grid.scores(Cell(method, pattern)) for method in ("ste", "sr-ste"))
        for seed in ste.keys() & srste.keys():
            lead = (ste[seed] - srste[seed]) if lower else (srste[seed] - ste[seed])
            found.setdefault(Cell("ste", pattern).kept, {}).setdefault(seed, []).append(lead)
    return {kept: {seed: fmean(leads) for seed, leads in seeds.items()} for kept, seeds in found.items()}


def widening(gaps: dict[float, dict[int, float]]) -> str:
    """Compare the gap at each share of kept weights.

    Args:
        gaps: Share of kept weights -> seed -> SR-STE's lead in points.
    """
    if len(gaps) < 2:
        return "Not run."
    by_kept = sorted(gaps, reverse=True)
    means = [fmean(gaps[kept].values()) for kept in by_kept]
    rises = all(after > before for before, after in pairwise(means))
    growth = paired(gaps[by_kept[-1]], gaps[by_kept[0]])
    settled = 0 if growth is None else sign_of(growth)
    if settled < 0:
        verdict = "Not reproduced"
    elif rises:
        verdict = "Reproduced" if settled else "Seen in the means, but not settled"
    else:
        verdict = "Not settled" if means[-1] > means[0] else "Not seen"
    listed = ", ".join(f"{mean:+.2f} with {100 * kept:g} % kept" for kept, mean in zip(by_kept, means, strict=True))
    grown = "" if growth is None else f"; from the first to the last it grows by {growth.text(signed=True)}"
    return f"{verdict}: SR-STE's lead is {listed}{grown}."


def within(distance: Estimate | None, *, lower: bool) -> str:
    """Compare a difference from dense with the paper's tenth of a point."""
    if distance is None:
        return "Not run."
    text = _better(distance, lower=lower).text(signed=True)
    worst = _better(distance, lower=lower).mean
    if distance.half is None:
        verdict = "So it is, for one seed" if worst >= -WITHIN_POINTS else "Not so for this one seed"
    elif worst - distance.half >= -WITHIN_POINTS:
        verdict = "Reproduced"
    elif worst + distance.half < -WITHIN_POINTS:
        verdict = "Not reproduced"
    else:
        verdict = "Not settled: the interval holds both"
    return f"{verdict}; SR-STE less dense: {text} points (a minus is worse)."


def draw_flips_over_steps(grid: Grid, path: Path) -> None:
    """A panel for each pattern: STE against SR-STE, seed 0."""
    with house_style():
        figure = new_figure(12.0, 3.0)
        panels = figure.subplots(1, len(PATTERNS))
        most = max((value for cell in _both() for value in grid.flips(cell).values()), default=1.0)
        for axes, pattern in zip(panels, PATTERNS, strict=True):
            cells = {"STE": Cell("ste", pattern), "SR-STE": Cell("sr-ste", pattern)}
            outputs = {label: grid.output(cell, 0) for label, cell in cells.items()}
            curves = [
                read_run_curves(output, label) for label, output in outputs.items() if (output / "run.json").is_file()
            ]
            axes.set_title(pattern)
            if len(curves) < len(outputs):
                note(axes, _NOT_RUN)
                continue
            draw_flips(axes, curves)
            axes.set_ylim(0, 1.05 * most)
            handles = axes.get_legend_handles_labels()
            if not figure.legends:
                figure.legend(*handles, loc="outside lower left", ncols=2)
        panels[0].set_ylabel("mask flips a weight")
    _write(figure, path)


def draw_gap_and_sweep(grid: Grid, path: Path) -> None:
    """SR-STE's lead by pattern with its interval; score and flips by lambda."""
    with house_style():
        figure = new_figure(10.5, 3.0)
        gap_axes, score_axes, flip_axes = figure.subplots(1, 3)
        gap_axes.set_title("Score of SR-STE less STE, points")
        ordered = sorted(PATTERNS, key=lambda pattern: -Cell("ste", pattern).kept)
        for index, pattern in enumerate(ordered):
            if (gap := _gap(grid, pattern)) is not None:
                gap_axes.errorbar(index, gap.mean, yerr=gap.half, fmt="o", color=SPARSE, capsize=3)
        gap_axes.axhline(0, color=MUTED, linewidth=0.8)
        gap_axes.set_xticks(range(len(ordered)), ordered)
        gap_axes.set_xlabel("pattern, sparser to the right")
        gap_axes.set_xlim(-0.5, len(ordered) - 0.5)
        if (dense := estimate(grid.scores(DENSE))) is not None:
            score_axes.axhline(dense.mean, color=MUTED, linewidth=0.8, linestyle="--", label="dense")
            score_axes.legend(loc="best")
        for axes, title, values in (
            (score_axes, "Score at 2:4, %", grid.scores),
            (flip_axes, "Flips at 2:4", grid.flips),
        ):
            axes.set_title(title)
            for index, (_, cell) in enumerate(_sweep()):
                if (point := estimate(values(cell))) is not None:
                    axes.errorbar(index, point.mean, yerr=point.half, fmt="o", color=ACCENT, capsize=3)
            axes.set_xticks(range(len(_sweep())), [f"{decay:g}" for decay, _ in _sweep()])
            axes.set_xlim(-0.5, len(_sweep()) - 0.5)
            axes.set_xlabel("\N{GREEK SMALL LETTER LAMDA} (0 is STE)")
    _write(figure, path)


def _write(figure: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png_bytes(figure))
