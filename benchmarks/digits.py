"""Accuracy of dense, STE and SR-STE training on the bundled digits, same seeds, default settings.

    python benchmarks/digits.py [--seeds 3] [--pattern 2:4]

The test set has 450 images, so one image is 0.22 points.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from nm2trt.training.config import load_config
from nm2trt.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pattern", default="2:4")
    arguments = parser.parse_args()
    print(f"{'method':8} {'mean':>7}  each seed{'flips a weight':>{9 * arguments.seeds + 8}}")
    for method in ("dense", "ste", "sr-ste"):
        results = []
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(arguments.seeds):
                config = load_config(None, {"method": method, "pattern": arguments.pattern, "seed": seed})
                results.append(train(config, Path(folder) / str(seed)).result)
        accuracies = [100 * result.test_score for result in results]
        flips = statistics.mean(result.sad.flips_per_weight for result in results if result.sad)
        each = "  ".join(f"{value:.2f} %" for value in accuracies)
        print(f"{method:8} {statistics.mean(accuracies):5.2f} %  {each}   {flips:.2f}", flush=True)


if __name__ == "__main__":
    main()
