"""`nm2trt compare`: two reports side by side."""

from __future__ import annotations

from pathlib import Path

import click

from nm2trt.cli.json_output import json_option, print_json

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("first", metavar="REPORT_A|ESTIMATE", type=_PATH)
@click.argument("second", metavar="REPORT_B", type=_PATH)
@json_option
def command(first: Path, second: Path, as_json: bool) -> int:
    """Set two reports of `nm2trt profile` side by side, or an estimate beside a report.

    Both are folders (or their report.json). The ratio dense/sparse of one report can be held against the other's: it
    was measured in turns. Times of two reports were not, so their quotients are no finding and carry no verdict.

    ESTIMATE is a file that `nm2trt estimate --json` printed: the output says how far it was off, end to end and layer
    by layer, and whether the measured values lie in its ranges. --json holds all that is needed to fit on it.
    """
    from nm2trt.errors import EXIT_OK
    from nm2trt.pipelines.compare import CompareConfig, compare_files

    found = compare_files(CompareConfig(first=first, second=second))
    if as_json:
        print_json(found.to_json())
    else:
        from nm2trt.cli.render.compare import print_comparison

        print_comparison(found)
    return EXIT_OK
