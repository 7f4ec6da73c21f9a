"""Choose and fit the model behind `nm2trt estimate`, and say how well it does on what was held back.

    NM2TRT_REFERENCE_DATA=FOLDER python benchmarks/estimate.py [--write] [--plot docs/images/estimate.png]

Whole engines, whole GPUs and whole shapes are held back in turn; the candidate with the smallest errors there is
taken. Ranges come from errors held back, and their coverage is counted where the group's own errors were left out of
the range, too. --write stores the constants in the package.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from estimate_errors import (
    Error,
    groups_of,
    halves_held_back,
    held_back,
    score,
    shape_folds,
    values,
)
from estimate_fit import Candidate, Fit, candidates
from estimate_points import Point, read_points
from estimate_ranges import RICHEST, by_family, by_group, ranges, reliability, report_coverage, report_halves
from estimate_vector import check

import nm2trt.estimate as package
from nm2trt.estimate.constants import KernelConstants, Spread

ODD_ENGINE = "unet int8"
"""Every second layer of it was recorded."""
FOLD_STARTS, STARTS = 1, 8


def compare_candidates(points: Sequence[Point]) -> tuple[Candidate, dict[str, list[Error]]]:
    """Print every candidate's errors on what was held back; the best, with these errors by what was held back."""
    print(f"\n{'held back:':24}{'engine':>17}{'GPU':>17}{'shape':>17}{'UNet INT8 by shape':>22}{'choice':>9}")
    print(f"{'median errors, %':24}" + f"{'dense':>9}{'ratio':>8}" * 3 + f"{'dense':>14}{'sparse':>8}")
    tried: list[tuple[Candidate, dict[str, list[Error]]]] = []
    for candidate in candidates():
        errors = {
            "engine": held_back(candidate, points, by_group, FOLD_STARTS),
            "gpu": held_back(candidate, points, by_family, FOLD_STARTS),
            "shape": held_back(candidate, points, shape_folds(points), FOLD_STARTS),
        }
        unet = [error for error in errors["shape"] if error.point.engine == ODD_ENGINE]
        cells = "".join(f"{score(some, 'dense'):9.1f}{score(some, 'ratio'):8.1f}" for some in errors.values())
        print(
            f"{candidate.name:24}{cells}{score(unet, 'dense'):14.1f}{score(unet, 'sparse'):8.1f}{choice(errors):9.2f}",
            flush=True,
        )
        tried.append((candidate, errors))
    best = min(tried, key=lambda one: choice(one[1]))
    print(f"\ntaken: {best[0].name} (mean of all columns but the UNet's; GPUs without the {RICHEST})")
    report_steadiness(tried)
    return best


def choice(errors: dict[str, list[Error]], without: str = "") -> float:
    """Mean error in percent that a candidate is chosen by; one group may have no say."""
    unseen = [error for error in errors["gpu"] if error.point.family != RICHEST]
    scored = ([e for e in some if e.point.group != without] for some in (errors["engine"], unseen, errors["shape"]))
    return float(np.mean([score(some, what) for some in scored for what in ("dense", "ratio")]))


def report_steadiness(tried: Sequence[tuple[Candidate, dict[str, list[Error]]]]) -> None:
    """Which candidates are taken when one group after the other has no say."""
    groups = sorted({error.point.group for error in tried[0][1]["engine"]})
    taken = [min(tried, key=lambda one, group=group: choice(one[1], group))[0].name for group in groups]
    counts = ", ".join(f"{name} {taken.count(name)}" for name in dict.fromkeys(taken))
    print(f"without one of {len(groups)} groups: {counts}")


def report_errors(errors: dict[str, list[Error]]) -> None:
    print(f"\n{'':44}{'dense':>24}{'ratio':>26}")
    print(f"{'held back':34}{'points':>8}" + f"{'bias':>10}{'median':>8}{'p90':>8}" * 2)
    for label, key in (("engine", by_group), ("gpu", by_group), ("shape", by_group)):
        for group, some in groups_of(errors[label], key).items():
            cells = ""
            for what in ("dense", "ratio"):
                known = 100 * np.array(values(some, what))
                if len(known):
                    size = np.abs(known)
                    cells += f"{np.median(known):+9.1f}%{np.median(size):7.1f}%{np.quantile(size, 0.9):7.1f}%"
                else:
                    cells += " " * 26
            print(f"{label + ': ' + group[:25]:34}{len(some):8}{cells}")


def report_choice(errors: list[Error]) -> None:
    """Whether the builder took the sparse kernel, against what the estimate would have said."""
    from nm2trt.estimate.choice import expects_sparse, hint_for

    print(f"\n{'sparse kernel expected?':26}{'right':>8}  {'likely':>14} {'open':>14} {'unlikely':>14}")
    for engine in ("unet fp16", "unet int8"):
        right, table = [], {"likely": [0, 0], "open": [0, 0], "unlikely": [0, 0]}
        for error in errors:
            if error.point.engine != engine:
                continue
            eligible = error.point.parts[0].layer.channels % 4 == 0
            right.append((eligible and expects_sparse(error.predicted_ratio)) == error.point.chosen)
            said = hint_for(error.predicted_ratio) if eligible else "unlikely"
            table[said][0] += bool(error.point.chosen)
            table[said][1] += 1
        cells = " ".join(f"{yes:>4} of {count:>2} ran" for yes, count in table.values())
        print(f"{engine:26}{sum(right):4}/{len(right):<3}  {cells}")


def report_constants(
    candidate: Candidate, points: Sequence[Point], constants: KernelConstants
) -> dict[str, list[float]]:
    """Print every constant with the range that it took when groups were held back."""
    taken = dict(zip(candidate.free, _free(candidate, constants), strict=True))
    spread: dict[str, list[float]] = {name: [] for name in taken}
    for group in sorted({point.group for point in points}):
        x, _ = Fit(candidate, [point for point in points if point.group != group]).run(FOLD_STARTS)
        for name, value in zip(candidate.free, np.exp(x), strict=True):
            spread[name].append(float(value))
    print(f"\n{'constant':26}{'value':>10}{'without one engine':>24}")
    for name, value in taken.items():
        print(f"{name:26}{value:10.3f}{min(spread[name]):14.3f} to {max(spread[name]):.3f}")
    for name, value in candidate.fixed.items():
        print(f"{name:26}{value!s:>10}   fixed")
    return {name: [float(f"{min(some):.4g}"), float(f"{max(some):.4g}")] for name, some in spread.items()}


def _free(candidate: Candidate, constants: KernelConstants) -> list[float]:
    fields = constants.model_dump()
    found = []
    for name in candidate.free:
        value = fields
        for key in name.split("."):
            value = value[key]
        found.append(float(value))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("NM2TRT_REFERENCE_DATA"))
    parser.add_argument("--write", action="store_true", help="store the constants in the package")
    parser.add_argument("--plot", type=Path, help="draw predicted against measured, and the ranges' reliability")
    arguments = parser.parse_args()
    if not arguments.data or not Path(arguments.data).is_dir():
        parser.error("give the folder of recorded data: --data FOLDER or NM2TRT_REFERENCE_DATA")
    points, left_out = read_points(Path(arguments.data))
    print(f"{len(points)} points; left out: {'; '.join(left_out)}")
    candidate, errors = compare_candidates(points)
    _, constants = Fit(candidate, points).run(STARTS)
    check(points, constants)
    moved = report_constants(candidate, points, constants)
    report_errors(errors)
    report_choice(errors["shape"])
    final = finished(constants, candidate, points, ranges(errors), moved)
    report_coverage(errors, final)
    report_halves(halves_held_back(candidate, points, ODD_ENGINE, FOLD_STARTS), final)
    from estimate_gpu_files import report_gpu_files
    from estimate_published import report_published

    report_published(final)
    report_gpu_files(Path(__file__).resolve().parents[1] / "docs", final)
    if arguments.write:
        path = Path(package.__file__).parent / "constants.json"
        path.write_text(json.dumps(final.model_dump(exclude_defaults=True), indent=1) + "\n")
        print(f"wrote {path}")
    if arguments.plot:
        from estimate_plot import draw

        draw(errors, reliability(errors, final), arguments.plot)
    return 0


def finished(
    constants: KernelConstants,
    candidate: Candidate,
    points: Sequence[Point],
    found: dict[str, Spread],
    moved: dict[str, list[float]],
) -> KernelConstants:
    """Constants as the package stores them: rounded, with ranges, sources and what moved them."""
    flops = [part.layer.flops for point in points if point.kind == "layer" for part in point.parts]

    def short(value: object) -> object:
        if isinstance(value, list | tuple):
            return [short(entry) for entry in value]
        if isinstance(value, dict):
            return {key: short(entry) for key, entry in value.items()}
        return float(f"{value:.4g}") if isinstance(value, float) else value

    layers = sum(point.kind == "layer" for point in points)
    provenance = {
        "layers": f"{layers} layers of 7 engines (A100 PCIe, RTX 3090),"
        f" {sum(point.kind == 'product' for point in points)} products (A100, H100, RTX 3090),"
        f" {sum(point.kind == 'network' for point in points)} networks (A100, L4), TensorRT 8.2 to 10.16",
        "method": f"benchmarks/estimate.py, model '{candidate.name}': least squares on log times, soft L1; ranges from"
        " errors of engines and GPUs held back",
    }
    update = {
        "spread": {name: spread.model_dump() for name, spread in found.items()},
        "moved": moved,
        "boards": sorted({point.gpu.key for point in points if point.family == RICHEST}),
        "covered_flops": (float(min(flops)), float(max(flops))),
        "provenance": provenance,
    }
    return KernelConstants.model_validate(short(constants.model_dump() | update))


if __name__ == "__main__":
    sys.exit(main())
