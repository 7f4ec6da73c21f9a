"""The paper's comparison and the methods after it: paired differences over seeds, on two small networks.

    python benchmarks/paper.py --minutes 600 --jobs 2            # train what is missing
    python benchmarks/paper.py --minutes 0 --write docs/results.md
    python benchmarks/paper.py --networks cmudict-part --epochs 4 --folder build/paper-cpu    # an hour of a CPU
    python benchmarks/paper.py --from docs/results.json build/paper-cpu --write docs/results.md

Every finished run is a small JSON below --folder that is never computed again; a run that was interrupted goes on from
its last epoch. The processes run at low priority with a thread each. Without --epochs, the first runs are timed and the
schedule chosen so that all seeds fit into --minutes (4 to 12 epochs). --write makes the page, and beside it
results.json with all cells, those of a CPU in results-cpu.json where there are others.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from paper_grid import NETWORKS, Grid
from paper_runs import say, train_grid


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="fashion-mnist,cmudict", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=120, help="0 trains nothing")
    parser.add_argument("--budget-s", type=float, help="the same in seconds")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="processes")
    parser.add_argument("--folder", type=Path, default=Path("build/paper"))
    parser.add_argument(
        "--from", type=Path, nargs="+", dest="sources", help="files of results and folders in place of --folder"
    )
    parser.add_argument("--write", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    networks = [NETWORKS[name] for name in options.networks.split(",")]
    grid = Grid(options.folder)
    failed: list[str] = []
    budget_s = 60 * options.minutes if options.budget_s is None else options.budget_s
    if budget_s > 0 and options.sources is None:
        failed = train_grid(
            grid, networks, seeds=options.seeds, epochs=options.epochs, workers=options.jobs, budget_s=budget_s
        )
        say(f"{len(grid.results())} cells in {options.folder}")
    if options.write:
        from paper_page import write_page

        write_page(options.write, options.sources or [options.folder])
    for line in failed:
        say(f"failed: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
