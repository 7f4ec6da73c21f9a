"""The runs of the paper's comparison: which there are, how each is trained, where its folder lies."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student

from nm2trt.artifacts import RunDocument
from nm2trt.pattern import NMPattern
from nm2trt.training.config import TrainConfig, load_config
from nm2trt.training.run import train

PATTERNS = ("2:4", "1:4", "2:8", "4:8", "1:16")
DECAYS = (2e-5, 2e-4, 2e-3)
PAPER_DECAY = 2e-4


@dataclass(frozen=True)
class Cell:
    """One configuration of the grid; `decay` only matters to SR-STE."""

    method: str
    pattern: str
    decay: float = PAPER_DECAY

    @property
    def name(self) -> str:
        if self.method == "dense":
            return "dense"
        swept = f"-decay{self.decay:g}" if self.method == "sr-ste" and self.decay != PAPER_DECAY else ""
        return f"{self.method}-{self.pattern.replace(':', 'of')}{swept}"

    @property
    def kept(self) -> float:
        """Share of the weights that are kept."""
        pattern = NMPattern.parse(self.pattern)
        return pattern.n / pattern.m


DENSE = Cell("dense", "2:4")


def cells() -> list[Cell]:
    found = [DENSE, *(Cell(method, pattern) for pattern in PATTERNS for method in ("ste", "sr-ste", "asp"))]
    return found + [Cell("sr-ste", "2:4", decay) for decay in DECAYS if decay != PAPER_DECAY]


def settings(cell: Cell, seed: int, *, data: str, model: str, epochs: int) -> TrainConfig:
    """What all methods are trained with."""
    options = {"data": data, "model": model, "epochs": epochs, "seed": seed, "batch_size": 128, "lr": 0.1}
    return load_config(None, options | {"method": cell.method, "pattern": cell.pattern, "decay": cell.decay})


@dataclass(frozen=True)
class Grid:
    """Every cell with every seed, on one data set."""

    data: str
    model: str
    epochs: int
    seeds: int
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / f"{self.data}-{self.model}-{self.epochs}"

    def output(self, cell: Cell, seed: int) -> Path:
        return self.folder / f"{cell.name}-seed{seed}"

    def train(self, minutes: float) -> None:
        """Train what is missing, the first seed of every cell before the second of any."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ends = time.monotonic() + 60 * minutes
        jobs = [(seed, cell) for seed in range(self.seeds) for cell in cells()]
        for index, (seed, cell) in enumerate(jobs):
            output = self.output(cell, seed)
            if (output / "run.json").is_file():
                continue
            if time.monotonic() > ends:
                print(f"time is up before run {index + 1} of {len(jobs)}", file=sys.stderr)
                return
            config = settings(cell, seed, data=self.data, model=self.model, epochs=self.epochs)
            result = train(config, output, resume=(output / "config.toml").is_file()).result
            print(f"{index + 1}/{len(jobs)} {output.name}: {result.score}, {result.seconds:.0f} s", file=sys.stderr)

    def runs(self, cell: Cell) -> dict[int, RunDocument]:
        """The finished runs of a cell by seed."""
        outputs = {seed: self.output(cell, seed) for seed in range(self.seeds)}
        return {seed: RunDocument.read(path) for seed, path in outputs.items() if (path / "run.json").is_file()}

    def scores(self, cell: Cell) -> dict[int, float]:
        """Test score in per cent by seed."""
        return {seed: 100 * run.result.test_score for seed, run in self.runs(cell).items()}

    def flips(self, cell: Cell) -> dict[int, float]:
        """Mask flips a weight over the whole run by seed."""
        return {seed: run.result.sad.flips_per_weight for seed, run in self.runs(cell).items() if run.result.sad}


@dataclass(frozen=True)
class Estimate:
    """Mean of some seeds with the half width of its 95 % Student interval; None for a single seed."""

    mean: float
    half: float | None
    seeds: int

    def __str__(self) -> str:
        return self.text()

    def text(self, *, signed: bool = False, usual: int = 0) -> str:
        """Such as "90.41 ± 0.12 (n = 5)"; `signed` for differences, without n where it is the `usual` one."""
        mean = f"{self.mean:+.2f}" if signed else f"{self.mean:.2f}"
        if self.half is not None:
            mean += f" ± {self.half:.2f}"
        if self.seeds == usual:
            return mean
        return f"{mean} (one seed)" if self.seeds == 1 else f"{mean} (n = {self.seeds})"


def estimate(values: dict[int, float]) -> Estimate | None:
    """Sum up the values of some seeds; None where there are none."""
    found = list(values.values())
    if not found:
        return None
    half = None
    if len(found) > 1:
        half = float(student.ppf(0.975, len(found) - 1) * statistics.stdev(found) / len(found) ** 0.5)
    return Estimate(statistics.mean(found), half, len(found))


def paired(one: dict[int, float], two: dict[int, float]) -> Estimate | None:
    """`one` less `two`, seed by seed, over the seeds that both have."""
    return estimate({seed: one[seed] - two[seed] for seed in one if seed in two})
