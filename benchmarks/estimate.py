"""Fit the constants behind `nm2trt estimate` on recorded A100 layers, and say how well they predict layers held back.

    NM2TRT_REFERENCE_DATA=FOLDER python benchmarks/estimate.py [--write] [--plot docs/images/estimate.png]

Cross-validation by shape (all layers of one shape are held back together, in every precision) and by engine. --write
stores the constants in the package.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from estimate_data import Engine, Row, resnet18_rows, unet_engines, unet_rows
from scipy.optimize import least_squares

import nm2trt.estimate as package
from nm2trt.estimate.kernel import KernelConstants, kernel_time

FOLDS = 8
DENSE_SCALE, SPARSE_SCALE, CHOICE_SCALE, PRIOR = 0.06, 0.03, 0.1, 0.15
"""Log errors that count as one; the prior's weight against one such error."""

# Parameter, where it starts and its prior's centre, its physical limit.
PARAMETERS = {
    "efficiency.fp16": (0.8, 0.95),
    "efficiency.int8": (0.8, 0.95),
    "efficiency.tf32": (0.75, 0.95),
    "l2_bytes_per_clock": (30.0, 64.0),
    "memory_efficiency": (0.8, 0.95),
    "epilogue": (0.5, 4.0),
    "kernel_us": (9.0, 20.0),
    "sustained.fp16": (0.85, 1.0),
    "sparse_speedup.fp16": (1.5, 2.0),
    "sparse_speedup.int8": (1.5, 2.0),
    "sparse_split_us": (0.5, 10.0),
}
BOARD = "a100-pcie-40gb"
SPLIT_US = 2.0


def constants_from(values: Sequence[float], gain: dict[str, float]) -> KernelConstants:
    given = dict(zip(PARAMETERS, values, strict=True))
    efficiency = {name: given[f"efficiency.{name}"] for name in ("tf32", "fp16", "int8")}
    fields = {
        "efficiency": efficiency | {"bf16": efficiency["fp16"], "fp8": efficiency["int8"]},
        "sparse_speedup": {
            name: given[f"sparse_speedup.{source}"]
            for name, source in (
                ("tf32", "fp16"),
                ("fp16", "fp16"),
                ("bf16", "fp16"),
                ("int8", "int8"),
                ("fp8", "int8"),
            )
        },
        "profile_us": 0.0,
        "split_us": SPLIT_US,
        "sustained": {BOARD: {"fp16": given["sustained.fp16"]}},
        "clock_gain": {BOARD: gain},
        "spread": {},
        "provenance": {},
    }
    plain = {name: given[name] for name in PARAMETERS if "." not in name}
    return KernelConstants(**(fields | plain))


def predict(row: Row, constants: KernelConstants, *, sparse: bool = False) -> float:
    return kernel_time(row.layer, row.gpu, row.precision, sparse=sparse, constants=constants).total_us


def clock_gains(rows: list[Row]) -> dict[str, float]:
    """Median gain of the layers whose kernel was the same in both engines: not sparsity."""
    gains: dict[str, float] = {}
    for precision in ("fp16", "int8"):
        same = [row.dense_us / row.sparse_us for row in rows if row.chosen is False and row.precision == precision]
        gains[precision] = float(np.median(same)) if same else 1.0
    return gains


def gain_of(row: Row, gain: dict[str, float]) -> float:
    """What the sparse kernel alone gained."""
    return row.dense_us / row.sparse_us / gain[row.precision]


def fit(rows: list[Row]) -> KernelConstants:
    gain = clock_gains(rows)
    start = np.log([begin for begin, _ in PARAMETERS.values()])
    limit = np.log([end for _, end in PARAMETERS.values()])

    def residuals(x: np.ndarray) -> np.ndarray:
        constants = constants_from(np.exp(x), gain)
        errors = []
        for row in rows:
            dense = predict(row, constants)
            errors.append(math.log(dense / row.dense_us) / DENSE_SCALE)
            if row.chosen is not None:
                predicted = math.log(dense / predict(row, constants, sparse=True))
                if row.chosen:
                    errors.append((predicted - math.log(gain_of(row, gain))) / SPARSE_SCALE)
                else:
                    errors.append(max(0.0, predicted) / CHOICE_SCALE)
        return np.concatenate([errors, PRIOR * (x - start)])

    found = least_squares(residuals, start, bounds=(-np.inf, limit), loss="soft_l1", diff_step=1e-3)
    return constants_from(np.exp(found.x), gain)


def cross_validate(rows: list[Row], key: Callable[[Row], object], folds: int) -> dict[int, KernelConstants]:
    """For each row (by index) constants that were fitted without it and without its group."""
    keys = sorted({key(row) for row in rows}, key=repr)
    order = np.random.default_rng(0).permutation(len(keys))
    fold_of = {keys[position]: number % folds for number, position in enumerate(order)}
    result = {}
    for fold in sorted(set(fold_of.values())):
        constants = fit([row for row in rows if fold_of[key(row)] != fold])
        result |= {index: constants for index, row in enumerate(rows) if fold_of[key(row)] == fold}
    return result


def summary(errors: list[float]) -> str:
    absolute = 100 * np.abs(errors)
    return f"{np.median(absolute):5.1f} % {np.quantile(absolute, 0.9):5.1f} % {100 * np.median(errors):+6.1f} %"


def report_layers(rows: list[Row], by_row: dict[int, KernelConstants], title: str) -> dict[str, list[float]]:
    """Print errors by engine; return logs of measured over predicted for the spreads."""
    print(f"\n{title}\n{'':26}{'layers':>6}  {'median':>7} {'p90':>7} {'bias':>8}")
    logs: dict[str, list[float]] = {"dense": [], "sparse": [], "gain": []}
    for engine in sorted({row.engine for row in rows}):
        chosen = [(row, by_row[i]) for i, row in enumerate(rows) if row.engine == engine]
        errors = [predict(row, constants) / row.dense_us - 1 for row, constants in chosen]
        logs["dense"] += [-math.log1p(error) for error in errors]
        print(f"{engine + ' dense':26}{len(errors):6}  {summary(errors)}")
        sparse = [(row, constants) for row, constants in chosen if row.chosen]
        if not sparse:
            continue
        errors = [
            predict(row, c, sparse=True) / c.clock_gain[BOARD][row.precision] / row.sparse_us - 1 for row, c in sparse
        ]
        logs["sparse"] += [-math.log1p(error) for error in errors]
        print(f"{engine + ' sparse':26}{len(errors):6}  {summary(errors)}")
        errors = [
            predict(row, c) / predict(row, c, sparse=True) / gain_of(row, c.clock_gain[BOARD]) - 1 for row, c in sparse
        ]
        logs["gain"] += [-math.log1p(error) for error in errors]
        print(f"{engine + ' dense/sparse':26}{len(errors):6}  {summary(errors)}")
    return logs


def report_choice(rows: list[Row], by_row: dict[int, KernelConstants]) -> None:
    from nm2trt.estimate.choice import expects_sparse, hint_for

    print(f"\n{'sparse kernel expected?':26}{'right':>8}  {'likely':>14} {'open':>14} {'unlikely':>14}")
    for engine in ("unet fp16", "unet int8"):
        right, table = [], {"likely": [0, 0], "open": [0, 0], "unlikely": [0, 0]}
        for index, row in enumerate(rows):
            if row.engine != engine:
                continue
            constants = by_row[index]
            gain = predict(row, constants) / predict(row, constants, sparse=True)
            eligible = row.layer.channels % 4 == 0
            right.append((eligible and expects_sparse(gain)) == row.chosen)
            said = hint_for(gain) if eligible else "unlikely"
            table[said][0] += bool(row.chosen)
            table[said][1] += 1
        cells = " ".join(f"{yes:>4} of {count:>2} ran" for yes, count in table.values())
        print(f"{engine:26}{sum(right):4}/{len(right):<3}  {cells}")


def profile_overhead(engines: list[Engine]) -> float:
    """What profiling adds to a layer: the sum of layers against the whole. Of TensorRT 10, as its users have it."""
    print(f"\n{'engine':18}{'layers':>6} {'sum of layers':>14} {'end to end':>11} {'a layer':>9}")
    each = []
    for engine in engines:
        each.append((engine.profiled_us - engine.end_to_end_us) / engine.layers)
        print(
            f"{engine.name:18}{engine.layers:6} {engine.profiled_us:11.0f} us {engine.end_to_end_us:8.0f} us"
            f" {each[-1]:6.2f} us"
        )
    current = [value for engine, value in zip(engines, each, strict=True) if engine.name.startswith("unet")]
    return float(np.mean(current))


def report_engines(rows: list[Row], by_row: dict[int, KernelConstants]) -> list[float]:
    """Sums over the layers of an engine that was held back: errors that do not average out."""
    logs = []
    print(f"\n{'engine held back, sums':26}{'dense':>9} {'dense/sparse predicted':>24} {'measured':>9}")
    for engine in sorted({row.engine for row in rows}):
        chosen = [(row, by_row[i]) for i, row in enumerate(rows) if row.engine == engine]
        dense = sum(predict(row, constants) for row, constants in chosen)
        logs.append(math.log(sum(row.dense_us for row, _ in chosen) / dense))
        text = f"{engine:26}{100 * math.expm1(-logs[-1]):+8.1f} %"
        if chosen[0][0].chosen is not None:
            sparse = sum(best(row, constants) / gain(row, constants) for row, constants in chosen)
            measured = sum(row.dense_us for row, _ in chosen) / sum(row.sparse_us for row, _ in chosen)
            text += f" {dense / sparse:23.3f}x {measured:8.3f}x"
        print(text)
    return logs


def best(row: Row, constants: KernelConstants) -> float:
    """Time of the kernel that the builder is expected to choose."""
    from nm2trt.estimate.choice import expects_sparse

    dense, sparse = predict(row, constants), predict(row, constants, sparse=True)
    return sparse if row.layer.channels % 4 == 0 and expects_sparse(dense / sparse) else dense


def gain(row: Row, constants: KernelConstants) -> float:
    return constants.clock_gain[BOARD][row.precision]


def spreads(logs: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "low": round(float(np.exp(min(0, np.quantile(values, 0.1)))), 3),
            "high": round(float(np.exp(max(0, np.quantile(values, 0.9)))), 3),
        }
        for name, values in logs.items()
    }


def rounded(constants: KernelConstants, **update) -> KernelConstants:
    def short(value: object) -> object:
        if isinstance(value, tuple):
            return [short(entry) for entry in value]
        if isinstance(value, dict):
            return {key: short(entry) for key, entry in value.items()}
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return KernelConstants.model_validate(short(constants.model_dump() | update))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("NM2TRT_REFERENCE_DATA"))
    parser.add_argument("--write", action="store_true", help="store the constants in the package")
    parser.add_argument("--plot", type=Path, help="draw predicted against measured")
    arguments = parser.parse_args()
    if not arguments.data or not Path(arguments.data).is_dir():
        parser.error("give the folder of recorded data: --data FOLDER or NM2TRT_REFERENCE_DATA")
    folder = Path(arguments.data)
    rows = unet_rows(folder)
    more, engines, left_out = resnet18_rows(folder)
    rows += more
    print(f"{len(rows)} layers; left out: {'; '.join(left_out)}")
    constants = fit(rows)
    print("constants:", ", ".join(f"{name} {value:.3g}" for name, value in flat(constants)))
    report_layers(rows, dict.fromkeys(range(len(rows)), constants), "in sample (fitted and tested on every layer)")
    held_out = cross_validate(rows, lambda row: row.group, FOLDS)
    logs = report_layers(rows, held_out, f"held back by shape, {FOLDS} folds")
    report_choice(rows, held_out)
    by_engine = cross_validate(rows, lambda row: row.engine, len({row.engine for row in rows}))
    report_layers(rows, by_engine, "held back by engine")
    report_choice(rows, by_engine)
    sums = report_engines(rows, by_engine)
    overhead = profile_overhead([*unet_engines(rows), *engines])
    flops = [row.layer.flops for row in rows]
    final = rounded(
        constants,
        profile_us=overhead,
        spread=spreads(logs),
        covered_flops=(float(min(flops)), float(max(flops))),
        provenance={
            "layers": f"{len(rows)} layers of 5 engines, A100 40 and 80 GB PCIe, TensorRT 8.x and 10.16, batch 32",
            "method": "benchmarks/estimate.py: least squares on log times, soft L1; spreads held back by shape",
        },
    )
    from estimate_published import report_published

    # Few whole networks are known: their largest error counts, either way.
    whole = float(np.exp(np.max(np.abs([*sums, *report_published(final)]))))
    print(f"\nspread of a whole network: {100 * (whole - 1):.0f} %, its largest error here")
    final = rounded(final, spread=final.model_dump()["spread"] | {"total": {"low": 1 / whole, "high": whole}})
    if arguments.write:
        path = Path(package.__file__).parent / "constants.json"
        path.write_text(json.dumps(final.model_dump(), indent=1) + "\n")
        print(f"wrote {path}")
    if arguments.plot:
        from estimate_plot import draw

        draw(rows, held_out, predict, arguments.plot)
    return 0


def flat(fields: KernelConstants) -> list[tuple[str, float]]:
    values = [(f"efficiency.{name}", fields.efficiency[name]) for name in ("fp16", "int8", "tf32")]
    names = ("l2_bytes_per_clock", "memory_efficiency", "epilogue", "kernel_us", "sparse_split_us")
    values += [(f"sparse_speedup.{name}", fields.sparse_speedup[name]) for name in ("fp16", "int8")]
    values += [(name, getattr(fields, name)) for name in names]
    values += [(f"sustained.{name}", value) for name, value in fields.sustained[BOARD].items()]
    return [*values, *((f"clock_gain.{name}", value) for name, value in fields.clock_gain[BOARD].items())]


if __name__ == "__main__":
    sys.exit(main())
