"""What is packaged: build folders whose manifests vouch for every file that is taken from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts import BuildDocument, EngineRecord, sha256_of
from nm2trt.artifacts.build import Variant
from nm2trt.artifacts.engine_trust import check_plan
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.errors import ConfigError, InputError

DENSE_FILE = "dense.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One variant of one network: its graph, and its plans for as many GPUs as builds were given."""

    variant: Variant
    folder: Path
    build: BuildDocument
    onnx: Path
    data: tuple[Path, ...]
    """External data of the graph; empty where the weights are inside."""
    plans: tuple[tuple[Path, EngineRecord], ...]
    """Empty where the server is to run the ONNX."""


def read_build(folder: Path) -> BuildDocument:
    """Read a build folder whose checks passed.

    Raises:
        InputError: No build, or one whose verdict is "fail".
    """
    build = BuildDocument.read(folder, hint="name a folder that `nm2trt export` wrote")
    if build.verdict != "pass":
        raise InputError("the build's own checks failed", where=folder, hint="see its build.json and export it again")
    return build


def build_onnx(folder: Path, build: BuildDocument, variant: Variant) -> Path:
    """Find a variant's graph and hold it to the manifest.

    Raises:
        InputError: The build has no such variant, or the file is not what build.json names.
    """
    named = {engine.onnx for engine in build.engines if engine.variant == variant}
    if variant != "dense":
        named.add(ONNX_FILE)
    elif DENSE_FILE in build.files:
        named.add(DENSE_FILE)
    if not named:
        raise InputError(
            "the build holds no dense network",
            where=folder,
            hint="name the dense build with --dense, or drop that variant",
        )
    name = sorted(named)[0]
    return _vouched(folder, build, name)


def external_data(folder: Path, build: BuildDocument, onnx: Path) -> tuple[Path, ...]:
    """Find the files that hold a graph's weights outside it, and hold them to the manifest.

    Raises:
        InputError: The graph cannot be read, or names a file that build.json does not vouch for.
    """
    from onnx import TensorProto, load

    try:
        model = load(str(onnx), load_external_data=False)
    except Exception as error:
        # protobuf's DecodeError, which comes without types.
        raise InputError(f"no readable ONNX: {error}", where=onnx, hint="export it again") from error
    names = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(_vouched(folder, build, name) for name in sorted(names))


def _vouched(folder: Path, build: BuildDocument, name: str) -> Path:
    """A file of the build that is what build.json says."""
    path = folder / name
    if path.parent != folder or name not in build.files or not path.is_file() or path.is_symlink():
        raise InputError(f"no plain file {name!r} that build.json vouches for", where=folder, hint="export it again")
    digest = sha256_of(path)
    if digest != build.files[name].sha256:
        raise InputError(
            f"sha256 {digest[:12]}… is not the {build.files[name].sha256[:12]}… of build.json: the file was changed",
            where=path,
            hint="export it again",
        )
    return path


def onnx_network(folder: Path, variant: Variant) -> Network:
    """Take a variant's graph, for a server that runs ONNX."""
    build = read_build(folder)
    return _network(folder, build, variant, ())


def _network(
    folder: Path, build: BuildDocument, variant: Variant, plans: tuple[tuple[Path, EngineRecord], ...]
) -> Network:
    onnx = build_onnx(folder, build, variant)
    data = external_data(folder, build, onnx)
    return Network(variant=variant, folder=folder, build=build, onnx=onnx, data=data, plans=plans)


def plan_network(folders: Sequence[Path], variant: Variant, *, sm: str | None, tensorrt: str | None) -> Network:
    """Take a variant's plans, one per GPU kind, from builds of one network.

    Args:
        folders: Build folders; the first one's ONNX is taken along.
        variant: Which engine.
        sm: What the user says the engine is for, "80"; None takes the builds' word.
        tensorrt: What the user says the server has; None takes the builds' word.

    Raises:
        ConfigError: Two builds are for the same SM, or `sm` is stated for several builds.
        InputError: A plan is not what its manifest says, is for something else, or the builds' networks differ.
    """
    if sm is not None and len(folders) > 1:
        raise ConfigError("--sm states one GPU, and several builds are for several", where="--sm", hint="drop it")
    builds = [(folder, read_build(folder)) for folder in folders]
    plans: dict[str, tuple[Path, EngineRecord]] = {}
    for folder, build in builds:
        record = plan_record(folder, build, variant)
        path = check_plan(
            folder,
            variant,
            tensorrt_version=tensorrt or record.builder_version,
            sm=(sm or record.sm).replace(".", ""),
            platform=record.platform,
        )
        if record.sm in plans:
            raise ConfigError(f"two builds hold a plan for SM {record.sm}", where=folder, hint="name one of them")
        plans[record.sm] = (path, record)
    folder, first = builds[0]
    for other_folder, other in builds[1:]:
        _check_same_network(first, other, other_folder)
    versions = {record.builder_version for _, record in plans.values()}
    if len(versions) > 1:
        raise InputError(
            f"the plans were built by TensorRT {' and '.join(sorted(versions))}, and a server has one",
            where=folders[-1],
            hint="build them with the same TensorRT",
        )
    return _network(folder, first, variant, tuple(plans.values()))


def plan_record(folder: Path, build: BuildDocument, variant: Variant) -> EngineRecord:
    """Find the plan of a variant that full TensorRT built.

    Raises:
        InputError: There is none, or TensorRT-RTX built it.
    """
    found = [
        engine
        for engine in build.engines
        if engine.variant == variant and engine.file is not None and not engine.rebuild
    ]
    if not found:
        raise InputError(
            f"the build holds no {variant} plan ({build.engines_note})",
            where=folder,
            hint="export it with --builder tensorrt on the GPU, or package the ONNX with --platform onnxruntime",
        )
    if found[0].builder != "tensorrt":
        raise InputError(
            f"{found[0].file} was built by {found[0].builder}; Triton's backend loads plans of full TensorRT only",
            where=folder,
            hint="export with --builder tensorrt on the GPU, or package the ONNX with --platform onnxruntime",
        )
    return found[0]


def has_plan(build: BuildDocument, variant: Variant) -> bool:
    """Whether the build holds a plan of full TensorRT for the variant."""
    return any(engine.variant == variant and engine.file and engine.builder == "tensorrt" for engine in build.engines)


def _check_same_network(first: BuildDocument, other: BuildDocument, folder: Path) -> None:
    for what, here, there in (
        ("source", first.source.sha256, other.source.sha256),
        ("precision", first.precision, other.precision),
        ("inputs", first.inputs, other.inputs),
        ("outputs", first.outputs, other.outputs),
        ("batch", first.batch, other.batch),
    ):
        if here != there:
            raise InputError(
                f"its {what} is not that of the first build: the plans of one version are one network",
                where=folder,
                hint="export both from the same checkpoint with the same options",
            )
