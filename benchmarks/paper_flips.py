"""The paper's finding in two minutes: the decay of SR-STE keeps masks from flipping.

    python benchmarks/paper_flips.py [--seeds 0] [--images 20000] [--epochs 2] [--json]

Trains resnet8 2:4 on part of Fashion-MNIST by STE and by SR-STE with lambda 2e-4 and 2e-3, with the settings of
paper.py, a process with one thread for each run. Prints how often a weight changed sides over all optimizer steps; the
exit code is 1 unless every seed has them in the order STE, 2e-4, 2e-3. `tests/training/test_paper_flips.py` runs this.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from paper_data import part_of
from paper_grid import Cell, settings

from nm2trt.data import DataSet, load_data

CELLS = (Cell("ste", "2:4"), Cell("sr-ste", "2:4", 2e-4), Cell("sr-ste", "2:4", 2e-3))
IMAGES = "NM2TRT_PAPER_FLIPS_IMAGES"
TEST_IMAGES = 1000


def part() -> DataSet:
    """Fashion-MNIST's first images; `--data paper_flips:part`."""
    return part_of(load_data("fashion-mnist"), range(int(os.environ[IMAGES])), range(TEST_IMAGES))


def flips_per_weight(cell: Cell, seed: int, epochs: int) -> float:
    """Train one cell in this process."""
    import torch

    from nm2trt.training.run import train

    torch.set_num_threads(1)
    config = settings(cell, seed, data="paper_flips:part", model="resnet8", epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        sad = train(config, Path(folder) / "run").result.sad
    assert sad is not None
    return sad.flips_per_weight


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ[IMAGES] = str(arguments.images)
    jobs = [(cell, seed, arguments.epochs) for seed in arguments.seeds for cell in CELLS]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=len(CELLS), mp_context=spawn) as pool:
        found = list(pool.map(flips_per_weight, *zip(*jobs, strict=True)))
    rows = [found[start : start + len(CELLS)] for start in range(0, len(found), len(CELLS))]
    if arguments.json:
        print(json.dumps({str(seed): row for seed, row in zip(arguments.seeds, rows, strict=True)}))
    else:
        print("flips a weight   STE   SR-STE 2e-4   SR-STE 2e-3")
        for seed, (ste, weak, strong) in zip(arguments.seeds, rows, strict=True):
            print(f"seed {seed:<10} {ste:5.3f}   {weak:11.3f}   {strong:11.3f}")
    return 0 if all(ste > weak > strong for ste, weak, strong in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
