"""The largest batch that a server may make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nm2trt.artifacts.package import PackageDocument
from nm2trt.errors import ConfigError, InputError
from nm2trt.serve.port_rules import unbatched_ports
from nm2trt.serve.source import Network

if TYPE_CHECKING:
    from nm2trt.serve.triton import PackageRequest


def largest_batch(request: PackageRequest, document: PackageDocument, network: Network) -> tuple[int, list[str]]:
    """Largest batch that the server and every served version's engine can make, and notes; 0: no batching.

    Raises:
        ConfigError: Batching was asked of a build with fixed shapes, or more than an engine's profile has.
        InputError: A port has no batch, so that a batch cannot be cut into requests.
    """
    build = network.build
    where = network.folder
    asked = document.max_batch_asked
    if build.batch is None or asked == 0:
        given = ("--max-batch", request.max_batch or None), ("--queue-delay-us", request.queue_delay_us)
        for option, value in given:
            if value is not None:
                why = (
                    "the server does not batch"
                    if asked == 0
                    else "the build has no dynamic batch, so the server cannot"
                )
                raise ConfigError(
                    f"{why} ({where.name})" if asked == 0 else f"{why} batch for it ({where.name})",
                    where=option,
                    hint="export with --batch MIN:OPT:MAX, or drop the option" if asked != 0 else "drop it",
                )
        return 0, []
    if bad := unbatched_ports(build, network.onnx):
        raise InputError(
            f"{bad[0]} has no batch, so a server cannot cut a batch of answers into requests",
            where=where,
            hint="serve it without batching: --max-batch 0",
        )
    if network.plans and build.batch.min > 1:
        raise ConfigError(
            f"the plan takes batches from {build.batch.min} on, and a server also makes smaller ones",
            where=where,
            hint=f"export with --batch 1:{build.batch.opt}:{build.batch.max}",
        )
    if request.max_batch is not None and request.max_batch > build.batch.max:
        raise ConfigError(
            f"{request.max_batch} is outside 1..{build.batch.max}, the batches of {where.name}",
            where="--max-batch",
            hint="export with a larger --batch, or ask for less",
        )
    return _smallest(request, document, build.batch.max)


def _smallest(request: PackageRequest, document: PackageDocument, built: int) -> tuple[int, list[str]]:
    """The largest batch that every loaded version takes; there is one max_batch_size for all of them."""
    largest = min(document.max_batch_asked or built, built)
    notes = []
    if document.max_batch_asked is not None and largest < document.max_batch_asked:
        notes.append(f"batches up to {largest} instead of {document.max_batch_asked}: this build takes no more")
    for version in document.served[:-1] if document.platform == "tensorrt_plan" else ():
        if version.batch is None or version.batch.max >= largest:
            continue
        remove = f"--remove-version {version.version} takes it away"
        if request.max_batch is not None:
            raise ConfigError(
                f"{request.max_batch} is more than {version.batch.max}, the largest batch of version "
                f"{version.version}, which stays loaded",
                where="--max-batch",
                hint=f"ask for less; {remove}",
            )
        largest = version.batch.max
        notes.append(f"batches up to {largest}, as version {version.version} takes no more and stays loaded; {remove}")
    return largest, notes
