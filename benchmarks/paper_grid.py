"""The cells of the paper's comparison: which there are, how each is trained, and the small JSON that each leaves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from nm2trt.artifacts.files import write_atomic
from nm2trt.errors import InputError
from nm2trt.pattern import NMPattern
from nm2trt.training.config import TrainConfig, load_config

PATTERNS = ("2:4", "1:4", "2:8", "4:8", "1:16")
PAPER_METHODS = ("ste", "sr-ste", "asp")
"""Trained at every pattern."""
COMPARED_PATTERNS = ("2:4", "1:4", "1:16")
"""Where the later methods are trained, too."""
PAPER_DECAY = 2e-4
DISTILLED = "distilled"
"""SR-STE with the dense network of the same seed as its teacher."""
LABELS = {
    "dense": "dense",
    "ste": "STE",
    "sr-ste": "SR-STE",
    "asp": "ASP",
    "s-ste": "S-STE",
    "step": "STEP",
    DISTILLED: "SR-STE, distilled",
    "decaying-mask": "decaying mask",
}
SCHEMA = "nm2trt.paper-cell/1"
_NEEDS_ADAM = "step"


@dataclass(frozen=True)
class Network:
    """A network with its data and what all methods share on it."""

    name: str
    data: str
    model: str
    options: tuple[tuple[str, Any], ...]
    optimizer: str = "sgd"
    only: tuple[str, ...] = ()
    """Methods beside dense; empty takes all."""

    @property
    def later_methods(self) -> tuple[str, ...]:
        """The methods beyond the paper's; STEP is a rule for Adam's second moments, so SGD has none."""
        return tuple(
            method
            for method in ("s-ste", "step", DISTILLED, "decaying-mask")
            if method != _NEEDS_ADAM or self.optimizer == "adamw"
        )


NETWORKS = {
    network.name: network
    for network in (
        Network(
            "fashion-mnist",
            "paper_data:fashion_mnist",
            "resnet8",
            (("batch_size", 256), ("lr", 0.1), ("warmup_epochs", 0.5)),
        ),
        Network(
            "cmudict",
            "paper_data:cmudict",
            "encoder-small",
            (("recipe", "transformer"), ("batch_size", 512), ("lr", 2e-3), ("warmup_epochs", 0.5)),
            "adamw",
        ),
        Network(
            "fashion-mnist-part",
            "paper_data:fashion_mnist_part",
            "resnet8",
            (("batch_size", 64), ("lr", 0.05), ("warmup_epochs", 0.5)),
            only=("sr-ste", DISTILLED),
        ),
        Network(
            "cmudict-part",
            "paper_data:cmudict_part",
            "encoder-small",
            (("recipe", "transformer"), ("batch_size", 64), ("lr", 2e-3), ("warmup_epochs", 0.5)),
            "adamw",
            only=("sr-ste", _NEEDS_ADAM, DISTILLED),
        ),
        Network("digits", "digits", "mlp", (("batch_size", 64), ("lr", 0.05), ("warmup_epochs", 0.5))),
    )
}
"""The parts fit a CPU's hour; digits is for trying the script out."""


@dataclass(frozen=True)
class Cell:
    """One configuration of the grid; `decay` only matters to SR-STE."""

    method: str
    pattern: str = "2:4"
    decay: float = PAPER_DECAY

    @property
    def name(self) -> str:
        if self.method == "dense":
            return "dense"
        swept = f"-decay{self.decay:g}" if self.method == "sr-ste" and self.decay != PAPER_DECAY else ""
        return f"{self.method}-{self.pattern.replace(':', 'of')}{swept}"


DENSE = Cell("dense")


def kept(pattern: str) -> float:
    """Share of the weights that are kept."""
    parsed = NMPattern.parse(pattern)
    return parsed.n / parsed.m


def cells(network: Network) -> list[Cell]:
    """The cells of one network, the paper's own methods before the later ones."""
    if network.only:
        return [DENSE, *(Cell(method, pattern) for pattern in COMPARED_PATTERNS for method in network.only)]
    found = [DENSE, *(Cell(method, pattern) for pattern in PATTERNS for method in PAPER_METHODS)]
    later = [method for method in network.later_methods if is_trainable(method)]
    return found + [Cell(method, pattern) for pattern in COMPARED_PATTERNS for method in later]


def is_trainable(method: str) -> bool:
    """Whether the trainer at hand knows the method."""
    fields_of_run = TrainConfig.model_fields
    return "teacher" in fields_of_run if method == DISTILLED else method in get_args(fields_of_run["method"].annotation)


def settings(cell: Cell, seed: int, *, data: str, model: str, epochs: int, **options: Any) -> TrainConfig:
    """What all methods are trained with; `options` win."""
    values = {"data": data, "model": model, "epochs": epochs, "seed": seed, "batch_size": 128, "lr": 0.1}
    values |= {"method": cell.method, "pattern": cell.pattern, "decay": cell.decay}
    return load_config(None, values | options)


def network_settings(network: Network, cell: Cell, seed: int, epochs: int, teacher: Path | None) -> TrainConfig:
    """The configuration of one cell.

    Args:
        network: The network.
        cell: Method and pattern.
        seed: Of weights and order.
        epochs: Of every method.
        teacher: Run folder of the dense network of this seed, which only `distilled` reads.
    """
    options = dict(network.options)
    if cell.method == DISTILLED:
        cell, options = Cell("sr-ste", cell.pattern), options | {"teacher": teacher}
    return settings(cell, seed, data=network.data, model=network.model, epochs=epochs, **options)


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What is kept of a finished run."""

    network: str
    method: str
    pattern: str
    seed: int
    epochs: int
    steps: int
    score_name: str
    score_better: str
    score: float
    """Of the test samples, a share."""
    flips_per_weight: float | None
    seconds: float
    device: str
    parameters: int
    train_samples: int
    test_samples: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """A folder of finished cells, network by network."""

    folder: Path

    def file(self, network: Network, cell: Cell, seed: int) -> Path:
        """Where a finished cell is written."""
        return self.folder / network.name / f"{cell.name}-seed{seed}.json"

    def run(self, network: Network, cell: Cell, seed: int) -> Path:
        """The run folder while it is trained; the dense network's stays, as a teacher."""
        return self.folder / network.name / "runs" / f"{cell.name}-seed{seed}"

    def results(self) -> list[CellResult]:
        """Every finished cell."""
        return [read_cell(path) for path in sorted(self.folder.glob("*/*-seed*.json"))]

    def epochs(self) -> dict[str, int]:
        """Epochs by network of what has been trained.

        Raises:
            InputError: The cells of a network differ.
        """
        found: dict[str, int] = {}
        for result in self.results():
            if found.setdefault(result.network, result.epochs) != result.epochs:
                raise InputError("holds cells of different schedules", where=self.folder / result.network)
        return found


def write_cell(path: Path, result: CellResult) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"schema": SCHEMA} | asdict(result), indent=1) + "\n")


def read_cell(path: Path) -> CellResult:
    """Read one finished cell.

    Raises:
        InputError: The file is none.
    """
    return _cell(json.loads(path.read_text(encoding="utf-8")), path)


def write_results(path: Path, results: Iterable[CellResult]) -> None:
    """All cells in one file, a line each."""
    lines = [json.dumps({"schema": SCHEMA} | asdict(result)) for result in results]
    write_atomic(path, "[\n" + ",\n".join(lines) + "\n]\n")


def read_results(path: Path) -> list[CellResult]:
    """Read what `write_results` wrote."""
    return [_cell(values, path) for values in json.loads(path.read_text(encoding="utf-8"))]


def _cell(values: dict[str, Any], path: Path) -> CellResult:
    names = {field.name for field in fields(CellResult)}
    if values.get("schema") != SCHEMA or not names <= set(values):
        raise InputError(f"is no cell of schema {SCHEMA}", where=path)
    return CellResult(**{name: values[name] for name in names})


def jobs(networks: Iterable[Network], seeds: int) -> Iterator[tuple[Network, Cell, int]]:
    """All runs, dense networks first, since they teach; then whole seeds, one after the other.

    Of the parts every seed of a pattern before the next pattern, so that what an hour leaves out is a pattern.
    """
    chosen = list(networks)
    for seed in range(seeds):
        for network in chosen:
            yield network, DENSE, seed
    for pattern in COMPARED_PATTERNS:
        for seed in range(seeds):
            for network in chosen:
                if network.only:
                    yield from ((network, cell, seed) for cell in _sparse(network) if cell.pattern == pattern)
    for seed in range(seeds):
        for network in chosen:
            if not network.only:
                yield from ((network, cell, seed) for cell in _sparse(network))


def _sparse(network: Network) -> list[Cell]:
    return [cell for cell in cells(network) if cell != DENSE]
