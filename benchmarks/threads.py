"""How long `nm2trt train` takes beside other work: threads that spin, threads that sleep, and what is chosen by itself.

Each variant trains the embedded digits alone and beside one busy loop on every core. "spinning" is what torch does by
itself: every core, and idle threads turn for a while before they sleep.

    python benchmarks/threads.py --epochs 30 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nm2trt.threads import available_cpus

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# What GNU OpenMP takes where nothing is said.
SPINS = "300000"


def variants() -> dict[str, tuple[list[str], dict[str, str]]]:
    every_core = ["--threads", str(available_cpus())]
    return {
        "before: every core, spinning": (every_core, {"GOMP_SPINCOUNT": SPINS}),
        "every core, sleeping": (every_core, {}),
        "now: chosen by the work": ([], {}),
    }


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def train(options: list[str], environment: dict[str, str], arguments: argparse.Namespace) -> tuple[float, float, str]:
    """Seconds by the clock, seconds of processor time, and the threads that the run says it used."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "nm2trt", "train", "--model", arguments.model, "--device", "cpu"]
        command += ["--epochs", str(arguments.epochs), "--warmup-epochs", "0", *options, "-o", str(run)]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, env=clean | environment, check=True, stdout=subprocess.DEVNULL)
        clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        threads = json.loads((run / "run.json").read_text())["threads"]
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return clock, processor, f"{threads['threads']} ({threads['source']}, {threads['waiting']})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # The busy loops must not outlive this script.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    cores = available_cpus()
    print(f"{arguments.model} on digits, {arguments.epochs} epochs, {cores} cores, median of {arguments.rounds} rounds")
    print("| variant | threads | alone: clock | processor | beside a busy loop a core: clock | processor |")
    print("|---|---|---|---|---|---|")
    found: dict[str, list[tuple[float, float, str]]] = {}
    for _ in range(arguments.rounds):
        for loops in (0, cores):
            # The loops of other variants are gone, and each variant meets the machine in the same round.
            for name, (options, environment) in variants().items():
                with busy_loops(loops):
                    found.setdefault(f"{name}/{loops}", []).append(train(options, environment, arguments))
                clock, processor, threads = found[f"{name}/{loops}"][-1]
                print(
                    f"{name}, {loops} busy loops: {clock:.1f} s, processor {processor:.1f} s, threads {threads}",
                    file=sys.stderr,
                    flush=True,
                )
    baseline = None
    for name in variants():
        cells = [name, found[f"{name}/0"][0][2]]
        for loops in (0, cores):
            cells += [f"{statistics.median(row[part] for row in found[f'{name}/{loops}']):.1f} s" for part in (0, 1)]
        print("| " + " | ".join(cells) + " |")
        beside = statistics.median(row[0] for row in found[f"{name}/{cores}"])
        baseline = baseline or beside
        print(f"  beside other work {baseline / beside:.2f}x as fast as before", file=sys.stderr)


if __name__ == "__main__":
    main()
