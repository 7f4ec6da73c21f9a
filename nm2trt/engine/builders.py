"""The engine builders, and which of them this machine can use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from nm2trt.artifacts import EngineRecord
from nm2trt.engine.job import Backend, BuildProgress, EngineJob
from nm2trt.engine.process import run_job, run_probe
from nm2trt.errors import ConfigError, MachineError
from nm2trt.tensorrt_api import distribution_version, explain_missing, explain_missing_package, present_sm

Progress = Callable[[BuildProgress], None]

AUTO, NONE = "auto", "none"
BUILDER_CHOICES = (AUTO, "tensorrt", "tensorrt-rtx", NONE)
DEFAULT_SM = "80"
"""A100: the GPU that TensorRT's structured sparsity was made for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Whether a builder can be used here, and if not what is missing."""

    available: bool
    version: str
    why: str
    """What was found, or what is missing, in words."""
    hint: str = ""
    """Command or step that provides it; empty where it is available."""


class EngineBuilder(Protocol):
    """Compiles an ONNX file into an engine."""

    name: ClassVar[Backend]

    def availability(self) -> Availability:
        """Look for the library and what it needs; nothing heavy is imported from it."""
        ...

    def resolve_sm(self, sm: str | None) -> str | None:
        """Settle which compute capability is compiled for.

        Raises:
            ConfigError: The builder cannot target it.
            MachineError: The library does not load.
        """
        ...

    def build(self, job: EngineJob, progress: Progress | None = None) -> EngineRecord:
        """Build one engine; a failed build is a record with an error.

        Raises:
            OSError: A file cannot be written.
        """
        ...


class TensorrtRtxBuilder:
    """TensorRT for RTX: compiles ahead of time, without a GPU; kernels are chosen later, on the GPU."""

    name: ClassVar[Backend] = "tensorrt-rtx"

    def availability(self) -> Availability:
        """Look for the package."""
        missing = explain_missing_package("tensorrt-rtx")
        if missing is not None:
            return Availability(available=False, version="", why=missing.what, hint=missing.hint)
        version = distribution_version("tensorrt-rtx")
        return Availability(available=True, version=version, why=f"tensorrt-rtx {version} builds without a GPU")

    def resolve_sm(self, sm: str | None) -> str | None:
        """Take the wish, or SM80; asks the library whether it can target it."""
        wanted = sm or DEFAULT_SM
        probed = run_probe(self.name)
        if wanted not in probed.targets:
            raise ConfigError(
                f"TensorRT-RTX {probed.version} cannot compile for SM{wanted}",
                where="--sm",
                hint=f"choose from {', '.join(probed.targets)}",
            )
        return wanted

    def build(self, job: EngineJob, progress: Progress | None = None) -> EngineRecord:
        """Build one engine."""
        return run_job(job, progress)


class TensorrtBuilder:
    """TensorRT proper: times kernels on the GPU that is present and builds for that one."""

    name: ClassVar[Backend] = "tensorrt"

    def availability(self) -> Availability:
        """Look for the module and a GPU; names everything that is missing, and asks the module for its version."""
        missing = explain_missing("tensorrt")
        if missing:
            why, hint = " and ".join(one.what for one in missing), ", then ".join(one.hint for one in missing)
            return Availability(available=False, version=distribution_version("tensorrt"), why=why, hint=hint)
        try:
            version = run_probe(self.name).version
        except MachineError as error:
            return Availability(available=False, version="", why=f"tensorrt {error.what}", hint=error.hint)
        return Availability(available=True, version=version, why=f"tensorrt {version} with an SM{present_sm()} GPU")

    def resolve_sm(self, sm: str | None) -> str | None:
        """Take the GPU's own; another wish is a mistake."""
        present = present_sm()
        if sm is not None and sm != present:
            raise ConfigError(
                f"TensorRT builds for the GPU that is present, SM{present}, not for SM{sm}",
                where="--sm",
                hint="leave --sm out, or use --builder tensorrt-rtx",
            )
        return present

    def build(self, job: EngineJob, progress: Progress | None = None) -> EngineRecord:
        """Build one engine and write its layers."""
        return run_job(job, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The builder that is used, if any, and why."""

    builder: EngineBuilder | None
    why: str


def known_builders() -> list[EngineBuilder]:
    """All builders, in the order in which `auto` tries them."""
    return [TensorrtBuilder(), TensorrtRtxBuilder()]


def choose_builder(name: str) -> Chosen:
    """Choose by name, or the best that works here.

    Args:
        name: One of `BUILDER_CHOICES`.

    Raises:
        ConfigError: The name is unknown.
        MachineError: A builder was asked for by name and something that it needs is missing.
    """
    if name not in BUILDER_CHOICES:
        raise ConfigError(
            f"unknown builder {name!r}", where="--builder", hint=f"choose from {', '.join(BUILDER_CHOICES)}"
        )
    if name == NONE:
        return Chosen(builder=None, why="no engines were asked for (--builder none)")
    lacking: list[str] = []
    for builder in known_builders():
        if name not in (AUTO, builder.name):
            continue
        found = builder.availability()
        if found.available:
            return Chosen(builder=builder, why="; ".join([found.why, *lacking]))
        if name != AUTO:
            raise MachineError(f"{name}: {found.why}", where="--builder", hint=found.hint)
        lacking.append(f"not {builder.name}, since {found.why} ({found.hint})")
    return Chosen(builder=None, why="no engine builder: " + "; ".join(lacking))
