"""Put builds into an inference server's model repository, and take versions out of service."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts.build import Variant
from nm2trt.artifacts.files import check_output, staged_folder
from nm2trt.artifacts.package import PackageDocument
from nm2trt.errors import ConfigError
from nm2trt.serve import (
    Changed,
    Packaged,
    PackageRequest,
    Surroundings,
    check_surroundings,
    model_folders,
    package_deepstream,
    package_onnxruntime,
    package_triton,
    packaged_documents,
    read_build,
    remove_version,
    roll_back,
    write_around,
)
from nm2trt.serve.ports import check_name

__all__ = [
    "ChangeConfig",
    "ChangeResult",
    "PackageConfig",
    "PackageDocument",
    "PackageResult",
    "Packaged",
    "change_versions",
    "option_name",
    "package_build",
]

logger = logging.getLogger(__name__)

ServerName = Literal["triton", "triton-cpu", "kserve", "deepstream", "onnxruntime"]
Progress = Callable[[str], None]

_SERVERS: tuple[ServerName, ...] = ("triton", "triton-cpu", "kserve", "deepstream", "onnxruntime")
_TRITONS: tuple[ServerName, ...] = ("triton", "triton-cpu", "kserve")
_FOLDERS: tuple[ServerName, ...] = ("deepstream", "onnxruntime")
_SCALE = 1 / 255

_HAS_EFFECT: dict[str, tuple[ServerName, ...]] = {
    "platform": ("triton", "kserve"),
    "device": ("triton", "kserve"),
    "dense": _TRITONS,
    "version": _TRITONS,
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
}
"""Field -> servers for which it changes something. Those that are not here do for every server."""


class PackageConfig(BaseModel):
    """How builds are served. What is not given stays as the repository's version before has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: ServerName = "triton"
    """triton-cpu: ONNX Runtime in Triton's Python backend; deepstream and onnxruntime get a folder of their own."""
    name: str | None = None
    """Of the model. None: the trained network's, or the build folder's."""
    platform: Literal["auto", "tensorrt_plan", "onnxruntime"] = "auto"
    device: Literal["gpu", "cpu"] | None = None
    variants: tuple[Variant, ...] = ("sparse",)
    """Served side by side, as NAME and NAME-VARIANT."""
    dense: Path | None = None
    """Build of the dense-trained network, for traffic beside the sparse one."""
    version: int | None = None
    """None: the next one."""
    max_batch: int | None = None
    """Largest batch that the server makes; 0: it makes none."""
    queue_delay_us: int | None = None
    """How long a request may wait for others, in microseconds."""
    instances: int | None = None
    """Per GPU, or on the CPU."""
    cuda_graphs: bool | None = None
    labels: Path | None = None
    """Class names, one a line."""
    sm: str | None = None
    """The GPU that serves; a plan for another is refused."""
    tensorrt: str | None = None
    """The server's TensorRT; a plan of another is refused."""
    image: str | None = None
    """Triton's container image."""
    storage_uri: str | None = None
    """kserve: where the cluster finds the repository."""
    canary: int | None = None
    """kserve: percent of the traffic for this revision."""
    scale: float | None = None
    """deepstream: factor on pixels 0..255. None: 1/255."""
    keep_config: bool | None = None
    """What becomes of a config.pbtxt that was edited by hand: kept, written anew, or (None) a reason to refuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageResult:
    """What was written, and what a user should know of it."""

    server: ServerName
    models: tuple[Packaged, ...]
    files: tuple[str, ...] = ()
    """At the repository's root, for a container or cluster."""
    notes: tuple[str, ...] = ()

    @property
    def is_repository(self) -> bool:
        """Models with versions in a repository; otherwise one folder of its own."""
        return self.server in _TRITONS

    def to_json(self) -> str:
        """The models' package.json in one document; of a folder its own."""
        if not self.is_repository:
            return self.models[0].document.to_json()
        documents = [one.document.model_dump(mode="json", by_alias=True) for one in self.models]
        head = {"schema": "nm2trt.packages/1", "nm2trt_version": documents[0]["nm2trt_version"]}
        return json.dumps({**head, "models": documents, "files": list(self.files)}, indent=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeConfig:
    """Which version is taken out of service."""

    name: str | None = None
    """Of the model. None: the only one that the repository holds."""
    remove_version: int | None = None
    """Version whose files are removed. None: roll back to the version before the newest, whose files stay."""
    keep_config: bool | None = None
    """As in `PackageConfig`."""
    image: str | None = None
    """As in `PackageConfig`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeResult:
    """A model after a version was taken out of service."""

    name: str
    changed: Changed
    is_removed: bool
    """Its files are gone; else it is only not loaded."""
    files: tuple[str, ...]
    """Written anew at the repository's root."""
    notes: tuple[str, ...]

    @property
    def document(self) -> PackageDocument:
        """The model's package.json."""
        return self.changed.document

    def to_json(self) -> str:
        """The model's package.json."""
        return self.document.to_json()


def package_build(
    builds: Path | str | Sequence[Path | str],
    output: Path | str,
    config: PackageConfig | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> PackageResult:
    """Package a build for an inference server.

    Into a repository that holds the model already goes a new version beside the old one, in one rename: a server that
    runs is never shown half a version.

    Args:
        builds: Build folder; several of one network to serve it on several kinds of GPU.
        output: Model repository to write or add to; for deepstream and onnxruntime a new folder.
        config: How it is served.
        force: Replace a folder of deepstream or onnxruntime that nm2trt wrote.
        progress: Told in a sentence when another process is writing into the repository.

    Returns:
        The models with their newest version, the files around them, and notes.

    Raises:
        ConfigError: A setting is wrong or has no effect with this server, or the output holds something else.
        InputError: A build, plan or manifest cannot be used.

    Example:
        >>> from nm2trt.errors import InputError
        >>> try:
        ...     package_build("no-such-build", "repository", PackageConfig(server="triton-cpu"))
        ... except InputError as error:
        ...     print(error.what)
        no build.json here
    """
    config = config or PackageConfig()
    folders = tuple(map(Path, [builds] if isinstance(builds, (str, Path)) else builds))
    if not folders:
        raise ConfigError("no BUILD", where="package", hint="name a folder that `nm2trt export` wrote")
    _refuse_without_effect(config, force=force)
    logger.debug("package %s for %s into %s", ", ".join(map(str, folders)), config.server, output)
    if config.server in _FOLDERS:
        return _package_folder(folders, Path(output), config, force=force)
    return _package_repository(folders, Path(output), config, progress)


def change_versions(
    repository: Path | str, config: ChangeConfig | None = None, *, progress: Progress | None = None
) -> ChangeResult:
    """Take a version out of service: remove it, or go back to the one before.

    Args:
        repository: What `package_build` wrote.
        config: Which model and version.
        progress: Told in a sentence when another process is writing into the repository.

    Returns:
        The model as it is served now.

    Raises:
        ConfigError: There is no such model or version, it is the last that can be served, or config.pbtxt was edited.
        InputError: package.json cannot be read.

    Example:
        >>> from nm2trt import ExportConfig, export_network
        >>> _ = export_network(Path("model.onnx"), Path("build"), ExportConfig(builder="none"))
        >>> for _ in range(2):
        ...     _ = package_build("build", "repository", PackageConfig(server="triton-cpu", name="digits"))
        >>> change_versions("repository").document.withdrawn
        (2,)
    """
    config, output = config or ChangeConfig(), Path(repository)
    name = _only_model(output) if config.name is None else check_name(config.name)
    keep = config.keep_config
    if config.remove_version is not None:
        changed = remove_version(output, name, config.remove_version, keep_config=keep, on_wait=progress)
    else:
        changed = roll_back(output, name, keep_config=keep, on_wait=progress)
    files, left = _write_around(output, changed.document, Surroundings(image=config.image), progress)
    return ChangeResult(
        name=name,
        changed=changed,
        is_removed=config.remove_version is not None,
        files=files,
        notes=(*left, *changed.notes),
    )


def option_name(name: str, value: object = None) -> str:
    """How the command line writes a setting."""
    written = {"variants": "--variant", "as_json": "--json"}
    if value is False:
        written |= {"cuda_graphs": "--no-cuda-graphs", "keep_config": "--rewrite-config"}
    return written.get(name, f"--{name.replace('_', '-')}")


def _refuse_without_effect(config: PackageConfig, *, force: bool) -> None:
    given: Collection[str] = config.model_fields_set | ({"force"} if force else set())
    for name in sorted(given):
        servers = _FOLDERS if name == "force" else _HAS_EFFECT.get(name, _SERVERS)
        if config.server in servers:
            continue
        if name == "force":
            raise ConfigError(
                "a repository keeps its versions", where="--force", hint="drop it; a new version goes beside"
            )
        raise ConfigError(
            f"does nothing with --server {config.server}",
            where=option_name(name, getattr(config, name)),
            hint=f"drop it; it is for {', '.join(servers)}",
        )


def _only_model(repository: Path) -> str:
    names = [folder.name for folder in model_folders(repository)]
    if len(names) > 1:
        raise ConfigError(f"the repository holds {', '.join(names)}", where=repository, hint="name one with --name")
    return names[0]


def _model_name(given: str | None, build: Path) -> str:
    """The name that was given, else one after what was trained: data set and network; or after the folder."""
    if given is not None:
        return given
    source = read_build(build).source
    words = [source.data, source.model.name] if source.data and source.model else [build.resolve().name]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(str(word) for word in words)).strip("-.") or "model"


def _package_repository(
    builds: tuple[Path, ...], output: Path, config: PackageConfig, progress: Progress | None
) -> PackageResult:
    surroundings = Surroundings(
        image=config.image,
        kserve=config.server == "kserve",
        storage_uri=config.storage_uri,
        canary=config.canary,
    )
    if surroundings.kserve:
        # What is missing of it is told before the build is read.
        check_surroundings("model" if config.name is None else config.name, surroundings)
    request = _request(builds, output, config, progress)
    # Everything that the files at the root are made of is checked before a version is written.
    check_surroundings(request.name, surroundings)
    packaged_documents(output)
    packaged = package_triton(request)
    files, left = _write_around(output, packaged[0].document, surroundings, progress)
    notes = [f"{one.document.model}: {note}" for one in packaged for note in one.notes]
    return PackageResult(server=config.server, models=tuple(packaged), files=files, notes=(*left, *notes))


def _request(
    builds: tuple[Path, ...], output: Path, config: PackageConfig, progress: Progress | None
) -> PackageRequest:
    return PackageRequest(
        builds=builds,
        repository=output,
        name=_model_name(config.name, builds[0]),
        server="triton-cpu" if config.server == "triton-cpu" else "triton",
        platform=config.platform,
        device=config.device,
        variants=config.variants,
        dense=config.dense,
        version=config.version,
        max_batch=config.max_batch,
        queue_delay_us=config.queue_delay_us,
        instances=config.instances,
        cuda_graphs=config.cuda_graphs,
        labels=config.labels,
        sm=config.sm,
        tensorrt=config.tensorrt,
        keep_config=config.keep_config,
        on_wait=progress,
    )


def _write_around(
    output: Path, document: PackageDocument, surroundings: Surroundings, progress: Progress | None
) -> tuple[tuple[str, ...], list[str]]:
    """Names of the files that were written, and a note on each that was left."""
    written = write_around(output, document, surroundings, on_wait=progress)
    left = [f"{name} was changed by somebody, and is left as it is" for name in written.left]
    return tuple(written.files), left


def _package_folder(builds: tuple[Path, ...], output: Path, config: PackageConfig, *, force: bool) -> PackageResult:
    """DeepStream and ONNX Runtime: one folder, whole or not at all."""
    if len(builds) > 1 or len(config.variants) > 1:
        raise ConfigError(f"{config.server} takes one BUILD and one --variant")
    check_output(output, force=force)
    name = _model_name(config.name, builds[0])
    variant = config.variants[0]
    with staged_folder(output, force=force) as folder:
        if config.server == "deepstream":
            document = package_deepstream(
                builds[0],
                folder,
                name=name,
                variant=variant,
                labels=config.labels,
                scale=_SCALE if config.scale is None else config.scale,
                sm=config.sm,
                tensorrt=config.tensorrt,
            )
        else:
            document = package_onnxruntime(builds[0], folder, name=name, variant=variant)
        document.write(folder)
    return PackageResult(server=config.server, models=(Packaged(document=document, folder=output, why=""),))
