"""A build becomes a numbered version of a model in a Triton repository."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Literal

from nm2trt.artifacts import BuildDocument, file_records, sha256_of
from nm2trt.artifacts.build import Arm
from nm2trt.artifacts.package import PackageDocument, PlanRequirement, Platform, VersionRecord
from nm2trt.errors import ConfigError, InputError
from nm2trt.serve.config_pbtxt import LABELS, ONNX, PLAN, ModelSpec, config_pbtxt
from nm2trt.serve.ports import check_name, free_sizes, has_dynamic_batch, numpy_type
from nm2trt.serve.releases import triton_release
from nm2trt.serve.repository import CONFIG, check_interface, next_version, publish, published
from nm2trt.serve.source import Network, has_plan, onnx_network, plan_network, read_build

QUEUE_DELAY_US = 500

Wanted = Literal["auto", "tensorrt_plan", "onnxruntime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageRequest:
    """What to package, and how it is to be served."""

    builds: tuple[Path, ...]
    """Several: one per GPU kind, of one network."""
    repository: Path
    name: str
    server: Literal["triton", "triton-cpu"] = "triton"
    platform: Wanted = "auto"
    device: Literal["gpu", "cpu"] = "gpu"
    arms: tuple[Arm, ...] = ("sparse",)
    dense: Path | None = None
    """Build of the dense-trained network, for traffic beside the sparse one."""
    version: int | None = None
    max_batch: int | None = None
    queue_delay_us: int | None = None
    instances: int = 1
    cuda_graphs: bool = True
    labels: Path | None = None
    sm: str | None = None
    tensorrt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """One model of the repository, with its newest version."""

    document: PackageDocument
    folder: Path
    why: str
    """Why this platform, in words."""

    @property
    def version(self) -> VersionRecord:
        """What was added now."""
        return self.document.versions[-1]


def package_triton(request: PackageRequest) -> list[Packaged]:
    """Write one version of each asked arm; all are checked before the first is written.

    Returns:
        The sparse arm under the request's name, others under NAME-ARM.

    Raises:
        ConfigError: Wrong options, or the repository holds something else under a name.
        InputError: A build, plan or manifest cannot be used.
    """
    check_name(request.name)
    prepared = []
    for name, folders, arm in _wanted(request):
        network, platform, why = _network(request, folders, arm)
        document = _document(request, name, network, platform)
        old = published(request.repository, name)
        version = next_version(old, request.version)
        if old is not None:
            check_interface(old, document, request.repository / name)
        prepared.append((document, old, version, network, why))
    return [
        _publish(request, document, old, version, network, why) for document, old, version, network, why in prepared
    ]


def _wanted(request: PackageRequest) -> list[tuple[str, tuple[Path, ...], Arm]]:
    """(model name, builds, arm) of each model to write."""
    models: list[tuple[str, tuple[Path, ...], Arm]] = []
    for arm in dict.fromkeys(request.arms):
        alone = len(request.arms) == 1 and request.dense is None
        models.append((request.name if arm == "sparse" or alone else f"{request.name}-{arm}", request.builds, arm))
    if request.dense is not None:
        if "dense" in request.arms:
            raise ConfigError("names a second dense network beside --arm dense", where="--dense", mend="drop one")
        models.append((f"{request.name}-dense", (request.dense,), "dense"))
    return models


def _network(request: PackageRequest, folders: tuple[Path, ...], arm: Arm) -> tuple[Network, Platform, str]:
    """Choose what runs the arm, and say why."""
    of_dense_build = request.dense is not None and folders == (request.dense,)
    # A build of dense weights has no pattern; its one graph and its unflagged engine are the dense arm.
    found: Arm = "control" if of_dense_build else arm
    if request.server == "triton-cpu":
        network, platform, why = onnx_network(folders[0], found), "python", "the Python backend runs the ONNX anywhere"
    elif request.platform == "tensorrt_plan" or (
        request.platform == "auto" and any(has_plan(read_build(folder), found) for folder in folders)
    ):
        network = plan_network(folders, found, sm=request.sm, tensorrt=request.tensorrt)
        platform, why = "tensorrt_plan", "the build holds a plan of full TensorRT"
    else:
        network, platform = onnx_network(folders[0], found), "onnxruntime"
        why = "as asked" if request.platform == "onnxruntime" else "the build holds no plan of full TensorRT"
    if platform != "tensorrt_plan":
        _refuse_plan_options(request, folders)
    if of_dense_build:
        network = replace(network, arm="dense")
    return network, platform, why  # type: ignore[return-value]


def _refuse_plan_options(request: PackageRequest, folders: tuple[Path, ...]) -> None:
    for option, given in (("--sm", request.sm), ("--tensorrt", request.tensorrt)):
        if given is not None:
            raise ConfigError("states what a plan is for, and no plan is packaged here", where=option, mend="drop it")
    if len(folders) > 1:
        raise ConfigError("several builds are for several GPUs' plans; the ONNX is one", mend="name one build")


def _document(request: PackageRequest, name: str, network: Network, platform: Platform) -> PackageDocument:
    build = network.build
    on_cpu = platform == "python" or (platform == "onnxruntime" and request.device == "cpu")
    if on_cpu and "bf16" in build.precision:
        raise InputError(
            "ONNX Runtime has no bfloat16 kernels on a CPU", where=network.folder, mend="export with --precision fp16"
        )
    if platform == "python":
        for port in (*build.inputs, *build.outputs):
            numpy_type(port.dtype)
    return PackageDocument(
        model=name,
        server=request.server,
        platform=platform,
        gpu=platform == "tensorrt_plan" or (platform == "onnxruntime" and request.device == "gpu"),
        max_batch=_max_batch(request, network),
        queue_delay_us=QUEUE_DELAY_US if request.queue_delay_us is None else request.queue_delay_us,
        batch=build.batch if has_dynamic_batch(build) else None,
        inputs=build.inputs,
        outputs=build.outputs,
        versions=[version_record(network, 0)],
    )


def _max_batch(request: PackageRequest, network: Network) -> int:
    """Largest batch that server and engine can make; 0 for fixed shapes.

    Raises:
        ConfigError: Batching was asked of a build with fixed shapes, or more than its profile has.
    """
    build = network.build
    asked = [
        option
        for option, value in (("--max-batch", request.max_batch), ("--queue-delay-us", request.queue_delay_us))
        if value is not None and not (option == "--max-batch" and value == 0)
    ]
    if build.batch is None or not has_dynamic_batch(build):
        if asked:
            raise ConfigError(
                f"the build has no dynamic batch, so the server cannot batch for it ({network.folder.name})",
                where=asked[0],
                mend="export with --batch MIN:OPT:MAX, or drop the option",
            )
        return 0
    if network.plans and build.batch.min > 1:
        raise ConfigError(
            f"the plan takes batches from {build.batch.min} on, and a server also makes smaller ones",
            where=network.folder,
            mend=f"export with --batch 1:{build.batch.opt}:{build.batch.max}",
        )
    if request.max_batch is None:
        return build.batch.max
    if request.max_batch > build.batch.max or request.max_batch < 1:
        raise ConfigError(
            f"{request.max_batch} is outside 1..{build.batch.max}, the batches of {network.folder.name}",
            where="--max-batch",
            mend="export with a larger --batch, or ask for less",
        )
    return request.max_batch


def version_record(network: Network, number: int) -> VersionRecord:
    """Record where a version comes from; its files are added when they are written."""
    build = network.build
    return VersionRecord(
        version=number,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        arm=network.arm,
        build=network.folder.resolve().name,
        build_sha256=sha256_of(network.folder / BuildDocument.FILE),
        method=build.source.method,
        pattern=build.source.pattern,
        precision=build.precision,
        plans=[
            PlanRequirement(
                file=file,
                tensorrt=record.builder_version,
                sm=record.sm,
                platform=record.platform,
                flags=record.flags,
                triton=triton_release(record.builder_version),
            )
            for file, (_, record) in zip(_plan_files(network), network.plans, strict=True)
        ],
        files={},
    )


def _plan_files(network: Network) -> list[str]:
    if len(network.plans) == 1:
        return [PLAN]
    return [f"model.sm{record.sm}.plan" for _, record in network.plans]


def model_spec(request: PackageRequest, document: PackageDocument, network: Network, *, labels: bool) -> ModelSpec:
    """Gather what config.pbtxt says."""
    return ModelSpec(
        name=document.model,
        platform=document.platform,
        inputs=document.inputs,
        outputs=document.outputs,
        batch=document.batch,
        max_batch=document.max_batch,
        queue_delay_us=document.queue_delay_us,
        precision=network.build.precision,
        gpu=document.gpu,
        instances=request.instances,
        cuda_graphs=request.cuda_graphs and not free_sizes(network.build),
        labels=labels,
        plans_by_sm={record.sm: file for file, (_, record) in zip(_plan_files(network), network.plans, strict=True)},
    )


def _publish(
    request: PackageRequest,
    document: PackageDocument,
    old: PackageDocument | None,
    number: int,
    network: Network,
    why: str,
) -> Packaged:
    folder = request.repository / document.model
    labels = None if request.labels is None else checked_labels(request.labels, network.build)
    # Labels given with an earlier version go on.
    labelled = labels is not None or (folder / LABELS).is_file()
    whole: list[PackageDocument] = []

    def fill(target: Path) -> dict[str, str]:
        fill_version(target, document.platform, network)
        version = version_record(network, number).model_copy(update={"files": file_records(target)})
        done = document.model_copy(update={"versions": [*(old.versions if old else []), version]})
        whole.append(done)
        spec = model_spec(request, document, network, labels=labelled)
        files = {CONFIG: config_pbtxt(spec), PackageDocument.FILE: done.to_json()}
        return files if labels is None else {LABELS: labels, **files}

    publish(request.repository, document.model, number, fill)
    return Packaged(document=whole[0], folder=folder, why=why)


def fill_version(target: Path, platform: Platform, network: Network) -> None:
    """Copy a version's files: the graph always (it says what a plan was built from), then what the server runs."""
    shutil.copyfile(network.onnx, target / ONNX)
    for path in network.data:
        # The graph holds its name.
        shutil.copyfile(path, target / path.name)
    for file, (path, _) in zip(_plan_files(network), network.plans, strict=True):
        shutil.copyfile(path, target / file)
    if platform == "python":
        code = resources.files("nm2trt.serve").joinpath("python_model.py").read_text(encoding="utf-8")
        (target / "model.py").write_text(code, encoding="utf-8")


def checked_labels(path: Path, build: BuildDocument) -> str:
    """Read a file with one class name a line.

    Raises:
        InputError: It cannot be read, or has another number of lines than the network has classes.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=path, mend="name a text file, one class a line") from None
    classes = build.outputs[0].shape[-1] if build.outputs[0].shape else None
    if isinstance(classes, int) and len(lines) != classes:
        raise InputError(f"holds {len(lines)} lines, and the network has {classes} classes", where=path)
    return "\n".join(lines) + "\n"
