"""`nm2trt verify`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import layer_pattern, stderr_console
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from nm2trt.layers import LayerWeight
    from nm2trt.verify import CheckResult


@click.command(name="verify")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option(
    "--pattern",
    metavar="N:M",
    help="Check every layer by it; auto: the strongest that it holds. Default: what the file says, else 2:4.",
)
@click.option("--layer", "layers", multiple=True, metavar="GLOB=N:M", help="Another pattern for these layers.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not judge these layers.")
@click.option("--require", multiple=True, metavar="GLOB", help="These layers must conform.")
@click.option("--strict", is_flag=True, help="Every prunable layer must conform, and every weight be checked.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="F", help="Write a JUnit XML file for CI, too.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="F.png",
    help="Draw non-zeros per group, layer by layer (one PATH).",
)
@json_option
def command(
    paths: tuple[Path, ...],
    pattern: str | None,
    layers: tuple[str, ...],
    exclude: tuple[str, ...],
    require: tuple[str, ...],
    strict: bool,
    junit: Path | None,
    plot: Path | None,
    as_json: bool,
) -> int:
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
    from nm2trt.verify import parse_pattern

    if junit is not None:
        from nm2trt.cli.render.junit import check_target

        check_target(junit)
    if plot is not None:
        _check_plot(plot, paths)
    rules: dict[str, Any] = {
        "pattern": None if pattern is None else parse_pattern(pattern),
        "layer_patterns": dict(layer_pattern(text) for text in layers),
        "exclude": exclude,
        "require": require,
        "strict": strict,
    }
    with _watching() as watch:
        documents = [_verify(path, rules, watch) for path in paths]
    if junit is not None:
        from nm2trt.artifacts import write_atomic
        from nm2trt.cli.render.junit import junit_from_documents

        write_atomic(junit, junit_from_documents(documents))
    if plot is not None:
        _draw(paths[0], documents[0], plot)
    _print(documents, as_json=as_json)
    return EXIT_OK if all(document.verdict == "pass" for document in documents) else EXIT_BAD_VERDICT


def _verify(path: Path, rules: dict[str, Any], watch: Callable[[LayerWeight], None] | None) -> CheckResult:
    from nm2trt.verify import verify_path

    return verify_path(path, watch=watch, **rules)


def _check_plot(plot: Path, paths: tuple[Path, ...]) -> None:
    from nm2trt.errors import ConfigError

    where = f"--plot {plot}"
    if len(paths) > 1:
        raise ConfigError(f"draws one PATH, not {len(paths)}", where=where, hint="run once for each")
    if plot.suffix.lower() != ".png":
        raise ConfigError("is no .png", where=where, hint="name the file F.png")
    if plot.is_dir() or not plot.parent.is_dir():
        raise ConfigError("is no place for a file", where=where, hint="name a file in an existing folder")
    if plot.exists():
        with plot.open("rb") as file:
            if file.read(8) != b"\x89PNG\r\n\x1a\n":
                raise ConfigError("exists and is no PNG", where=where, hint="choose another name")


def _draw(path: Path, result: CheckResult, plot: Path) -> None:
    from nm2trt.cli.render.verify import plain
    from nm2trt.pattern import NMPattern
    from nm2trt.report.sparsity import SparsityRow, write_sparsity_png
    from nm2trt.verify import BAD_VERDICTS, group_histograms

    rows = [
        SparsityRow(
            name=plain(layer.name),
            n=NMPattern.parse(layer.pattern).n,
            groups=groups.tolist(),
            verdict=layer.verdict,
            bad=layer.verdict in BAD_VERDICTS,
        )
        for layer, groups in group_histograms(path, result)
    ]
    write_sparsity_png(rows, plot, f"{plain(result.source)}: non-zeros per group, layer by layer")


def _print(documents: list[CheckResult], *, as_json: bool) -> None:
    if as_json:
        from nm2trt.verify import json_of

        print_json(json_of(documents))
        return
    from nm2trt.cli.render.verify import print_check_result

    for document in documents:
        print_check_result(document)


@contextmanager
def _watching() -> Iterator[Callable[[LayerWeight], None] | None]:
    """Show the layer at hand on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    console = stderr_console()
    from nm2trt.cli.render.verify import plain

    with console.status("opening") as status:
        yield lambda layer: status.update(f"checking {plain(layer.name)}".replace("[", r"\["))
