"""Packaged models on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nm2trt.cli.common import stdout_console

if TYPE_CHECKING:
    from nm2trt.pipelines.package import ChangeResult, Packaged, PackageDocument, PackageResult


def print_package(result: PackageResult, output: Path) -> None:
    """Print what a repository, or a folder of its own, holds now."""
    console = stdout_console()
    if not result.is_repository:
        document = result.models[0].document
        names = ", ".join(sorted([*document.versions[0].files, "package.json"]))
        console.print(f"{document.model} for {result.server}: {output}", markup=False, soft_wrap=True)
        console.print(names, markup=False, soft_wrap=True)
        _print_plans(document)
        return
    for one in result.models:
        _print_model(one)
    console.print(f"repository: {output}", markup=False, soft_wrap=True)
    _print_files(result.files)


def print_change(result: ChangeResult) -> None:
    """Print which version is out of service, and which ones are served."""
    served = ", ".join(str(version.version) for version in result.document.served)
    done = "removed" if result.is_removed else "is not loaded now"
    stdout_console().print(
        f"{result.name}: version {result.changed.version} {done}; served: version {served}",
        markup=False,
        soft_wrap=True,
    )
    _print_files(result.files)


def _print_model(one: Packaged) -> None:
    console = stdout_console()
    document, version = one.document, one.version
    console.print(f"{document.model} version {version.version}", markup=False, style="bold")
    console.print(
        f"  {document.platform} ({one.why}), {version.variant} variant, {_batching(document)}",
        markup=False,
        soft_wrap=True,
    )
    old = ", ".join(str(other.version) for other in document.served[:-1])
    if old:
        console.print(f"  beside version {old}", markup=False)
    _print_plans(document)


def _batching(document: PackageDocument) -> str:
    if document.max_batch:
        return f"batches up to {document.max_batch}, {document.queue_delay_us} us queue delay"
    return "no batching" if document.max_batch_asked == 0 else "fixed shapes, no batching"


def _print_plans(document: PackageDocument) -> None:
    for plan in document.versions[-1].plans:
        text = f"  {plan.file}: needs TensorRT {plan.tensorrt}, SM {plan.sm}; {plan.triton}"
        stdout_console().print(text, markup=False, soft_wrap=True)


def _print_files(files: tuple[str, ...]) -> None:
    if files:
        text = f"files for a container or cluster: {', '.join(files)}"
        stdout_console().print(text, markup=False, soft_wrap=True)
