"""The paper's comparison, small: dense, STE, SR-STE and ASP at several patterns, with the decay swept at 2:4.

    python benchmarks/paper.py [--data fashion-mnist] [--epochs 3] [--seeds 5] [--minutes 120] [--write docs/results.md]

Every run is a folder below build/paper/DATA-MODEL-EPOCHS, so the grid goes on where it was stopped: what has a run.json
is read, what has a state is resumed. All methods have the same epochs, schedule, seeds and data order. Prints Markdown;
--write puts it into a file, and the SAD curves beside it in images/.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import t as student

from nm2trt.artifacts import RunDocument
from nm2trt.training.config import TrainConfig, load_config
from nm2trt.training.run import train

PATTERNS = ("2:4", "1:4", "2:8", "4:8", "1:16")
DECAYS = (2e-5, 2e-4, 2e-3)
PAPER_DECAY = 2e-4
# ImageNet top-1 of ResNet-50 by SR-STE, from the authors' published model zoo (github.com/aojunzz/NM-sparsity), except
# 1:16 and the dense 77.3, which are quoted from memory of the paper's table.
PAPER_SR_STE = {"2:4": "77.0", "1:4": "75.9", "2:8": "76.4", "4:8": "77.4", "1:16": "71.5"}


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


def grid() -> list[Cell]:
    cells = [Cell("dense", "2:4")]
    cells += [Cell(method, pattern) for pattern in PATTERNS for method in ("ste", "sr-ste", "asp")]
    return cells + [Cell("sr-ste", "2:4", decay) for decay in DECAYS if decay != PAPER_DECAY]


def settings(cell: Cell, seed: int, *, data: str, model: str, epochs: int) -> TrainConfig:
    """What all methods are trained with."""
    options = {"data": data, "model": model, "epochs": epochs, "seed": seed, "batch_size": 128, "lr": 0.1}
    return load_config(None, options | {"method": cell.method, "pattern": cell.pattern, "decay": cell.decay})


def run_grid(arguments: argparse.Namespace, folder: Path) -> None:
    """Train what is missing, the first seed of every cell before the second of any."""
    ends = time.monotonic() + 60 * arguments.minutes
    jobs = [(seed, cell) for seed in range(arguments.seeds) for cell in grid()]
    for index, (seed, cell) in enumerate(jobs):
        output = folder / f"{cell.name}-seed{seed}"
        if (output / "run.json").is_file():
            continue
        if time.monotonic() > ends:
            print(f"time is up before run {index + 1} of {len(jobs)}", file=sys.stderr)
            return
        config = settings(cell, seed, data=arguments.data, model=arguments.model, epochs=arguments.epochs)
        result = train(config, output, resume=(output / "config.toml").is_file()).result
        print(
            f"{index + 1}/{len(jobs)} {output.name}: {result.test_score:.4f}, {result.seconds:.0f} s",
            file=sys.stderr,
        )


def results(folder: Path, cell: Cell, seeds: int) -> list[RunDocument]:
    paths = [folder / f"{cell.name}-seed{seed}" for seed in range(seeds)]
    return [RunDocument.read(path) for path in paths if (path / "run.json").is_file()]


def interval(values: list[float], digits: int = 2) -> str:
    """Mean with the half width of its 95 % Student interval."""
    if not values:
        return "not run"
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f} (one seed)"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.{digits}f} +- {half:.{digits}f}"


def accuracy(documents: list[RunDocument]) -> str:
    return interval([100 * document.result.test_score for document in documents])


def flips(documents: list[RunDocument]) -> str:
    return interval([document.result.sad.flips_per_weight for document in documents if document.result.sad])


def markdown(arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    def of(method: str, pattern: str, decay: float = PAPER_DECAY) -> list[RunDocument]:
        return results(folder, Cell(method, pattern, decay), arguments.seeds)

    dense = of("dense", "2:4")
    count = min((len(results(folder, cell, arguments.seeds)) for cell in grid()), default=0)
    most = max((len(results(folder, cell, arguments.seeds)) for cell in grid()), default=0)
    yield "# The paper's comparison, small\n"
    yield (
        f"{arguments.model} on {arguments.data}, {arguments.epochs} epochs, batch 128, {count} to {most} seeds a cell; "
        "printed by\n"
    )
    yield (
        f"    python benchmarks/paper.py --data {arguments.data} --model {arguments.model} --epochs {arguments.epochs} "
        f"--seeds {arguments.seeds}\n"
    )
    yield "Test accuracy in per cent, mean +- half width of the 95 % Student interval over the seeds.\n"
    yield f"Dense: {accuracy(dense)}.\n"
    yield "| pattern | STE | SR-STE | ASP | paper: ResNet-50 on ImageNet, SR-STE (dense 77.3) |"
    yield "|---|---|---|---|---|"
    for pattern in PATTERNS:
        cells = " | ".join(accuracy(of(method, pattern)) for method in ("ste", "sr-ste", "asp"))
        yield f"| {pattern} | {cells} | {PAPER_SR_STE[pattern]} |"
    yield "\nThe paper's 1:16 and dense figures are quoted from memory, the others stand in the authors' model zoo."
    yield "\nMask flips a weight over the whole run (SAD summed over optimizer steps):\n"
    yield "| pattern | STE | SR-STE |"
    yield "|---|---|---|"
    for pattern in PATTERNS:
        yield f"| {pattern} | {flips(of('ste', pattern))} | {flips(of('sr-ste', pattern))} |"
    yield "\nThe decay at 2:4; 0 is STE, 2e-4 the paper's choice:\n"
    yield "| decay | accuracy | flips a weight |"
    yield "|---|---|---|"
    for decay in (0.0, *DECAYS):
        documents = of("sr-ste", "2:4", decay) if decay else of("ste", "2:4")
        yield f"| {decay:g} | {accuracy(documents)} | {flips(documents)} |"


def draw_sad(folder: Path, path: Path) -> None:
    """Cumulative flips a weight over the steps, method against method, seed 0."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, pattern in zip(figure.subplots(1, len(PATTERNS), sharey=True), PATTERNS, strict=True):
        for method in ("ste", "sr-ste"):
            source = folder / f"{Cell(method, pattern).name}-seed0" / "sad.csv"
            if not source.is_file():
                continue
            with source.open() as file:
                rows = [row for row in csv.DictReader(file) if row["layer"] == "total"]
            axes.plot(
                [int(row["step"]) for row in rows], [float(row["flips_per_weight"]) for row in rows], label=method
            )
        axes.set_title(pattern)
        axes.set_xlabel("step")
    figure.axes[0].set_ylabel("flips a weight")
    figure.axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--folder", type=Path, default=Path("build/paper"))
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder / f"{arguments.data}-{arguments.model}-{arguments.epochs}"
    folder.mkdir(parents=True, exist_ok=True)
    run_grid(arguments, folder)
    text = "\n".join(markdown(arguments, folder)) + "\n"
    if arguments.write:
        picture = arguments.write.parent / "images" / "paper-sad.png"
        draw_sad(folder, picture)
        text += f"\n![Cumulative mask flips a weight, STE against SR-STE, seed 0](images/{picture.name})\n"
        arguments.write.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
