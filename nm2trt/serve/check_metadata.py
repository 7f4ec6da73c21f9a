"""A server's description of a model against the build's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nm2trt.artifacts import BuildDocument, GraphPort
from nm2trt.artifacts.server_report import MetadataRecord, Protocol
from nm2trt.serve.answers import RequestFailed, printable
from nm2trt.serve.client import Client
from nm2trt.serve.ports import kserve_type, server_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What the description says that later requests need."""

    record: MetadataRecord
    padded: frozenset[str] = frozenset()
    """Inputs and outputs served with one more dimension of 1: Triton describes no fewer than one besides the batch."""
    version: str = ""
    """Version that must answer: the one asked for, else the highest listed; empty where none is listed."""
    names: frozenset[str] = frozenset()
    """What the server calls the model."""


def check_metadata(
    client: Client,
    protocol: Protocol,
    build: BuildDocument,
    *,
    asked_version: str,
    without_batch: list[str],
) -> Described:
    """Ask for the description, and compare it.

    Args:
        client: A connection.
        protocol: For the record.
        build: What should be served.
        asked_version: Version asked for; empty: the server's choice.
        without_batch: Outputs of a graph with a free batch that have none.
    """
    try:
        server, found = client.server(), client.metadata()
    except RequestFailed as error:
        return Described(record=_record(protocol, "", "", (), [f"no description: {error}"]))
    differences = [
        f"the server's own description has no {key}" for key in ("name", "version") if not _is_text(server.get(key))
    ]
    padded: set[str] = set()
    for kind, ports in (("input", build.inputs), ("output", build.outputs)):
        differences += port_differences(kind, ports, found.get(f"{kind}s"), padded)
    listed = found.get("versions", [])
    versions = tuple(map(str, listed)) if isinstance(listed, list) else ()
    if not isinstance(listed, list):
        differences.append(f"its versions are {listed!r}, no list")
    if asked_version and versions and asked_version not in versions:
        differences.append(f"version {asked_version} was asked for, and {', '.join(versions)} is listed")
    if without_batch and _batches(client):
        differences.append(
            f"output {without_batch[0]!r} has no batch, and the server joins requests: they would get each other's rows"
        )
    name = found.get("name")
    numbers = [version for version in versions if version.isascii() and version.isdigit()]
    newest = max(numbers, key=int) if numbers and len(numbers) == len(versions) else ""
    return Described(
        record=_record(
            protocol,
            f"{server.get('name', '?')} {server.get('version', '?')}",
            str(found.get("platform", "")),
            versions,
            differences,
        ),
        padded=frozenset(padded),
        version=asked_version or newest,
        names=frozenset({name}) if isinstance(name, str) and name else frozenset(),
    )


def _record(
    protocol: Protocol, server: str, platform: str, versions: tuple[str, ...], differences: list[str]
) -> MetadataRecord:
    return MetadataRecord(
        protocol=protocol,
        server=printable(server),
        platform=printable(platform),
        versions=tuple(map(printable, versions)),
        differences=tuple(map(printable, differences)),
    )


def _batches(client: Client) -> bool:
    most = client.config().get("max_batch_size", 0)
    return isinstance(most, int) and most > 0


def port_differences(kind: str, ports: tuple[GraphPort, ...], served: Any, padded: set[str]) -> list[str]:
    """Name what differs; gRPC's JSON writes sizes as text.

    Args:
        kind: "input" or "output".
        ports: The build's.
        served: The server's list, unchecked.
        padded: Gets the names of ports that are served with one more dimension of 1.
    """
    if not isinstance(served, list) or not all(isinstance(one, dict) and _is_text(one.get("name")) for one in served):
        return [f"the description has no list of {kind}s with names"]
    by_name: dict[str, dict[str, Any]] = {}
    differences = []
    for one in served:
        if one["name"] in by_name:
            differences.append(f"{kind} {one['name']!r} is listed twice")
        by_name[one["name"]] = one
    known = {port.name for port in ports}
    differences += [f"{kind} {name!r} is served, and the build has none" for name in by_name if name not in known]
    for port in ports:
        entry = by_name.get(port.name)
        if entry is None:
            differences.append(f"{kind} {port.name!r} is not served")
            continue
        if entry.get("datatype") != kserve_type(port.dtype):
            differences.append(f"{kind} {port.name!r} is {entry.get('datatype')}, not {kserve_type(port.dtype)}")
        shape, right = _shape(entry.get("shape", [])), server_shape(port)
        if len(right) <= 1 and shape == [*right, 1]:
            padded.add(port.name)
        elif shape != right:
            differences.append(f"{kind} {port.name!r} has shape {shape}, not {right}")
    return differences


def _shape(sizes: Any) -> Any:
    try:
        return [int(str(size)) for size in sizes]
    except (TypeError, ValueError):
        return sizes


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
