"""A build becomes a numbered version of a model in a Triton repository."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Literal

from nm2trt.artifacts import ONNX_FILE, BuildDocument, file_records, sha256_of
from nm2trt.artifacts.build import Variant
from nm2trt.artifacts.package import PackageDocument, PlanRequirement, Platform, VersionRecord
from nm2trt.errors import ConfigError, InputError
from nm2trt.serve.batch_limits import largest_batch
from nm2trt.serve.config_pbtxt import PLAN, profile_names_readable
from nm2trt.serve.lock import locked
from nm2trt.serve.model_files import model_files
from nm2trt.serve.port_rules import check_described, check_types
from nm2trt.serve.ports import check_name, free_sizes, numpy_type
from nm2trt.serve.publish import publish
from nm2trt.serve.releases import triton_release
from nm2trt.serve.repository import Held, check_interface, next_version, published
from nm2trt.serve.source import Network, has_plan, onnx_network, plan_network, read_build

QUEUE_DELAY_US = 500
LONGEST_DELAY_US = 60_000_000
"""A minute: past that a client has given up, and a mistyped unit is likelier."""
MOST_INSTANCES = 1024

Wanted = Literal["auto", "tensorrt_plan", "onnxruntime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageRequest:
    """What to package, and how it is to be served.

    What is None stays as the repository's version before has it, and is the default in a new model.
    """

    builds: tuple[Path, ...]
    """Several: one per GPU kind, of one network."""
    repository: Path
    name: str
    server: Literal["triton", "triton-cpu"] = "triton"
    platform: Wanted = "auto"
    device: Literal["gpu", "cpu"] | None = None
    variants: tuple[Variant, ...] = ("sparse",)
    dense: Path | None = None
    """Build of the dense-trained network, for traffic beside the sparse one."""
    version: int | None = None
    max_batch: int | None = None
    """0: the server does not batch."""
    queue_delay_us: int | None = None
    instances: int | None = None
    cuda_graphs: bool | None = None
    labels: Path | None = None
    sm: str | None = None
    tensorrt: str | None = None
    keep_config: bool | None = None
    """What becomes of a config.pbtxt that somebody edited: kept, written anew, or (None) a reason to refuse."""
    on_wait: Callable[[str], None] | None = None
    """Told in a sentence when another process is writing into the repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """One model of the repository, with its newest version."""

    document: PackageDocument
    folder: Path
    why: str
    """Why this platform, in words."""
    notes: tuple[str, ...] = ()
    """What a user should know beside it: versions that are not served, an option that had to give way."""

    @property
    def version(self) -> VersionRecord:
        """What was added now."""
        return self.document.versions[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A model that was checked and can be written."""

    document: PackageDocument
    """With the old versions and the new one, whose files are not recorded yet."""
    held: Held | None
    network: Network
    why: str
    notes: tuple[str, ...]


def package_triton(request: PackageRequest) -> list[Packaged]:
    """Write one version of each asked variant; all are checked before the first is written.

    Returns:
        The sparse variant under the request's name, others under NAME-VARIANT.

    Raises:
        ConfigError: Wrong options, or the repository holds something else under a name, or somebody else writes.
        InputError: A build, plan or manifest cannot be used.
    """
    check_name(request.name)
    _check_ranges(request)
    with locked(request.repository, on_wait=request.on_wait):
        prepared = [_prepare(request, name, folders, variant) for name, folders, variant in _wanted(request)]
        return [_publish(request, one) for one in prepared]


def _check_ranges(request: PackageRequest) -> None:
    for option, value, lowest, highest in (
        ("--queue-delay-us", request.queue_delay_us, 0, LONGEST_DELAY_US),
        ("--instances", request.instances, 1, MOST_INSTANCES),
        ("--max-batch", request.max_batch, 0, 2**31 - 1),
    ):
        if value is not None and not lowest <= value <= highest:
            raise ConfigError(f"{value} is outside {lowest}..{highest}", where=option)


def _wanted(request: PackageRequest) -> list[tuple[str, tuple[Path, ...], Variant]]:
    """(model name, builds, variant) of each model to write."""
    models: list[tuple[str, tuple[Path, ...], Variant]] = []
    for variant in dict.fromkeys(request.variants):
        alone = len(request.variants) == 1 and request.dense is None
        models.append(
            (request.name if variant == "sparse" or alone else f"{request.name}-{variant}", request.builds, variant)
        )
    if request.dense is not None:
        if "dense" in request.variants:
            raise ConfigError("names a second dense network beside --variant dense", where="--dense", hint="drop one")
        models.append((f"{request.name}-dense", (request.dense,), "dense"))
    for name, _, _ in models:
        check_name(name)
    return models


def _prepare(request: PackageRequest, name: str, folders: tuple[Path, ...], variant: Variant) -> _Prepared:
    held = published(request.repository, name)
    old = held.document if held else None
    network, platform, why = _network(request, folders, variant, old)
    device = request.device or ("cpu" if old is not None and not old.gpu else "gpu")
    gpu = platform == "tensorrt_plan" or (platform == "onnxruntime" and device == "gpu")
    if request.device is not None and platform != "onnxruntime":
        raise ConfigError(f"is for onnxruntime, and {platform} is packaged here", where="--device", hint="drop it")
    check_types(network.build, where=network.folder)
    _check_runs(network, platform, gpu=gpu)
    number = next_version(held.last if held else 0, request.version)
    kept = request if old is None else _with_old_options(request, old)
    _check_cuda_graphs(request, network, platform)
    document = PackageDocument(
        model=name,
        server=request.server,
        platform=platform,
        gpu=gpu,
        max_batch=0,
        max_batch_asked=kept.max_batch,
        queue_delay_us=QUEUE_DELAY_US if kept.queue_delay_us is None else kept.queue_delay_us,
        batch=None,
        inputs=network.build.inputs,
        outputs=network.build.outputs,
        instances=kept.instances or 1,
        cuda_graphs=kept.cuda_graphs is not False,
        withdrawn=old.withdrawn if old else (),
        last_version=number,
        versions=[*(old.versions if old else []), version_record(network, number)],
    )
    largest, notes = largest_batch(request, document, network)
    batch = network.build.batch if largest > 0 else None
    document = document.model_copy(update={"max_batch": largest, "batch": batch})
    check_described(network.build, batched=largest > 0, where=network.folder)
    if old is not None and old.versions:
        check_interface(old, document, request.repository / name)
    if held is not None:
        _check_edited(request, held, request.repository / name)
    notes = [*_profile_note(document), *notes]
    notes = [*(held.notes.values() if held else ()), *_unserved(old, document), *notes]
    return _Prepared(document=document, held=held, network=network, why=why, notes=tuple(notes))


def _with_old_options(request: PackageRequest, old: PackageDocument) -> PackageRequest:
    """Options that were not given stay as they were."""
    return replace(
        request,
        max_batch=old.max_batch_asked if request.max_batch is None else request.max_batch,
        queue_delay_us=old.queue_delay_us if request.queue_delay_us is None else request.queue_delay_us,
        instances=old.instances if request.instances is None else request.instances,
        cuda_graphs=old.cuda_graphs if request.cuda_graphs is None else request.cuda_graphs,
    )


def _check_edited(request: PackageRequest, held: Held, folder: Path) -> None:
    if held.edited and request.keep_config is None:
        raise ConfigError(
            "was edited by hand (its first line tells), and a new version writes it anew",
            where=folder / "config.pbtxt",
            hint="keep the edits with --keep-config, or drop them with --rewrite-config",
        )
    if not held.edited or not request.keep_config:
        return
    for option, value in (
        ("--max-batch", request.max_batch),
        ("--queue-delay-us", request.queue_delay_us),
        ("--instances", request.instances),
        ("--cuda-graphs", request.cuda_graphs),
        ("--device", request.device),
    ):
        if value is not None:
            raise ConfigError(
                "changes nothing in a config.pbtxt that is kept",
                where=option,
                hint="edit the file, and drop the option",
            )
    if request.labels is not None and "label_filename" not in held.config:
        raise ConfigError(
            "changes nothing: the kept config.pbtxt has no label_filename", where="--labels", hint="add it there"
        )
    if "\ufffd" in held.config:
        raise ConfigError("is not UTF-8, and cannot be kept", where=folder / "config.pbtxt", hint="save it as UTF-8")


def _profile_note(document: PackageDocument) -> list[str]:
    names = [port.name for port in document.inputs]
    if document.platform != "onnxruntime" or not document.gpu or document.max_batch == 0:
        return []
    if profile_names_readable(names):
        return []
    listed = ", ".join(names)
    return [f"no TensorRT profile is given: ONNX Runtime takes the list apart at ':' and ',' ({listed})"]


def _unserved(old: PackageDocument | None, document: PackageDocument) -> list[str]:
    """Say which versions were served until now and will not be."""
    if old is None:
        return []
    newest = document.current
    loaded = {version.version for version in document.served}
    notes = []
    for version in old.served[-1:]:
        if version.version in loaded:
            continue
        if (version.plan_files, version.tensorrt) == (newest.plan_files, newest.tensorrt):
            why = "ONNX Runtime's engine cache tells no weights apart, so one version is loaded at a time"
        elif version.plan_files == newest.plan_files:
            needed, has = (", ".join(sorted(one.tensorrt)) for one in (version, newest))
            why = f"its plans need TensorRT {needed}, those of version {newest.version} {has}, and a server has one"
        else:
            have = ", ".join(f"SM {sm}" for sm in sorted(newest.plan_files, key=int))
            why = f"one config.pbtxt cannot name its plans and those of version {newest.version} ({have})"
        notes.append(f"version {version.version} stays in the repository and is no longer loaded: {why}")
    return notes


def _network(
    request: PackageRequest, folders: tuple[Path, ...], variant: Variant, old: PackageDocument | None
) -> tuple[Network, Platform, str]:
    """Choose what runs the variant, and say why."""
    of_dense_build = request.dense is not None and folders == (request.dense,)
    # A build of dense weights has no pattern; its one graph and its unflagged engine are the dense variant.
    found: Variant = "control" if of_dense_build else variant
    here = any(has_plan(read_build(folder), found) for folder in folders)
    as_before = request.platform == "auto" and old is not None and old.platform == "onnxruntime"
    platform: Platform
    if request.server == "triton-cpu":
        network, platform, why = onnx_network(folders[0], found), "python", "the Python backend runs the ONNX anywhere"
    elif request.platform == "tensorrt_plan" or (request.platform == "auto" and here and not as_before):
        network = plan_network(folders, found, sm=request.sm, tensorrt=request.tensorrt)
        platform, why = "tensorrt_plan", "the build holds a plan of full TensorRT"
    else:
        network, platform = onnx_network(folders[0], found), "onnxruntime"
        why = "the build holds no plan of full TensorRT"
        if here:
            why = "as asked" if request.platform == "onnxruntime" else "as the version before"
    if platform != "tensorrt_plan":
        _refuse_plan_options(request, folders)
    if of_dense_build:
        network = replace(network, variant="dense")
    return network, platform, why


def _refuse_plan_options(request: PackageRequest, folders: tuple[Path, ...]) -> None:
    for option, given in (("--sm", request.sm), ("--tensorrt", request.tensorrt)):
        if given is not None:
            raise ConfigError("states what a plan is for, and no plan is packaged here", where=option, hint="drop it")
    if len(folders) > 1:
        raise ConfigError("several builds are for several GPUs' plans; the ONNX is one", hint="name one build")


def _check_cuda_graphs(request: PackageRequest, network: Network, platform: Platform) -> None:
    """Refuse --cuda-graphs and --no-cuda-graphs where they change nothing.

    Raises:
        ConfigError: There is no plan, or its inputs have free dimensions, for which no graph can be captured.
    """
    if request.cuda_graphs is None:
        return
    option = "--cuda-graphs" if request.cuda_graphs else "--no-cuda-graphs"
    if platform != "tensorrt_plan":
        raise ConfigError(f"is for plans, and {platform} is packaged here", where=option, hint="drop it")
    if request.cuda_graphs and free_sizes(network.build):
        sizes = ", ".join(free_sizes(network.build))
        raise ConfigError(f"a CUDA graph has fixed sizes, and {sizes} is free", where=option, hint="drop it")


def _check_runs(network: Network, platform: Platform, *, gpu: bool) -> None:
    build = network.build
    if not gpu and "bf16" in build.precision:
        raise InputError(
            "ONNX Runtime has no bfloat16 kernels on a CPU", where=network.folder, hint="export with --precision fp16"
        )
    if platform == "python":
        for port in (*build.inputs, *build.outputs):
            numpy_type(port.dtype)


def version_record(network: Network, number: int) -> VersionRecord:
    """Record where a version comes from; its files are added when they are written."""
    build = network.build
    return VersionRecord(
        version=number,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        variant=network.variant,
        build=network.folder.resolve().name,
        build_sha256=sha256_of(network.folder / BuildDocument.FILE),
        method=build.source.method,
        pattern=build.source.pattern,
        precision=build.precision,
        batch=build.batch,
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


def _publish(request: PackageRequest, one: _Prepared) -> Packaged:
    folder = request.repository / one.document.model
    labels = None if request.labels is None else checked_labels(request.labels, one.network.build)
    whole: list[PackageDocument] = []

    def fill(target: Path) -> tuple[dict[str, str], dict[str, bytes]]:
        fill_version(target, one.document.platform, one.network)
        version = one.document.versions[-1].model_copy(update={"files": file_records(target)})
        done = one.document.model_copy(update={"versions": [*one.document.versions[:-1], version]})
        whole.append(done)
        edited = one.held.config if one.held is not None and one.held.edited and request.keep_config else None
        return model_files(done, folder, current=target, labels=labels, edited=edited)

    publish(request.repository, one.document.model, one.document.versions[-1].version, fill)
    return Packaged(document=whole[0], folder=folder, why=one.why, notes=one.notes)


def fill_version(target: Path, platform: Platform, network: Network) -> None:
    """Copy a version's files: the graph always (it says what a plan was built from), then what the server runs."""
    shutil.copyfile(network.onnx, target / ONNX_FILE)
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
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=path, hint="name a text file, one class a line") from None
    # Lines as servers count them: str.splitlines would also cut at U+2028 and form feeds.
    lines = text.removesuffix("\n").split("\n")
    classes = build.outputs[0].shape[-1] if build.outputs[0].shape else None
    if isinstance(classes, int) and len(lines) != classes:
        raise InputError(f"holds {len(lines)} lines, and the network has {classes} classes", where=path)
    if "" in lines:
        raise InputError(f"line {lines.index('') + 1} is empty", where=path, hint="give every class a name")
    return "\n".join(lines) + "\n"
