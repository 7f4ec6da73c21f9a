"""How much of the gap between N:M and unstructured pruning a channel permutation recovers, and how long it takes.

    python benchmarks/permute.py [--seconds 0.1 1 5] [--seeds 5] [--onnx MODEL.onnx --onnx-seconds 20]

On random 64x128 matrices, 2:4: Pool & Yu's example (NVIDIA apex, permutation_tests/README; one particular matrix) has
unstructured 3060.2, plain 2:4 2852.4 and, by the best of their searches, 2921.9: a third of the gap. The random
matrices here are uniform, as theirs seems to be by these sums, and normal. Work is counted in operations, so results
are the same on every machine; the seconds are what this machine took.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nm2trt.pattern import NMPattern
from nm2trt.prune.permutation.search import OPERATIONS_PER_SECOND, find_order, kept_score

SHAPES = ((64, 128), (1152, 256), (4608, 512), (512, 2048))


def gap_recovered(weight: np.ndarray, pattern: NMPattern, seconds: float) -> tuple[float, float]:
    count = weight.size // pattern.m * pattern.n
    bound = float(np.sort(weight.reshape(-1))[weight.size - count :].sum())
    plain = kept_score(weight, pattern)
    started = time.perf_counter()
    order = find_order(weight, pattern, work=seconds * OPERATIONS_PER_SECOND)
    took = time.perf_counter() - started
    return (kept_score(weight, pattern, order) - plain) / (bound - plain), took


def matrices(seconds: list[float], seeds: int) -> None:
    print("distribution  shape      N:M   asked s  took s  gap recovered (median of seeds, lowest)")
    for name in ("uniform", "normal"):
        for shape in SHAPES:
            for text in ("2:4", "1:4", "2:8") if shape == (64, 128) else ("2:4",):
                for budget in seconds:
                    found = []
                    for seed in range(seeds if shape == (64, 128) else 1):
                        rng = np.random.default_rng(seed)
                        weight = rng.random(shape) if name == "uniform" else np.abs(rng.standard_normal(shape))
                        found.append(gap_recovered(weight, NMPattern.parse(text), budget))
                    gains = [gain for gain, _ in found]
                    took = statistics.median(took for _, took in found)
                    print(
                        f"{name:12}  {shape[0]:4}x{shape[1]:<5} {text}  {budget:7.1f} {took:7.2f}  "
                        f"{100 * statistics.median(gains):5.1f} % ({100 * min(gains):.1f} %)"
                    )


def network(model: Path, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        command = [sys.executable, "-m", "nm2trt", "prune", str(model), "-o", str(out), "--json", "--permute"]
        started = time.perf_counter()
        result = subprocess.run(
            [*command, "--permute-seconds", str(seconds)], capture_output=True, text=True, check=True
        )
        took = time.perf_counter() - started
    document = json.loads(result.stdout)
    totals, permutation = document["totals"], document["permutation"]
    gap = totals["kept_unstructured"] - totals["kept_unpermuted"]
    moved = sum(group["permuted"] for group in permutation["groups"])
    shares = [100 * totals[key] for key in ("kept_unpermuted", "kept", "kept_unstructured")]
    won = 100 * (totals["kept"] - totals["kept_unpermuted"]) / gap
    print(
        f"{model.name}: kept {shares[0]:.2f} % -> {shares[1]:.2f} % (unstructured {shares[2]:.2f} %), "
        f"{won:.1f} % of the gap; {moved} of {len(permutation['groups'])} groups moved; "
        f"outputs {permutation['outputs']}; {took:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.1, 1.0, 5.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--onnx", type=Path, nargs="*", default=[])
    parser.add_argument("--onnx-seconds", type=float, default=20.0)
    options = parser.parse_args()
    for model in options.onnx:
        network(model, options.onnx_seconds)
    matrices(options.seconds, options.seeds)


if __name__ == "__main__":
    main()
