"""Trains the missing cells of the paper's comparison in several processes, within a budget of seconds."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from paper_grid import (
    DENSE,
    DISTILLED,
    NETWORKS,
    Cell,
    CellResult,
    Grid,
    Network,
    cells,
    jobs,
    network_settings,
    write_cell,
)

_NICENESS = 10
_FEWEST_EPOCHS, _MOST_EPOCHS = 4, 12
_TRIAL_EPOCHS = 3
_CELL_OVERHEAD_S = 2.5
"""Setting a run up and drawing its curves."""
_DEARER = 1.15
"""Methods cost a step more than the trial's SR-STE: a teacher, a second mask."""
_USED_SHARE = 0.9
_GRACE_S = 15


@dataclass(frozen=True)
class Job:
    """One run: a cell, or where `trial` is set a measurement of an epoch."""

    network: str
    cell: Cell
    seed: int
    epochs: int
    trial: bool = False


def work(connection: Connection, folder: Path) -> None:
    """A worker process: train what the parent sends until it sends None."""
    os.nice(_NICENESS)
    import torch

    from nm2trt.training.interruption import InterruptedRunError

    torch.set_num_threads(1)
    grid = Grid(folder)
    while (job := connection.recv()) is not None:
        try:
            answer: Any = time_epoch(job) if job.trial else train_cell(grid, job)
        except InterruptedRunError:
            return
        except Exception as error:  # noqa: BLE001 -- one cell that fails must not cost the others
            answer = f"{type(error).__name__}: {error}"
        connection.send(answer)


def train_cell(grid: Grid, job: Job) -> CellResult:
    """Train one cell, or go on with it, and write its JSON."""
    from nm2trt.training.run import train

    network, cell, seed = NETWORKS[job.network], job.cell, job.seed
    output = grid.run(network, cell, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    config = network_settings(network, cell, seed, job.epochs, grid.run(network, DENSE, seed))
    run = train(config, output, resume=(output / "config.toml").is_file())
    found = run.result
    result = CellResult(
        network=network.name,
        method=cell.method,
        pattern=cell.pattern,
        seed=seed,
        epochs=found.epochs,
        steps=found.steps,
        score_name=found.score_name,
        score_better=found.score_better,
        score=found.test_score,
        flips_per_weight=found.sad.flips_per_weight if found.sad else None,
        seconds=round(found.seconds, 2),
        device=run.device,
        parameters=run.model.parameters,
        train_samples=run.train_samples,
        test_samples=run.test_samples,
        settings=run.config | {"teacher": None if cell.method != DISTILLED else DENSE.name},
    )
    write_cell(grid.file(network, cell, seed), result)
    shutil.rmtree(output / "state", ignore_errors=True)
    if cell != DENSE:
        shutil.rmtree(output, ignore_errors=True)
    return result


def time_epoch(job: Job) -> float:
    """Seconds of a later epoch, beside the other workers' epochs."""
    from nm2trt.training.run import train

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        train(network_settings(NETWORKS[job.network], job.cell, job.seed, job.epochs, None), output)
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return float([row["seconds"] for row in rows if row["kind"] == "epoch"][-1])


@dataclass
class Pool:
    """Worker processes that are sent one job at a time.

    Args:
        folder: Of the grid.
        size: How many.
    """

    folder: Path
    size: int
    workers: dict[Connection, Any] = field(default_factory=dict)
    busy: dict[Connection, Job] = field(default_factory=dict)

    def __enter__(self) -> Pool:
        # Many processes share the cores (and the GPU): each gets one thread.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("spawn")
        for _ in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, self.folder), daemon=True)
            process.start()
            theirs.close()
            self.workers[ours] = process
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.workers.values():
            # A run saves its state and stops at the next step.
            process.terminate()
        ends = time.monotonic() + _GRACE_S
        for process in self.workers.values():
            process.join(max(0.1, ends - time.monotonic()))
            if process.is_alive():
                process.kill()

    @property
    def free(self) -> list[Connection]:
        """Workers that wait."""
        return [connection for connection in self.workers if connection not in self.busy]

    def send(self, connection: Connection, job: Job) -> None:
        """Give a worker that waits a job."""
        connection.send(job)
        self.busy[connection] = job

    def answers(self, timeout_s: float) -> Iterable[tuple[Job, Any]]:
        """What has been finished, waiting for the first one; a text is an error."""
        for connection in wait(list(self.busy), max(0.0, timeout_s)):
            job = self.busy.pop(connection)  # type: ignore[arg-type]
            try:
                yield job, connection.recv()  # type: ignore[union-attr]
            except EOFError:
                del self.workers[connection]  # type: ignore[arg-type]
                yield job, "the process ended"


def choose_epochs(pool: Pool, networks: list[Network], seeds: int, ends: float) -> dict[str, int]:
    """Choose epochs so that the whole grid fits into what is left of the time, from a trial with every worker busy."""
    patterns = ("2:4", "1:4", "1:16")
    for index, connection in enumerate(pool.free):
        cell = Cell("sr-ste", patterns[index // len(networks) % len(patterns)])
        pool.send(connection, Job(networks[index % len(networks)].name, cell, 0, _TRIAL_EPOCHS, trial=True))
    times: dict[str, list[float]] = {network.name: [] for network in networks}
    while pool.busy:
        for job, answer in pool.answers(ends - time.monotonic()):
            if isinstance(answer, str):
                say(f"trial {job.network} {job.cell.name}: {answer}")
            else:
                times[job.network].append(answer)
        if time.monotonic() > ends:
            break
    if not all(times.values()):
        raise SystemExit("a trial failed or did not end in time")
    epoch_s = {name: max(found) for name, found in times.items()}
    left_s = _USED_SHARE * (ends - time.monotonic()) * len(pool.workers) / seeds
    overhead_s = sum(_CELL_OVERHEAD_S * len(cells(network)) for network in networks)
    work_s = sum(_DEARER * epoch_s[network.name] * len(cells(network)) for network in networks)
    epochs = min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, int((left_s - overhead_s) / work_s)))
    say(f"an epoch takes {', '.join(f'{name} {s:.2f} s' for name, s in epoch_s.items())}: {epochs} epochs")
    return dict.fromkeys(epoch_s, epochs)


def train_grid(
    grid: Grid, networks: list[Network], *, seeds: int, epochs: int | None, workers: int, budget_s: float
) -> list[str]:
    """Train what is missing.

    Args:
        grid: Where finished cells lie.
        networks: Which.
        seeds: How many.
        epochs: Of every run; None takes what the finished cells have, or as many as fit.
        workers: Processes.
        budget_s: Seconds after which nothing goes on; runs that are not done are saved.

    Returns:
        What failed, a line each.
    """
    ends = time.monotonic() + budget_s - _GRACE_S
    before = grid.epochs()
    left = [job for job in jobs(networks, seeds) if not grid.file(*job).is_file()]
    if not left:
        return []
    failed: list[str] = []
    with Pool(grid.folder, min(workers, len(left))) as pool:
        chosen = before if epochs is None else dict.fromkeys((network.name for network in networks), epochs)
        if any(network.name not in chosen for network in networks):
            chosen = choose_epochs(pool, networks, seeds, ends) | before
        for name, number in before.items():
            if chosen.get(name, number) != number:
                raise SystemExit(f"{grid.folder / name} holds cells of {number} epochs, not {chosen[name]}")
        total, done, started = len(left), 0, time.monotonic()
        while (left or pool.busy) and time.monotonic() < ends and pool.workers:
            for connection in pool.free:
                job = _take(grid, left)
                if job is None:
                    break
                network, cell, seed = job
                pool.send(connection, Job(network.name, cell, seed, chosen[network.name]))
            if not pool.busy:
                failed += [f"{network.name} {cell.name} seed {seed}: no teacher" for network, cell, seed in left]
                break
            for one, answer in pool.answers(ends - time.monotonic()):
                done += 1
                name = f"{one.network} {one.cell.name} seed {one.seed}"
                if isinstance(answer, str):
                    failed.append(f"{name}: {answer}")
                    say(f"{done}/{total} {name} FAILED: {answer}")
                else:
                    after = time.monotonic() - started
                    say(f"{done}/{total} {name}: {answer.score:.4f}, {answer.seconds:.1f} s, after {after:.0f} s")
        if left or pool.busy:
            say(f"time is up with {len(left) + len(pool.busy)} of {total} runs left")
    return failed


def _take(grid: Grid, left: list[tuple[Network, Cell, int]]) -> tuple[Network, Cell, int] | None:
    """Take the first run whose teacher is there."""
    for index, (network, cell, seed) in enumerate(left):
        if cell.method != DISTILLED or grid.file(network, DENSE, seed).is_file():
            return left.pop(index)
    return None


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
