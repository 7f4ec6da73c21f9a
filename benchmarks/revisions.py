"""Two revisions side by side: what the same commands cost before and after.

    python benchmarks/revisions.py OLD [NEW] [--rounds 5]

Each revision is laid out as its wheel would be, in a temporary folder, and both run with this environment's Python and
libraries; every round runs each command once in each, in shuffled order. Ratios are new against old, medians with the
range over the rounds, by the clock and in processor time of the command with its children; below 1 is better.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
_MOVED = ("training", "calibration")


class Cost(NamedTuple):
    """Of one command, in seconds."""

    wall_s: float
    processor_s: float


class Command(NamedTuple):
    """What is measured; `{new}` in an argument stands for a name that nothing has yet."""

    name: str
    arguments: tuple[str, ...]


COMMANDS = (
    Command("--help", ("--help",)),
    Command("verify, ONNX", ("verify", "build/model.onnx")),
    Command("verify, checkpoint", ("verify", "run")),
    Command("export fp16, no builder", ("export", "run", "--precision", "fp16", "--builder", "none", "-o", "{new}")),
    Command(
        "calibrate", ("calibrate", "build/model.onnx", "--data", "digits", "--builder", "none", "-o", "{new}.onnx")
    ),
    Command("train, two epochs", ("train", "--epochs", "2", "--device", "cpu", "-o", "{new}")),
)


def lay_out(revision: str, folder: Path) -> Path:
    """Write a revision's packages where Python finds them as in a wheel."""
    archive = subprocess.run(
        ["git", "archive", revision, "nm2trt", *_MOVED], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    for name in _MOVED:
        shutil.move(folder / name, folder / "nm2trt" / name)
    return folder


def run(arguments: tuple[str, ...], code: Path, cwd: Path) -> Cost:
    """Run one command with one revision's code; a command that fails ends the measurement.

    Raises:
        SystemExit: It failed; its last lines are printed.
    """
    environment = {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "nm2trt", *arguments], cwd=cwd, env=environment, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.perf_counter() - started
        if process.returncode != 0:
            output.seek(0)
            printed = output.read()[-2000:].decode(errors="replace")
            sys.exit(f"{code.name}: nm2trt {' '.join(arguments)}: exit {process.returncode}\n{printed}")
    return Cost(wall_s, usage.ru_utime + usage.ru_stime)


def measure(
    codes: dict[str, Path], folder: Path, rounds: int, say: Callable[[str], object]
) -> dict[str, list[list[Cost]]]:
    """Costs of each command: for every round, of each revision in the order of `codes`."""
    for name, code in codes.items():
        work = folder / f"work-{name}"
        work.mkdir()
        run(("train", "--epochs", "2", "--device", "cpu", "-o", "run"), code, work)
        run(("export", "run", "--builder", "none", "--precision", "fp32", "-o", "build"), code, work)
    order = random.Random(0)
    costs: dict[str, list[list[Cost]]] = {command.name: [] for command in COMMANDS}
    for number in range(rounds):
        for command in COMMANDS:
            round_costs = {}
            for name in order.sample(list(codes), len(codes)):
                arguments = tuple(part.format(new=f"new-{number}") for part in command.arguments)
                # Names repeat from command to command.
                work = folder / f"work-{name}"
                for path in work.glob("new-*"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                round_costs[name] = run(arguments, codes[name], work)
            costs[command.name].append([round_costs[name] for name in codes])
        say(f"round {number + 1} of {rounds}")
    return costs


def table(costs: dict[str, list[list[Cost]]]) -> list[str]:
    """Markdown rows."""
    lines = [
        "| command | old, processor s | new, processor s | ratio, processor | ratio, wall |",
        "|---|---|---|---|---|",
    ]
    for name, rounds in costs.items():
        old, new = ([pair[side].processor_s for pair in rounds] for side in (0, 1))
        ratios = []
        for kind in ("processor_s", "wall_s"):
            each = [getattr(pair[1], kind) / getattr(pair[0], kind) for pair in rounds]
            ratios.append(f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})")
        medians = [f"{statistics.median(values):.2f}" for values in (old, new)]
        lines.append("| " + " | ".join([name, *medians, *ratios]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        codes = {side: lay_out(getattr(arguments, side), folder / side) for side in ("old", "new")}
        costs = measure(codes, folder, arguments.rounds, lambda line: print(line, file=sys.stderr))
    print(f"load before: {os.getloadavg()[2]:.1f}; {arguments.rounds} rounds; {arguments.old} against {arguments.new}")
    print("\n".join(table(costs)))


if __name__ == "__main__":
    main()
