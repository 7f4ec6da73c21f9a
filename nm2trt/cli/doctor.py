"""`nm2trt doctor`."""

from __future__ import annotations

import os

import click

from nm2trt.cli.json_output import json_option, print_json


@click.command(name="doctor")
@json_option
def command(*, as_json: bool) -> int:
    """Tell what this machine can do: GPU, TensorRT, providers, extras, data sets."""
    # Libraries that are imported to see whether they work must not ask the network for anything.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from nm2trt.errors import EXIT_OK
    from nm2trt.pipelines.doctor import examine_machine

    report = examine_machine()
    if as_json:
        print_json(report.to_json())
    else:
        from nm2trt.cli.render.doctor import print_machine

        print_machine(report)
    return EXIT_OK
