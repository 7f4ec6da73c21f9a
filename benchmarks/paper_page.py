"""docs/results.md from the finished cells: tables, a picture, and sentences computed from the figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paper_grid import (
    COMPARED_PATTERNS,
    LABELS,
    PAPER_METHODS,
    PATTERNS,
    CellResult,
    Grid,
    kept,
    read_results,
    write_results,
)
from paper_statistics import (
    Estimate,
    detectable,
    judge_all_higher,
    judge_sign,
    judge_within,
    paired,
    power_words,
    slopes,
)

from nm2trt.artifacts.files import write_atomic

RESULTS, CPU_RESULTS = "results.json", "results-cpu.json"
MARGIN_POINTS = 0.1
_NOT_RUN = "not run"
_ENDS = {1: "ahead", -1: "behind", 0: "open"}


@dataclass(frozen=True)
class Scores:
    """The cells of one network."""

    network: str
    results: tuple[CellResult, ...]

    @property
    def lower(self) -> bool:
        """Whether a lower score is better."""
        return self.results[0].score_better == "lower"

    def score(self, method: str, pattern: str = "2:4") -> dict[int, float]:
        """Test score in per cent by seed."""
        return {one.seed: 100 * one.score for one in self._of(method, pattern)}

    def flips(self, method: str, pattern: str) -> dict[int, float]:
        """Mask flips a weight over the whole run by seed."""
        found = ((one.seed, one.flips_per_weight) for one in self._of(method, pattern))
        return {seed: flips for seed, flips in found if flips is not None}

    def lead(self, one: str, two: str, pattern: str) -> Estimate | None:
        """By how many points `one` is better than `two`, seed by seed."""
        other = "2:4" if two == "dense" else pattern
        first, second = self.score(one, pattern), self.score(two, other)
        return paired(second, first) if self.lower else paired(first, second)

    def _of(self, method: str, pattern: str) -> Iterator[CellResult]:
        return (one for one in self.results if one.method == method and one.pattern == pattern)

    @property
    def methods(self) -> list[str]:
        """What was trained, in the order of the labels."""
        found = {one.method for one in self.results}
        return [method for method in LABELS if method in found and method != "dense"]


def write_page(path: Path, sources: Sequence[Path]) -> None:
    """Write the page, and all cells beside it: results.json, and of CPU runs results-cpu.json.

    Args:
        path: The page.
        sources: Grids' folders and files of results.
    """
    found = [one for source in sources for one in (Grid(source).results() if source.is_dir() else read_results(source))]
    on_cpu = [one for one in found if one.device.startswith("cpu")]
    others = [one for one in found if one not in on_cpu]
    files = {RESULTS: others, CPU_RESULTS: on_cpu} if others else {RESULTS: on_cpu}
    written = {name: cells for name, cells in files.items() if cells or name == RESULTS}
    for name, cells in written.items():
        write_results(path.parent / name, cells)
    write_atomic(path, "\n".join(markdown(others + on_cpu, path, list(written))) + "\n")


def markdown(results: list[CellResult], path: Path, files: list[str]) -> Iterator[str]:
    """Yield the page's lines."""
    yield "# The paper's comparison, and the methods after it\n"
    holds = "holds" if len(files) == 1 else "hold"
    yield f"Written from {' and '.join(files)}, which {holds} a line for each run, by\n"
    yield "<!-- not run: tests/examples/test_paper_page.py does -->\n"
    read = " ".join(str(path.parent / name) for name in files)
    yield f"    python benchmarks/paper.py --from {read} --write {path}\n"
    if not results:
        yield "Nothing has been run yet."
        return
    yield (
        "Small networks on small data are not ImageNet: what can carry over is the order of the methods, not the "
        "figures. All methods share seeds, order of the data, epochs and schedule; differences are taken seed by seed "
        "and a positive one is better. ± is the half width of Student's 95 % interval; the bootstrap interval is the "
        "percentile one, too narrow for few seeds, and decides nothing. ASP has half of the epochs for its dense "
        "network, not a schedule of its own as in the paper. Runs are only compared with runs on the same device and "
        "data.\n"
    )
    for network, device in dict.fromkeys((one.network, one.device) for one in results):
        scores = Scores(network, tuple(one for one in results if (one.network, one.device) == (network, device)))
        yield from _network(scores)


def _network(scores: Scores) -> Iterator[str]:
    first = scores.results[0]
    seeds = len({one.seed for one in scores.results})
    plural = "1 seed" if seeds == 1 else f"{seeds} seeds"
    yield f"## {first.settings['model']} on {scores.network}\n"
    yield (
        f"{first.parameters:,} weights, {first.train_samples:,} training samples, {first.epochs} epochs of batch "
        f"{first.settings['batch_size']}, {first.settings['optimizer']} at {first.settings['lr']:g}, {plural}, "
        f"{len(scores.results)} runs, on {first.device}.\n"
    )
    if first.settings["optimizer"] == "adamw":
        yield _adam_words(scores)
    if "ste" in scores.methods:
        yield "### What the paper found\n"
        yield from claims(scores)
        yield ""
    yield "### The methods after it\n"
    yield from _after(scores)
    better = "lower" if scores.lower else "higher"
    yield f"\n### Test {first.score_name}, % ({better} is better)\n"
    dense = Estimate(tuple(scores.score("dense").values())) if scores.score("dense") else None
    yield f"Dense: {dense.text() if dense else _NOT_RUN}.\n"
    yield f"| pattern | {' | '.join(LABELS[method] for method in scores.methods)} |"
    yield f"|---|{'---|' * len(scores.methods)}"
    for pattern in PATTERNS:
        found = [tuple(scores.score(method, pattern).values()) for method in scores.methods]
        if any(found):
            yield f"| {pattern} | {' | '.join(Estimate(one).text() if one else '' for one in found)} |"
    yield "\n### Against SR-STE, points\n"
    yield "| method | pattern | lead | bootstrap | seeds | would be found | |"
    yield "|---|---|---|---|---|---|---|"
    for method in scores.methods:
        for pattern in PATTERNS if method in PAPER_METHODS else COMPARED_PATTERNS:
            lead = scores.lead(method, "sr-ste", pattern)
            if method != "sr-ste" and lead is not None:
                yield _lead_row(method, pattern, lead)
    if "ste" in scores.methods:
        yield "\n### Mask flips a weight over the whole run\n"
        yield "| pattern | STE | SR-STE | STE less SR-STE |"
        yield "|---|---|---|---|"
        for pattern in PATTERNS:
            ste, srste = scores.flips("ste", pattern), scores.flips("sr-ste", pattern)
            if (more := paired(ste, srste)) is not None:
                means = (Estimate(tuple(one.values())).text() for one in (ste, srste))
                yield f"| {pattern} | {' | '.join(means)} | {more.text(signed=True)} |"
    yield ""


def _adam_words(scores: Scores) -> str:
    """What ran under Adam, where moving masks have a default of their own."""
    missing = "" if "step" in scores.methods else ", which these runs do not have"
    return (
        "SR-STE, which everything is compared with, ran under AdamW as it is, with masks that move from the first step "
        f"on. Where no method is given, `nm2trt train` takes STEP with AdamW{missing}; it warns of STE and SR-STE "
        "there.\n"
    )


def _after(scores: Scores) -> Iterator[str]:
    """Where each later method is ahead of SR-STE, in words."""
    for method in scores.methods:
        leads = {one: found for one in COMPARED_PATTERNS if (found := scores.lead(method, "sr-ste", one)) is not None}
        if method in PAPER_METHODS or not leads:
            continue
        by_end: dict[str, list[str]] = {}
        for pattern, lead in leads.items():
            by_end.setdefault(_ENDS[lead.sign()], []).append(pattern)
        ends = "; ".join(f"**{end}** at {', '.join(patterns)}" for end, patterns in by_end.items())
        yield f"- {LABELS[method]} against SR-STE: {ends}. {_listed(leads)} {_power(leads)}"


def _lead_row(method: str, pattern: str, lead: Estimate) -> str:
    low, high = lead.bootstrap()
    n = len(lead.values)
    power = f"{detectable(lead.deviation, n):.2f}" if n > 1 else ""
    return (
        f"| {LABELS[method]} | {pattern} | {lead.text(signed=True)} | {low:+.2f} to {high:+.2f} | {n} | {power} "
        f"| {_ENDS[lead.sign()]} |"
    )


def claims(scores: Scores) -> Iterator[str]:
    """Each claim of the paper with its end and the power that the runs had."""
    leads = {one: found for one in PATTERNS if (found := scores.lead("sr-ste", "ste", one)) is not None}
    end = judge_all_higher(leads, len(PATTERNS))
    yield f"1. SR-STE at or above STE at every pattern: **{end}**. {_listed(leads)} {_power(leads)}"
    signed = -1 if scores.lower else 1
    gaps = {
        kept(one): {
            seed: signed * (value - scores.score("ste", one)[seed])
            for seed, value in scores.score("sr-ste", one).items()
            if seed in scores.score("ste", one)
        }
        for one in COMPARED_PATTERNS
    }
    slope = slopes(gaps)
    grows = f"{slope.text(signed=True)} points with each halving of the weights. " if slope else ""
    yield (
        f"2. The gap widens with sparsity (2:4, 1:4, 1:16): **{judge_sign(slope)}**. {grows}"
        f"{power_words([slope], 'points a halving') if slope else ''}"
    )
    moves = {one: found for one in PATTERNS if (found := paired(scores.flips("ste", one), scores.flips("sr-ste", one)))}
    end = judge_all_higher(moves, len(PATTERNS))
    yield f"3. STE's masks move more (higher SAD): **{end}**. {_listed(moves)} {_power(moves, 'flips a weight')}"
    lead = scores.lead("sr-ste", "dense", "2:4")
    worse = Estimate(tuple(-value for value in lead.values)) if lead else None
    words = f"SR-STE less dense: {lead.text(signed=True)}. {power_words([lead], 'points')}" if lead else ""
    yield f"4. SR-STE at 2:4 within {MARGIN_POINTS} point of dense: **{judge_within(worse, MARGIN_POINTS)}**. {words}"


def _listed(found: dict[str, Estimate]) -> str:
    return ", ".join(f"{pattern} {one.text(signed=True)}" for pattern, one in found.items()) + "." if found else ""


def _power(found: dict[str, Estimate], unit: str = "points") -> str:
    return power_words(list(found.values()), unit) if found else ""
