"""`nm2trt verify`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import json_option, stderr_console

if TYPE_CHECKING:
    from nm2trt.layers import LayerWeight
    from nm2trt.pattern import NMPattern
    from nm2trt.verify import Judgement


@click.command(name="verify")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option(
    "--pattern",
    metavar="N:M",
    help="Judge every layer by it; auto: the strongest that it holds. Default: what the file says, else 2:4.",
)
@click.option("--layer", "layers", multiple=True, metavar="GLOB=N:M", help="Another pattern for these layers.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not judge these layers.")
@click.option("--require", multiple=True, metavar="GLOB", help="These layers must conform.")
@click.option("--strict", is_flag=True, help="Every prunable layer must conform.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="F", help="Write a JUnit XML file for CI, too.")
@json_option
def command(
    paths: tuple[Path, ...],
    pattern: str | None,
    layers: tuple[str, ...],
    exclude: tuple[str, ...],
    require: tuple[str, ...],
    strict: bool,
    junit: Path | None,
    as_json: bool,
) -> int:
    """Judge every layer of a checkpoint or ONNX file against an N:M pattern.

    PATH is a .safetensors, .pt, .npz or .onnx file, a run folder (its checkpoint), a build folder (its
    model.onnx) or a Hugging Face folder. Code inside a .pt file is never run.
    GLOBs match tensor and node names: 'layer3.*', '*.fc?'.

    The pattern is counted in groups of M along the axis that the hardware uses: input channels of a
    convolution, K of a matrix product. The TensorRT column says whether a layer may get a sparse kernel at
    all; which kernel runs, and whether it is faster, only a build and `nm2trt profile` can tell.

    \b
    Exit 1: a layer violates its pattern, has it along the wrong axis or has a zero point that is not 0;
            a required layer, or with --strict any prunable one, does not conform; or none conforms.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK
    from nm2trt.verify import parse_pattern

    if junit is not None:
        from nm2trt.cli.junit import check_target

        check_target(junit)
    rules: dict[str, Any] = {
        "pattern": None if pattern is None else parse_pattern(pattern),
        "layer_patterns": dict(_layer_pattern(text) for text in layers),
        "exclude": exclude,
        "require": require,
        "strict": strict,
    }
    with _watching() as watch:
        documents = [_verify(path, rules, watch) for path in paths]
    if junit is not None:
        from nm2trt.artifacts import write_atomic
        from nm2trt.cli.junit import junit_from_documents

        write_atomic(junit, junit_from_documents(documents))
    _print(documents, as_json=as_json)
    return EXIT_OK if all(document.verdict == "pass" for document in documents) else EXIT_BAD_VERDICT


def _verify(path: Path, rules: dict[str, Any], watch: Callable[[LayerWeight], None] | None) -> Judgement:
    from nm2trt.verify import verify_path

    return verify_path(path, watch=watch, **rules)


def _layer_pattern(text: str) -> tuple[str, NMPattern]:
    from nm2trt.errors import ConfigError
    from nm2trt.pattern import NMPattern

    # Names may hold "=", patterns cannot.
    glob, equals, pattern = text.rpartition("=")
    if not equals or not glob:
        raise ConfigError(f"--layer {text!r} is not GLOB=N:M", mend="write it like 'layer3.*=1:4'")
    return glob, NMPattern.parse(pattern)


def _print(documents: list[Judgement], *, as_json: bool) -> None:
    if as_json:
        from nm2trt.verify import json_of

        click.echo(json_of(documents), nl=False)
        return
    from nm2trt.cli.verify_table import print_judgement

    for document in documents:
        print_judgement(document)


@contextmanager
def _watching() -> Iterator[Callable[[LayerWeight], None] | None]:
    """Show the layer at hand on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    console = stderr_console()
    from nm2trt.cli.verify_table import plain

    with console.status("opening") as status:
        yield lambda layer: status.update(f"judging {plain(layer.name)}".replace("[", r"\["))
