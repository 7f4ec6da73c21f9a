"""`nm2trt verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import check_plot, layer_pattern
from nm2trt.cli.json_output import json_option, print_json
from nm2trt.cli.render.status import show_status

if TYPE_CHECKING:
    from nm2trt.pipelines.verify import CheckResult


@click.command(name="verify")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option(
    "--pattern",
    metavar="N:M",
    help="Check every layer by it; auto: the strongest that it holds. Default: what the file says, else 2:4.",
)
@click.option("--layer", "layers", multiple=True, metavar="GLOB=N:M", help="Another pattern for these layers.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not check these layers.")
@click.option("--require", multiple=True, metavar="GLOB", help="These layers must conform.")
@click.option("--strict", is_flag=True, help="Every prunable layer must conform, and every weight be checked.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="F", help="Write a JUnit XML file for CI, too.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="F.png",
    help="Draw non-zeros per group, layer by layer (one PATH).",
)
@click.option(
    "--model-card",
    "card",
    is_flag=False,
    flag_value="",
    metavar="[F.md]",
    help="Write the result into a Hugging Face model card, too: PATH's README.md (one PATH), or F.md. "
    "What others wrote there stays.",
)
@json_option
def command(
    paths: tuple[Path, ...], *, layers: tuple[str, ...], junit: Path | None, plot: Path | None, card: str | None,
    as_json: bool, **options: Any,
) -> int:  # fmt: skip
    """Check every layer of a checkpoint or ONNX file against an N:M pattern.

    PATH is a .safetensors, .pt, .npz or .onnx file, a run folder (its checkpoint), a build folder (its
    model.onnx) or a Hugging Face folder. Code inside a .pt file is never run.
    GLOBs match tensor and node names: 'layer3.*', '*.fc?'.

    The pattern is counted in groups of M along the axis that the hardware uses: input channels of a
    convolution, K of a matrix product. The TensorRT column says whether a layer may get a sparse kernel at
    all; which kernel runs, and whether it is faster, only a build and `nm2trt profile` can tell.

    \b
    Exit 1: a layer violates its pattern, has it along the wrong axis or has a zero point that is not 0;
            a required layer, or with --strict any prunable one, does not conform; with --strict, a tensor that
            may be a weight was not checked; or none conforms.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK
    from nm2trt.pipelines.verify import VerifyConfig, draw_sparsity, verify_file

    _check_files(paths, junit, plot)
    if card is not None:
        _check_card(paths, card)
    config = VerifyConfig(layer_patterns=dict(layer_pattern(text) for text in layers), **options)
    with show_status("opening") as progress:
        results = [verify_file(path, config, progress=progress) for path in paths]
        if card is not None:
            from nm2trt.pipelines.model_card import write_model_card

            write_model_card(paths[0], results[0], config, card=Path(card) if card else None, progress=progress)
    if junit is not None:
        from nm2trt.cli.render.junit import write_junit

        write_junit(results, junit)
    if plot is not None:
        draw_sparsity(paths[0], results[0], plot)
    _print(results, as_json=as_json)
    return EXIT_OK if all(result.verdict == "pass" for result in results) else EXIT_BAD_VERDICT


def _check_files(paths: tuple[Path, ...], junit: Path | None, plot: Path | None) -> None:
    if junit is not None:
        from nm2trt.cli.render.junit import check_target

        check_target(junit)
    if plot is not None:
        _check_plot(plot, paths)


def _check_card(paths: tuple[Path, ...], card: str) -> None:
    from nm2trt.errors import ConfigError
    from nm2trt.pipelines.model_card import card_path

    if len(paths) > 1:
        raise ConfigError(f"is of one PATH, not {len(paths)}", where="--model-card", hint="run once for each")
    card_path(paths[0], Path(card) if card else None)


def _check_plot(plot: Path, paths: tuple[Path, ...]) -> None:
    from nm2trt.errors import ConfigError

    if len(paths) > 1:
        raise ConfigError(f"draws one PATH, not {len(paths)}", where=f"--plot {plot}", hint="run once for each")
    check_plot(plot)


def _print(documents: list[CheckResult], *, as_json: bool) -> None:
    if as_json:
        from nm2trt.pipelines.verify import results_json

        print_json(results_json(documents))
        return
    from nm2trt.cli.render.verify import print_check_result

    for document in documents:
        print_check_result(document)
