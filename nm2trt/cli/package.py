"""`nm2trt package`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nm2trt.cli.common import force_option, json_option, output_option, stderr_console, stdout_console

if TYPE_CHECKING:
    from nm2trt.artifacts.build import Arm
    from nm2trt.artifacts.package import PackageDocument
    from nm2trt.serve import Packaged

_SERVERS = ["triton", "triton-cpu", "kserve", "deepstream", "onnxruntime"]


@click.command(name="package")
@click.argument("builds", nargs=-1, required=True, metavar="BUILD...", type=click.Path(path_type=Path))
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
    help="auto: the plan where the build holds one of full TensorRT, else the ONNX.",
)
@click.option("--device", type=click.Choice(["gpu", "cpu"]), default="gpu", show_default=True, help="For onnxruntime.")
@click.option(
    "--arm",
    "arms",
    multiple=True,
    type=click.Choice(["sparse", "control", "dense"]),
    help="Which engine; repeat it to serve several side by side, as NAME and NAME-ARM. Default: sparse.",
)
@click.option(
    "--dense", type=click.Path(path_type=Path), metavar="BUILD", help="Serve this one beside it as NAME-dense."
)
@click.option("--version", "number", type=click.IntRange(min=1), metavar="N", help="Default: the next one.")
@click.option("--max-batch", type=int, metavar="N", help="Largest batch that the server makes. Default: the profile's.")
@click.option(
    "--queue-delay-us",
    type=click.IntRange(min=0),
    metavar="US",
    help="How long a request may wait for others to share its batch. Default: 500.",
)
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True, help="Per GPU, or on the CPU.")
@click.option("--cuda-graphs/--no-cuda-graphs", default=True, show_default=True, help="For tensorrt_plan.")
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="Class names, one a line.")
@click.option("--sm", metavar="NN", help="The GPU that you serve on; a plan for another is refused.")
@click.option("--tensorrt", metavar="VERSION", help="The server's TensorRT; a plan of another is refused.")
@click.option(
    "--image", metavar="IMAGE", help="Triton's image, nvcr.io/nvidia/tritonserver:YY.MM-py3; kserve needs it."
)
@click.option("--storage-uri", metavar="URI", help="kserve: where the cluster finds REPOSITORY (pvc://, s3://, gs://).")
@click.option("--canary", type=int, metavar="PERCENT", help="kserve: share of the traffic for this revision.")
@click.option(
    "--scale",
    type=float,
    default=1 / 255,
    show_default="1/255",
    metavar="X",
    help="deepstream: factor on pixels 0..255.",
)
@force_option
@json_option
def command(builds: tuple[Path, ...], server: str, output: Path, force: bool, as_json: bool, **options: Any) -> int:
    """Put a build into an inference server's model repository.

    Name several BUILDs of one network to serve it on several kinds of GPU. Into a repository that holds the model
    already goes a new version beside the old one, in one rename: a server that runs is never shown half a version.

    \b
    nm2trt package BUILD --server triton-cpu -o REPOSITORY
    nm2trt serve REPOSITORY
    nm2trt check-server http://127.0.0.1:8000 NAME --build BUILD
    """
    from nm2trt.errors import ConfigError

    if server in ("deepstream", "onnxruntime"):
        return _folder(builds, server, output, force, as_json, options)
    if force:
        raise ConfigError("a repository keeps its versions", where="--force", mend="drop it; a new version goes beside")
    if server == "kserve":
        lacking = [f"--{name.replace('_', '-')}" for name in ("image", "storage_uri") if options[name] is None]
        if lacking:
            raise ConfigError(f"kserve needs {' and '.join(lacking)}: the manifests name what your cluster has")
    return _repository(builds, server, output, as_json, options)


def _repository(builds: tuple[Path, ...], server: str, output: Path, as_json: bool, options: dict[str, Any]) -> int:
    from nm2trt.serve import PackageRequest, package_triton

    kind: Literal["triton", "triton-cpu"] = "triton-cpu" if server == "triton-cpu" else "triton"
    request = PackageRequest(
        builds=builds,
        repository=output,
        name=options["name"] or _default_name(builds[0]),
        server=kind,
        platform=options["platform"],
        device=options["device"],
        arms=options["arms"] or ("sparse",),
        dense=options["dense"],
        version=options["number"],
        max_batch=options["max_batch"],
        queue_delay_us=options["queue_delay_us"],
        instances=options["instances"],
        cuda_graphs=options["cuda_graphs"],
        labels=options["labels"],
        sm=options["sm"],
        tensorrt=options["tensorrt"],
    )
    # The manifests' values are checked before a version is written.
    _manifest_values(request.name, server, options)
    packaged = package_triton(request)
    written = _write_around(output, packaged, server, options)
    if as_json:
        import json

        documents = [one.document.model_dump(mode="json", by_alias=True) for one in packaged]
        head = {"schema": "nm2trt.packages/1", "nm2trt_version": documents[0]["nm2trt_version"]}
        click.echo(json.dumps({**head, "models": documents, "files": written}, indent=2))
    else:
        _show(packaged, output, written)
    return 0


def _manifest_values(name: str, server: str, options: dict[str, Any]) -> None:
    if server != "kserve":
        return
    from nm2trt.serve import check_manifest_values

    check_manifest_values(name, storage_uri=options["storage_uri"], canary=options["canary"])


def _default_name(build: Path) -> str:
    """Name a model after what was trained: data set and network, or after the folder."""
    import re

    from nm2trt.serve import read_build

    source = read_build(build).source
    words = [source.data, source.model.name] if source.data and source.model else [build.resolve().name]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(str(word) for word in words)).strip("-.") or "model"


def _write_around(output: Path, packaged: list[Packaged], server: str, options: dict[str, Any]) -> list[str]:
    """Write the files at the repository's root; returns their names."""
    from nm2trt.serve import compose, dockerfile, inference_service, model_folders, read_model, serving_runtime
    from nm2trt.serve.deploy import write_marked

    documents = [read_model(folder) for folder in model_folders(output) if (folder / "package.json").is_file()]
    image = options["image"]
    files = {"Dockerfile": dockerfile(documents, image=image), "compose.yaml": compose(documents, image=image)}
    if server == "kserve":
        files["clusterservingruntime.yaml"] = serving_runtime(documents, image=image)
        files["inferenceservice.yaml"] = inference_service(
            packaged[0].document,
            image=image,
            storage_uri=options["storage_uri"],
            canary=options["canary"],
            documents=documents,
        )
    written = []
    for name, text in files.items():
        if write_marked(output / name, text):
            written.append(name)
        else:
            stderr_console().print(
                f"{name} was changed by somebody, and is left as it is", markup=False, style="yellow"
            )
    return written


def _folder(
    builds: tuple[Path, ...], server: str, output: Path, force: bool, as_json: bool, options: dict[str, Any]
) -> int:
    """DeepStream and ONNX Runtime: one folder, whole or not at all."""
    from nm2trt.artifacts.files import check_output, staged_folder
    from nm2trt.errors import ConfigError
    from nm2trt.serve import package_deepstream, package_onnxruntime

    if len(builds) > 1 or len(options["arms"]) > 1:
        raise ConfigError(f"{server} takes one BUILD and one --arm")
    check_output(output, force=force)
    name = options["name"] or _default_name(builds[0])
    arm: Arm = (options["arms"] or ("sparse",))[0]
    with staged_folder(output, force=force) as folder:
        if server == "deepstream":
            document = package_deepstream(
                builds[0],
                folder,
                name=name,
                arm=arm,
                labels=options["labels"],
                scale=options["scale"],
                sm=options["sm"],
                tensorrt=options["tensorrt"],
            )
        else:
            document = package_onnxruntime(builds[0], folder, name=name, arm=arm)
        document.write(folder)
    if as_json:
        click.echo(document.to_json(), nl=False)
    else:
        console = stdout_console()
        names = ", ".join(sorted([*document.versions[0].files, "package.json"]))
        console.print(f"{document.model} for {server}: {output}", markup=False, soft_wrap=True)
        console.print(names, markup=False, soft_wrap=True)
        _show_plans(document)
    return 0


def _show(packaged: list[Packaged], output: Path, written: list[str]) -> None:
    console = stdout_console()
    for one in packaged:
        document, version = one.document, one.version
        batching = (
            f"batches up to {document.max_batch}, {document.queue_delay_us} us queue delay"
            if document.max_batch
            else "fixed shapes, no batching"
        )
        console.print(f"{document.model} version {version.version}", markup=False, style="bold")
        console.print(f"  {document.platform} ({one.why}), {version.arm} arm, {batching}", markup=False, soft_wrap=True)
        old = ", ".join(str(other.version) for other in document.versions[:-1])
        if old:
            console.print(f"  beside version {old}", markup=False)
        _show_plans(document)
    console.print(f"repository: {output}", markup=False, soft_wrap=True)
    if written:
        console.print(f"files for a container or cluster: {', '.join(written)}", markup=False, soft_wrap=True)


def _show_plans(document: PackageDocument) -> None:
    for plan in document.versions[-1].plans:
        text = f"  {plan.file}: needs TensorRT {plan.tensorrt}, SM {plan.sm}; {plan.triton}"
        stdout_console().print(text, markup=False, soft_wrap=True)
