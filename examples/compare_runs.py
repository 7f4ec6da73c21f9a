"""Draw runs beside each other, method against method: mask flips, SAD, score over the steps.

python examples/compare_runs.py runs/ste runs/sr-ste runs/dense -o compared.png
python examples/compare_runs.py --labels STE SR-STE -o compared.png -- runs/ste runs/sr-ste
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nm2trt.errors import Nm2trtError
from nm2trt.report.compared_runs import read_run_curves, write_comparison_png


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="Folders of nm2trt train.")
    parser.add_argument("--labels", nargs="+", help="One for each run; default: method, pattern and lambda.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write.")
    arguments = parser.parse_args()
    if arguments.labels and len(arguments.labels) != len(arguments.runs):
        parser.error(f"{len(arguments.labels)} labels for {len(arguments.runs)} runs")
    labels = arguments.labels or [""] * len(arguments.runs)
    try:
        curves = [read_run_curves(run, label) for run, label in zip(arguments.runs, labels, strict=True)]
    except Nm2trtError as error:
        print(f"compare_runs: error: {error}", file=sys.stderr)
        return error.exit_code
    write_comparison_png(curves, arguments.output)
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
