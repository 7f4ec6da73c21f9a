"""`nm2trt package`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import force_option, given_options, output_option, schema_option, stderr_console
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from nm2trt.pipelines.package import ChangeConfig, ChangeResult, PackageDocument, PackageResult

_CHANGES = ("output", "name", "keep_config", "image", "as_json")
"""Options that --remove-version and --rollback take."""


def _document() -> type[PackageDocument]:
    from nm2trt.artifacts.package import PackageDocument

    return PackageDocument


@click.command(name="package")
@click.argument("builds", nargs=-1, metavar="BUILD...", type=click.Path(path_type=Path))
@click.option(
    "--server",
    type=click.Choice(["triton", "triton-cpu", "kserve", "deepstream", "onnxruntime"]),
    default="triton",
    show_default=True,
    help="triton-cpu: ONNX Runtime in Triton's Python backend, for a machine without a GPU.",
)
@output_option("REPOSITORY", "Model repository to write or add to; for deepstream and onnxruntime, a new folder.")
@click.option("--name", metavar="NAME", help="Of the model. Default: the trained network's, or the build folder's.")
@click.option(
    "--platform",
    type=click.Choice(["auto", "tensorrt_plan", "onnxruntime"]),
    default="auto",
    show_default=True,
    help="auto: as the version before; else the plan where the build holds one of full TensorRT, else the ONNX.",
)
@click.option("--device", type=click.Choice(["gpu", "cpu"]), help="For --platform onnxruntime. Default: gpu.")
@click.option(
    "--variant",
    "--arm",
    "variants",
    multiple=True,
    type=click.Choice(["sparse", "control", "dense"]),
    help="Which engine; repeat it to serve several side by side, as NAME and NAME-VARIANT. Default: sparse.",
)
@click.option(
    "--dense", type=click.Path(path_type=Path), metavar="BUILD", help="Serve this one beside it as NAME-dense."
)
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="Default: the next one.")
@click.option(
    "--max-batch",
    type=click.IntRange(min=0),
    metavar="N",
    help="Largest batch that the server makes; 0: it makes none. Default: the profile's.",
)
@click.option(
    "--queue-delay-us",
    type=click.IntRange(min=0),
    metavar="US",
    help="How long a request may wait for others to share its batch. Default: 500.",
)
@click.option("--instances", type=click.IntRange(min=1), metavar="N", help="Per GPU, or on the CPU. Default: 1.")
@click.option("--cuda-graphs/--no-cuda-graphs", default=None, help="For plans. Default: on.")
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="Class names, one a line.")
@click.option("--sm", metavar="NN", help="The GPU that you serve on; a plan for another is refused.")
@click.option("--tensorrt", metavar="VERSION", help="The server's TensorRT; a plan of another is refused.")
@click.option(
    "--image", metavar="IMAGE", help="Triton's image, nvcr.io/nvidia/tritonserver:YY.MM-py3; kserve needs it."
)
@click.option("--storage-uri", metavar="URI", help="kserve: where the cluster finds REPOSITORY (pvc://, s3://, gs://).")
@click.option("--canary", type=int, metavar="PERCENT", help="kserve: share of the traffic for this revision.")
@click.option(
    "--scale", type=float, metavar="X", help="deepstream: factor on pixels 0..255. Default: 1/255, which makes 0..1."
)
@click.option(
    "--keep-config/--rewrite-config",
    default=None,
    help="What becomes of a config.pbtxt that was edited by hand. Default: refuse.",
)
@click.option("--remove-version", type=int, metavar="N", help="Remove a version of --name; names no BUILD.")
@click.option("--rollback", is_flag=True, help="Serve the version of --name before the newest; names no BUILD.")
@schema_option(_document, "package.json")
@force_option
@json_option
@click.pass_context
def command(
    context: click.Context, /, builds: tuple[Path, ...], output: Path, *, force: bool, as_json: bool, **options: Any
) -> int:
    """Put a build into an inference server's model repository.

    Name several BUILDs of one network to serve it on several kinds of GPU. Into a repository that holds the model
    already goes a new version beside the old one, in one rename: a server that runs is never shown half a version.
    Options that you do not give stay as the version before has them.

    \b
    nm2trt package BUILD --server triton-cpu -o REPOSITORY
    nm2trt serve REPOSITORY
    nm2trt check-server http://127.0.0.1:8000 NAME --build BUILD
    nm2trt package -o REPOSITORY --name NAME --rollback
    """
    from nm2trt.errors import EXIT_OK
    from nm2trt.pipelines.package import PackageConfig, change_versions, package_build

    given = given_options(context)
    if {"remove_version", "rollback"} & given:
        from nm2trt.cli.render.package import print_change

        change = change_versions(output, _change_config(builds, given, options), progress=_tell)
        _print(change, as_json=as_json, show=lambda: print_change(change))
        return EXIT_OK
    from nm2trt.cli.render.package import print_package

    config = PackageConfig(**{name: value for name, value in options.items() if name in given})
    result = package_build(builds, output, config, force=force, progress=_tell)
    _print(result, as_json=as_json, show=lambda: print_package(result, output))
    return EXIT_OK


def _change_config(builds: tuple[Path, ...], given: set[str], options: dict[str, Any]) -> ChangeConfig:
    """Take --remove-version or --rollback, and refuse what neither takes."""
    from nm2trt.errors import ConfigError
    from nm2trt.pipelines.package import ChangeConfig, option_name

    own = {"remove_version", "rollback"} & given
    what = option_name(sorted(own)[0])
    if len(own) > 1:
        raise ConfigError("--remove-version and --rollback at once", hint="give one of them")
    if builds:
        raise ConfigError("takes no BUILD", where=what, hint="package the build by itself")
    for name in sorted(given - own - set(_CHANGES) - {"builds"}):
        raise ConfigError(f"does nothing with {what}", where=option_name(name, options.get(name)), hint="drop it")
    return ChangeConfig(**{name: options[name] for name in ("name", "remove_version", "keep_config", "image")})


def _print(result: PackageResult | ChangeResult, *, as_json: bool, show: Callable[[], None]) -> None:
    for note in result.notes:
        _tell(note)
    if as_json:
        print_json(result.to_json())
    else:
        show()


def _tell(note: str) -> None:
    stderr_console().print(note, markup=False, style="yellow", soft_wrap=True)
