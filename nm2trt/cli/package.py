"""`nm2trt package`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nm2trt.cli.common import force_option, output_option, schema_option, stderr_console, stdout_console
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from nm2trt.artifacts.build import Variant
    from nm2trt.artifacts.package import PackageDocument
    from nm2trt.serve import Packaged, Surroundings, Written

_SERVERS = ["triton", "triton-cpu", "kserve", "deepstream", "onnxruntime"]
_TRITONS = ("triton", "triton-cpu", "kserve")
_FOLDERS = ("deepstream", "onnxruntime")

_HAS_EFFECT: dict[str, tuple[str, ...]] = {
    "platform": ("triton", "kserve"),
    "device": ("triton", "kserve"),
    "dense": _TRITONS,
    "number": _TRITONS,
    "max_batch": _TRITONS,
    "queue_delay_us": _TRITONS,
    "instances": _TRITONS,
    "cuda_graphs": ("triton", "kserve"),
    "labels": (*_TRITONS, "deepstream"),
    "sm": ("triton", "kserve", "deepstream"),
    "tensorrt": ("triton", "kserve", "deepstream"),
    "image": _TRITONS,
    "storage_uri": ("kserve",),
    "canary": ("kserve",),
    "scale": ("deepstream",),
    "keep_config": _TRITONS,
    "force": _FOLDERS,
}
"""Option -> servers for which it changes something. Those that are not here do for every server."""

_CHANGES = ("output", "name", "keep_config", "image", "as_json")
"""Options that --remove-version and --rollback take."""


def _document() -> type[PackageDocument]:
    from nm2trt.artifacts.package import PackageDocument

    return PackageDocument


@click.command(name="package")
@click.argument("builds", nargs=-1, metavar="BUILD...", type=click.Path(path_type=Path))
@click.option(
    "--server",
    type=click.Choice(_SERVERS),
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
@click.option("--version", "number", type=click.IntRange(min=1), metavar="N", help="Default: the next one.")
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
    context: click.Context,
    /,
    builds: tuple[Path, ...],
    server: str,
    output: Path,
    force: bool,
    as_json: bool,
    remove_version: int | None,
    rollback: bool,
    **options: Any,
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
    from nm2trt.errors import ConfigError

    given = _given(context)
    if remove_version is not None or rollback:
        return _change(builds, output, given, as_json, remove_version, options)
    if not builds:
        raise ConfigError("no BUILD", where="package", hint="name a folder that `nm2trt export` wrote")
    _refuse_without_effect(server, given, options)
    if server in _FOLDERS:
        return _folder(builds, server, output, force, as_json, options)
    return _repository(builds, server, output, as_json, options)


def _given(context: click.Context) -> set[str]:
    """Names of the parameters that the user wrote."""
    usual = (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)
    return {name for name in context.params if context.get_parameter_source(name) not in usual}


def _option_of(name: str, value: object = None) -> str:
    """How the user writes a parameter."""
    written = {"number": "--version", "variants": "--variant", "as_json": "--json"}
    if value is False:
        written |= {"cuda_graphs": "--no-cuda-graphs", "keep_config": "--rewrite-config"}
    return written.get(name, f"--{name.replace('_', '-')}")


def _refuse_without_effect(server: str, given: set[str], options: dict[str, Any]) -> None:
    from nm2trt.errors import ConfigError

    for name in sorted(given):
        servers = _HAS_EFFECT.get(name, tuple(_SERVERS))
        if server in servers:
            continue
        if name == "force":
            raise ConfigError(
                "a repository keeps its versions", where="--force", hint="drop it; a new version goes beside"
            )
        raise ConfigError(
            f"does nothing with --server {server}",
            where=_option_of(name, options.get(name)),
            hint=f"drop it; it is for {', '.join(servers)}",
        )


def _change(
    builds: tuple[Path, ...],
    output: Path,
    given: set[str],
    as_json: bool,
    remove: int | None,
    options: dict[str, Any],
) -> int:
    """--remove-version and --rollback."""
    from nm2trt.errors import ConfigError
    from nm2trt.serve import remove_version, roll_back
    from nm2trt.serve.ports import check_name

    own = {"remove_version", "rollback"} & given
    what = _option_of(sorted(own)[0])
    if len(own) > 1:
        raise ConfigError("--remove-version and --rollback at once", hint="give one of them")
    if builds:
        raise ConfigError("takes no BUILD", where=what, hint="package the build by itself")
    for name in sorted(given - own - set(_CHANGES) - {"builds"}):
        raise ConfigError(f"does nothing with {what}", where=_option_of(name, options.get(name)), hint="drop it")
    name = _only_model(output) if options["name"] is None else check_name(options["name"])
    keep = options["keep_config"]
    if remove is not None:
        changed = remove_version(output, name, remove, keep_config=keep, on_wait=_tell)
    else:
        changed = roll_back(output, name, keep_config=keep, on_wait=_tell)
    written = _around(output, changed.document, _surroundings("triton", options))
    if as_json:
        print_json(changed.document.to_json())
        return 0
    for note in changed.notes:
        _tell(note)
    served = ", ".join(str(version.version) for version in changed.document.served)
    done = (
        f"version {changed.version} removed" if remove is not None else f"version {changed.version} is not loaded now"
    )
    console = stdout_console()
    console.print(f"{name}: {done}; served: version {served}", markup=False, soft_wrap=True)
    if written.files:
        console.print(f"files for a container or cluster: {', '.join(written.files)}", markup=False, soft_wrap=True)
    return 0


def _only_model(repository: Path) -> str:
    from nm2trt.errors import ConfigError
    from nm2trt.serve import model_folders

    names = [folder.name for folder in model_folders(repository)]
    if len(names) > 1:
        raise ConfigError(f"the repository holds {', '.join(names)}", where=repository, hint="name one with --name")
    return names[0]


def _tell(note: str) -> None:
    stderr_console().print(note, markup=False, style="yellow", soft_wrap=True)


def _surroundings(server: str, options: dict[str, Any]) -> Surroundings:
    from nm2trt.serve import Surroundings

    return Surroundings(
        image=options["image"],
        kserve=server == "kserve",
        storage_uri=options["storage_uri"],
        canary=options["canary"],
    )


def _repository(builds: tuple[Path, ...], server: str, output: Path, as_json: bool, options: dict[str, Any]) -> int:
    from nm2trt.serve import PackageRequest, check_surroundings, package_triton, packaged_documents

    kind: Literal["triton", "triton-cpu"] = "triton-cpu" if server == "triton-cpu" else "triton"
    surroundings = _surroundings(server, options)
    if server == "kserve":
        # What is missing of it is told before the build is read.
        check_surroundings("model" if options["name"] is None else options["name"], surroundings)
    request = PackageRequest(
        builds=builds,
        repository=output,
        name=_model_name(options["name"], builds[0]),
        server=kind,
        platform=options["platform"],
        device=options["device"],
        variants=options["variants"] or ("sparse",),
        dense=options["dense"],
        version=options["number"],
        max_batch=options["max_batch"],
        queue_delay_us=options["queue_delay_us"],
        instances=options["instances"],
        cuda_graphs=options["cuda_graphs"],
        labels=options["labels"],
        sm=options["sm"],
        tensorrt=options["tensorrt"],
        keep_config=options["keep_config"],
        on_wait=_tell,
    )
    # Everything that the files at the root are made of is checked before a version is written.
    check_surroundings(request.name, surroundings)
    packaged_documents(output)
    packaged = package_triton(request)
    written = _around(output, packaged[0].document, surroundings)
    for one in packaged:
        for note in one.notes:
            _tell(f"{one.document.model}: {note}")
    if as_json:
        import json

        documents = [one.document.model_dump(mode="json", by_alias=True) for one in packaged]
        head = {"schema": "nm2trt.packages/1", "nm2trt_version": documents[0]["nm2trt_version"]}
        print_json(json.dumps({**head, "models": documents, "files": written.files}, indent=2))
    else:
        _show(packaged, output, written)
    return 0


def _around(output: Path, document: PackageDocument, surroundings: Surroundings) -> Written:
    from nm2trt.serve import write_around

    written = write_around(output, document, surroundings, on_wait=_tell)
    for name in written.left:
        _tell(f"{name} was changed by somebody, and is left as it is")
    return written


def _model_name(given: str | None, build: Path) -> str:
    """The name that was given, else one after what was trained: data set and network; or after the folder."""
    import re

    from nm2trt.serve import read_build

    if given is not None:
        return given
    source = read_build(build).source
    words = [source.data, source.model.name] if source.data and source.model else [build.resolve().name]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(str(word) for word in words)).strip("-.") or "model"


def _folder(
    builds: tuple[Path, ...], server: str, output: Path, force: bool, as_json: bool, options: dict[str, Any]
) -> int:
    """DeepStream and ONNX Runtime: one folder, whole or not at all."""
    from nm2trt.artifacts.files import check_output, staged_folder
    from nm2trt.errors import ConfigError
    from nm2trt.serve import package_deepstream, package_onnxruntime

    if len(builds) > 1 or len(options["variants"]) > 1:
        raise ConfigError(f"{server} takes one BUILD and one --variant")
    check_output(output, force=force)
    name = _model_name(options["name"], builds[0])
    variant: Variant = (options["variants"] or ("sparse",))[0]
    with staged_folder(output, force=force) as folder:
        if server == "deepstream":
            document = package_deepstream(
                builds[0],
                folder,
                name=name,
                variant=variant,
                labels=options["labels"],
                scale=1 / 255 if options["scale"] is None else options["scale"],
                sm=options["sm"],
                tensorrt=options["tensorrt"],
            )
        else:
            document = package_onnxruntime(builds[0], folder, name=name, variant=variant)
        document.write(folder)
    if as_json:
        print_json(document.to_json())
    else:
        console = stdout_console()
        names = ", ".join(sorted([*document.versions[0].files, "package.json"]))
        console.print(f"{document.model} for {server}: {output}", markup=False, soft_wrap=True)
        console.print(names, markup=False, soft_wrap=True)
        _show_plans(document)
    return 0


def _show(packaged: list[Packaged], output: Path, written: Written) -> None:
    console = stdout_console()
    for one in packaged:
        document, version = one.document, one.version
        batching = (
            f"batches up to {document.max_batch}, {document.queue_delay_us} us queue delay"
            if document.max_batch
            else "no batching"
            if document.max_batch_asked == 0
            else "fixed shapes, no batching"
        )
        console.print(f"{document.model} version {version.version}", markup=False, style="bold")
        console.print(
            f"  {document.platform} ({one.why}), {version.variant} variant, {batching}", markup=False, soft_wrap=True
        )
        old = ", ".join(str(other.version) for other in document.served[:-1])
        if old:
            console.print(f"  beside version {old}", markup=False)
        _show_plans(document)
    console.print(f"repository: {output}", markup=False, soft_wrap=True)
    if written.files:
        console.print(f"files for a container or cluster: {', '.join(written.files)}", markup=False, soft_wrap=True)


def _show_plans(document: PackageDocument) -> None:
    for plan in document.versions[-1].plans:
        text = f"  {plan.file}: needs TensorRT {plan.tensorrt}, SM {plan.sm}; {plan.triton}"
        stdout_console().print(text, markup=False, soft_wrap=True)
