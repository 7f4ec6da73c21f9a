"""A running server against the build it should serve: description, outputs, load."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts import BuildDocument, GraphPort, host_record, sha256_of
from nm2trt.artifacts.build import Arm
from nm2trt.artifacts.code_trust import check_code
from nm2trt.artifacts.server_report import (
    LoadRecord,
    MetadataRecord,
    OutputsRecord,
    Protocol,
    SaturationRecord,
    ServerReportDocument,
)
from nm2trt.errors import InputError
from nm2trt.serve.client import GrpcClient, HttpClient, RequestFailed, addresses, open_client
from nm2trt.serve.load import levels, run_level, saturation, until_saturated
from nm2trt.serve.ports import kserve_type, server_shape
from nm2trt.serve.samples import Samples, build_samples, largest_error
from nm2trt.serve.source import build_onnx, read_build

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""Bounds on the largest error over the largest reference magnitude, as `nm2trt export` has them."""
_OTHER_TOLERANCE = 5e-2
_SAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """What to ask."""

    url: str
    model: str
    build: Path
    arm: Arm = "sparse"
    grpc: str | None = None
    version: str = ""
    protocols: tuple[Protocol, ...] = ("http", "grpc")
    tolerance: float | None = None
    load: bool = True
    duration_s: float = 2.0
    max_concurrency: int = 64
    data_dir: Path | None = None
    trust: bool = False
    """Import code that build.json names although this machine did not write it."""


Progress = Callable[[str], None]


def check_server(config: CheckConfig, progress: Progress = lambda _words: None) -> ServerReportDocument:
    """Ask a server, and compare with the build.

    Raises:
        ConfigError: The URL is wrong.
        InputError: The build cannot be used, or server or model is not ready.
        MachineError: tritonclient is missing.
    """
    http, grpc = addresses(config.url, config.grpc)
    build = read_build(config.build)
    check_code(config.build / build.FILE, {"data": build.source.data}, trust=config.trust)
    onnx = build_onnx(config.build, build, config.arm)
    where = {"http": http, "grpc": grpc}

    def connect(protocol: Protocol) -> HttpClient | GrpcClient:
        return open_client(protocol, where[protocol], config.model, config.version, build.inputs)

    for protocol in config.protocols:
        _check_ready(connect(protocol), protocol, where[protocol])
    progress("running the samples in ONNX Runtime")
    samples = build_samples(build, onnx, count=_SAMPLES, data_dir=config.data_dir)
    tolerance = config.tolerance or TOLERANCES.get(build.precision, _OTHER_TOLERANCE)
    metadata, outputs = [], []
    for protocol in config.protocols:
        with closing(connect(protocol)) as client:
            progress(f"{protocol}: metadata and outputs")
            metadata.append(_metadata(client, protocol, build))
            outputs.append(_outputs(client, protocol, samples, build, tolerance))
    load: list[LoadRecord] = []
    ends: list[SaturationRecord] = []
    # A server that answers wrongly has no speed worth measuring.
    if config.load and not _problems(metadata, outputs, []):
        load, ends = _load(config, connect, samples, tolerance, progress)
    problems = _problems(metadata, outputs, load)
    return ServerReportDocument(
        model=config.model,
        version=config.version,
        build=config.build.resolve().name,
        onnx_sha256=sha256_of(onnx),
        precision=build.precision,
        metadata=metadata,
        outputs=outputs,
        load=load,
        saturation=ends,
        problems=problems,
        headline=_headline(problems, outputs, ends),
        verdict="fail" if problems else "pass",
        command=_command(config),
        host=host_record(),
    )


def _check_ready(client: HttpClient | GrpcClient, protocol: Protocol, address: str) -> None:
    with closing(client):
        why = client.not_ready()
    if why:
        mend = "start it with `nm2trt serve REPOSITORY`, or name its gRPC address with --grpc"
        raise InputError(why, where=f"{protocol} {address}", mend=mend)


def _metadata(client: HttpClient | GrpcClient, protocol: Protocol, build: BuildDocument) -> MetadataRecord:
    try:
        found, server = client.metadata(), client.server()
    except RequestFailed as error:
        return MetadataRecord(
            protocol=protocol, server="", platform="", versions=(), differences=(f"no answer: {error}",)
        )
    differences = [
        *_port_differences("input", build.inputs, found.get("inputs", [])),
        *_port_differences("output", build.outputs, found.get("outputs", [])),
    ]
    return MetadataRecord(
        protocol=protocol,
        server=server,
        platform=str(found.get("platform", "")),
        versions=tuple(str(version) for version in found.get("versions", [])),
        differences=tuple(differences),
    )


def _port_differences(kind: str, ports: tuple[GraphPort, ...], served: list[dict[str, object]]) -> list[str]:
    """Name what differs; gRPC's JSON writes sizes as text."""
    by_name = {str(one["name"]): one for one in served}
    differences = [
        f"{kind} {name!r} is served, and the build has none" for name in by_name.keys() - {p.name for p in ports}
    ]
    for port in ports:
        one = by_name.get(port.name)
        if one is None:
            differences.append(f"{kind} {port.name!r} is not served")
            continue
        sizes = one.get("shape", [])
        shape = [int(str(size)) for size in sizes] if isinstance(sizes, list) else []
        if one.get("datatype") != kserve_type(port.dtype):
            differences.append(f"{kind} {port.name!r} is {one.get('datatype')}, not {kserve_type(port.dtype)}")
        if shape != server_shape(port):
            differences.append(f"{kind} {port.name!r} has shape {shape}, not {server_shape(port)}")
    return differences


def _outputs(
    client: HttpClient | GrpcClient, protocol: Protocol, samples: Samples, build: BuildDocument, tolerance: float
) -> OutputsRecord:
    """Send all samples at the build's batch sizes."""
    sizes = [1]
    if samples.batched and build.batch is not None:
        sizes = sorted({min(size, len(samples)) for size in (build.batch.min, build.batch.opt, build.batch.max)})
    worst_abs, worst_rel, where = 0.0, 0.0, ""
    for size in sizes:
        for at in range(0, len(samples), size):
            feed, expected = samples.request(at, size)
            try:
                absolute, relative, position = largest_error(expected, client.infer(feed))
            except RequestFailed as error:
                absolute, relative, position = float("inf"), float("inf"), f"no answer: {error}"
            worst_abs = max(worst_abs, absolute)
            if relative > worst_rel or not where:
                worst_rel, where = max(relative, worst_rel), f"samples from {at}, batch {size}, {position}"
            if relative == float("inf"):
                break
    return OutputsRecord(
        protocol=protocol,
        inputs=samples.words,
        samples=len(samples),
        batches=tuple(sizes),
        max_abs_error=worst_abs,
        max_rel_error=worst_rel,
        tolerance=tolerance,
        worst_at=where,
        passed=worst_rel <= tolerance,
    )


def _load(
    config: CheckConfig,
    connect: Callable[[Protocol], HttpClient | GrpcClient],
    samples: Samples,
    tolerance: float,
    progress: Progress,
) -> tuple[list[LoadRecord], list[SaturationRecord]]:
    load: list[LoadRecord] = []
    ends: list[SaturationRecord] = []
    for protocol in config.protocols:

        def run(concurrency: int, protocol: Protocol = protocol) -> LoadRecord:
            progress(f"{protocol}: {concurrency} clients")
            return run_level(
                protocol,
                lambda: connect(protocol),
                samples,
                concurrency=concurrency,
                duration_s=config.duration_s,
                tolerance=tolerance,
            )

        records = list(until_saturated(run, levels(config.max_concurrency)))
        load += records
        ends.append(saturation(records))
    return load, ends


def _problems(metadata: list[MetadataRecord], outputs: list[OutputsRecord], load: list[LoadRecord]) -> list[str]:
    problems = [f"{one.protocol}: {'; '.join(one.differences)}" for one in metadata if one.differences]
    problems += [
        f"{one.protocol}: outputs differ from ONNX Runtime's by {one.max_rel_error:.2e} of the largest, more than "
        f"{one.tolerance:.0e}: {one.worst_at}"
        for one in outputs
        if not one.passed
    ]
    problems += [
        f"{one.protocol}, {one.concurrency} clients: {one.errors} errors and {one.wrong} wrong answers in "
        f"{one.requests + one.errors + one.wrong} requests; first: {one.first_error}"
        for one in load
        if one.errors or one.wrong
    ]
    return problems


def _headline(problems: list[str], outputs: list[OutputsRecord], ends: list[SaturationRecord]) -> str:
    if problems:
        return problems[0]
    worst = max(outputs, key=lambda one: one.max_rel_error)
    how = f"largest error {worst.max_abs_error:.2e}" if worst.max_abs_error > 0 else "not a bit differs"
    words = f"Outputs agree with ONNX Runtime: {how} over {worst.samples} samples."
    if ends:
        best = max(ends, key=lambda one: one.throughput_per_s)
        words += f" {best.protocol}: {best.sentence}."
    return words


def _command(config: CheckConfig) -> str:
    return f"nm2trt check-server URL {config.model} --build BUILD --duration {config.duration_s:g}"
