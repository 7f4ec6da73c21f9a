"""How long `nm2trt --help` takes beside a bare click program, run in turn in fresh processes.

    python benchmarks/startup.py [--runs 30]

Prints the median wall time of each and the ratio of the pairs. Goal: below 2.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

BARE = """
import click

@click.group()
def cli():
    pass

for name in ("train", "verify", "prune", "export", "profile", "demo", "doctor"):
    cli.command(name)(lambda: None)

cli(["--help"])
"""


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(arguments, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    runs = parser.parse_args().runs
    bare = [sys.executable, "-c", BARE]
    ours = [sys.executable, "-m", "nm2trt", "--help"]
    seconds(bare), seconds(ours)
    pairs = [(seconds(bare), seconds(ours)) for _ in range(runs)]
    ratios = sorted(ours_s / bare_s for bare_s, ours_s in pairs)
    print(f"bare click     {1e3 * statistics.median(bare_s for bare_s, _ in pairs):7.1f} ms")
    print(f"nm2trt --help  {1e3 * statistics.median(ours_s for _, ours_s in pairs):7.1f} ms")
    print(f"ratio          {statistics.median(ratios):7.2f}   (of {runs} pairs: {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
