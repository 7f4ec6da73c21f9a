"""A running server against the build it should serve: description, outputs, load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from nm2trt.artifacts import BuildDocument, host_record, sha256_of
from nm2trt.artifacts.build import Variant
from nm2trt.artifacts.code_trust import check_code
from nm2trt.artifacts.server_report import (
    LoadRecord,
    MetadataRecord,
    OutputsRecord,
    Protocol,
    SaturationRecord,
    ServerReportDocument,
)
from nm2trt.errors import ConfigError, InputError
from nm2trt.serve.address import Address, Tls, read_grpc_address, read_headers, read_http_address
from nm2trt.serve.answers import Failure, RequestFailed
from nm2trt.serve.check_metadata import Described, check_metadata
from nm2trt.serve.check_outputs import Tally, ask_all, output_problems, outputs_record, unanswered
from nm2trt.serve.client import TIMEOUT_S, Client
from nm2trt.serve.draw import InputRange, at_ends
from nm2trt.serve.index_probe import probe_ranges
from nm2trt.serve.load import (
    Request,
    levels,
    load_requests,
    run_level,
    saturation,
    until_saturated,
)
from nm2trt.serve.open_client import open_client
from nm2trt.serve.reference import Reference, read_limits
from nm2trt.serve.samples import (
    Feed,
    SampleSet,
    choose_samples,
    free_size_choices,
    one_feed,
    read_samples,
    read_shapes,
    requests_of,
)
from nm2trt.serve.source import build_onnx, read_build

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""Bounds on the largest error over the largest reference magnitude, as `nm2trt export` has them."""
_OTHER_TOLERANCE = 5e-2
_SMALL_BATCHES = (1, 2, 3)
"""Asked beside the sizes that the build was tuned for: a server may be wrong only where it joins requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """What to ask."""

    url: str
    model: str
    build: Path
    variant: Variant = "sparse"
    grpc: str | None = None
    version: str = ""
    protocols: tuple[Protocol, ...] = ("http", "grpc")
    tolerance: float | None = None
    load: bool = True
    duration_s: float = 2.0
    max_concurrency: int = 64
    timeout_s: float = TIMEOUT_S
    """Of one request, seconds."""
    data_dir: Path | None = None
    samples: Path | None = None
    """.npz of the inputs to send."""
    shapes: tuple[str, ...] = ()
    """INPUT=1x128, for dimensions that are free besides the batch."""
    headers: tuple[str, ...] = ()
    """NAME: VALUE, or @FILE."""
    tls: Tls = field(default_factory=Tls)
    as_json: bool = False
    """Tensors as JSON numbers over HTTP."""
    trust: bool = False
    """Import code that build.json names although this machine did not write it."""


Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a check works with once its inputs were read."""

    config: CheckConfig
    build: BuildDocument
    reference: Reference
    samples: SampleSet
    tolerance: float
    addresses: dict[Protocol, Address]

    def connect(self, protocol: Protocol, described: Described | None = None) -> Client:
        """Open a connection that knows what the server's description says."""
        config = self.config
        client = open_client(
            protocol,
            self.addresses[protocol],
            config.model,
            config.version,
            self.build.inputs,
            timeout_s=config.timeout_s,
            as_json=config.as_json,
        )
        if described is not None:
            client.padded, client.expected_version = described.padded, described.version
            client.names |= described.names
        return client


def check_server(config: CheckConfig, progress: Progress = lambda _words: None) -> ServerReportDocument:
    """Ask a server, and compare with the build.

    Raises:
        ConfigError: The URL, a header or a shape is wrong, or a folder of data is given to a build without.
        InputError: The build or the samples cannot be used, nothing listens at the address, or the model is not ready.
        MachineError: tritonclient is missing, and gRPC was asked for.
    """
    addresses = _addresses(config)
    build = read_build(config.build)
    check_code(config.build / build.FILE, {"data": build.source.data}, trust=config.trust)
    if config.data_dir is not None and build.source.data is None:
        raise ConfigError("no effect: the build names no data set", where="--data-dir", hint="drop it, or --samples")
    onnx = build_onnx(config.build, build, config.variant)
    shapes = read_shapes(config.shapes, build)
    own = None if config.samples is None else read_samples(config.samples, build)
    unready = _check_readiness(config, addresses, build)
    progress("opening the graph in ONNX Runtime")
    reference = Reference(onnx)
    samples = own or _choose(config, build, onnx, reference, shapes)
    job = _Job(
        config=config,
        build=build,
        reference=reference,
        samples=samples,
        tolerance=config.tolerance or TOLERANCES.get(build.precision, _OTHER_TOLERANCE),
        addresses=addresses,
    )
    described = _describe(job, unready, progress)
    outputs, distinct = _outputs(job, described, unready, progress)
    metadata = [one.record for one in described.values()]
    load: list[LoadRecord] = []
    ends: list[SaturationRecord] = []
    # A server that answers wrongly has no speed worth measuring.
    if config.load and not _problems(metadata, outputs, []):
        load, ends = _load(job, described, progress)
    problems = _problems(metadata, outputs, load)
    notes = () if distinct else ("all samples have nearly the same answer: mixed-up answers would not be found",)
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
        notes=notes,
        headline=_headline(problems, outputs, ends),
        verdict="fail" if problems else "pass",
        command=_command(config),
        host=host_record(),
    )


def _addresses(config: CheckConfig) -> dict[Protocol, Address]:
    headers = read_headers(config.headers)
    http = read_http_address(config.url, tls=config.tls, headers=headers)
    found: dict[Protocol, Address] = {"http": http}
    if "grpc" in config.protocols:
        found["grpc"] = read_grpc_address(config.grpc, http, tls=config.tls, headers=headers)
    return found


def _check_readiness(
    config: CheckConfig, addresses: dict[Protocol, Address], build: BuildDocument
) -> dict[Protocol, RequestFailed]:
    """Ask whether server and model are ready.

    Returns:
        Protocols over which something listens that does not answer as a server does.

    Raises:
        InputError: Nothing listens there, or it says that it is not ready.
    """
    failed: dict[Protocol, RequestFailed] = {}
    for protocol in config.protocols:
        where = f"{protocol} {addresses[protocol]}"
        why = ""
        with closing(
            open_client(
                protocol, addresses[protocol], config.model, config.version, build.inputs, timeout_s=config.timeout_s
            )
        ) as client:
            try:
                if not client.check_live():
                    why = "the server is not live"
                elif not client.check_ready():
                    version = f" version {config.version}" if config.version else ""
                    why = f"model {config.model!r}{version} is not there or not ready"
            except RequestFailed as error:
                failed[protocol] = error
                if error.failure is Failure.UNREACHABLE:
                    why = str(error)
        if why:
            raise InputError(
                why,
                where=where,
                hint="start it with `nm2trt serve REPOSITORY`; where there is no answer over gRPC alone, name its "
                "address with --grpc or ask with --protocol http",
            )
    return failed


def _choose(
    config: CheckConfig, build: BuildDocument, onnx: Path, reference: Reference, shapes: list[dict[str, int]]
) -> SampleSet:
    """Draw samples; of the usual sizes for free dimensions, those that the graph takes."""
    limits = read_limits(onnx)
    if not shapes:
        shapes = free_size_choices(build)
        refusals = [_refusal(reference, one_feed(build, limits, sizes)) for sizes in shapes] if shapes != [{}] else []
        if refusals and all(refusals):
            raise refusals[0]  # type: ignore[misc]
        if refusals:
            shapes = [sizes for sizes, refusal in zip(shapes, refusals, strict=True) if refusal is None]
    sizes = (shapes or [{}])[0]
    alone: dict[str, int | InputRange] = dict(limits)
    ranges = probe_ranges(build.inputs, onnx, limits, one_feed(build, limits, sizes))
    feed = one_feed(build, limits, sizes)
    if _refusal(reference, at_ends(feed, ranges)) is None:
        return choose_samples(build, ranges, data_dir=config.data_dir, shapes=shapes)
    # Each input by itself takes more than all at once, as where two are added: one after another takes all of its own.
    turns: list[dict[str, int | InputRange]] = [
        {**limits, name: found} for name, found in ranges.items() if limits.get(name) != found
    ]
    taken = [turn for turn in turns if _refusal(reference, at_ends(feed, turn)) is None]
    sets = [choose_samples(build, turn, data_dir=config.data_dir, shapes=shapes) for turn in taken or [alone]]
    origin = "; then ".join(one.origin for one in sets)
    return SampleSet(groups=tuple(group for one in sets for group in one.groups), origin=origin)


def _refusal(reference: Reference, feed: Feed) -> InputError | None:
    try:
        reference.run(feed)
    except InputError as error:
        return error
    return None


def _describe(job: _Job, unready: dict[Protocol, RequestFailed], progress: Progress) -> dict[Protocol, Described]:
    group = job.samples.groups[0]
    without_batch = job.reference.outputs_without_batch(group) if group.batched else []
    described: dict[Protocol, Described] = {}
    for protocol in job.config.protocols:
        if protocol in unready:
            words = f"readiness: {unready[protocol]}"
            record = MetadataRecord(protocol=protocol, server="", platform="", versions=(), differences=(words,))
            described[protocol] = Described(record=record)
            continue
        progress(f"{protocol}: description")
        with closing(job.connect(protocol)) as client:
            described[protocol] = check_metadata(
                client,
                protocol,
                job.build,
                asked_version=job.config.version,
                without_batch=without_batch,
            )
    return described


def _outputs(
    job: _Job, described: dict[Protocol, Described], unready: dict[Protocol, RequestFailed], progress: Progress
) -> tuple[list[OutputsRecord], bool]:
    sizes = _batch_sizes(job)
    with ExitStack() as stack:
        clients = {
            protocol: stack.enter_context(closing(job.connect(protocol, described[protocol])))
            for protocol in job.config.protocols
            if protocol not in unready
        }
        progress("comparing outputs")
        tallies, scales, distinct = ask_all(
            clients,
            requests_of(job.samples, sizes),
            job.reference,
            tolerance=job.tolerance,
            timeout_s=job.config.timeout_s,
        )
    every: dict[Protocol, Tally] = {**tallies, **{protocol: unanswered(error) for protocol, error in unready.items()}}
    records = [
        outputs_record(
            every[protocol],
            scales,
            protocol=protocol,
            words=job.samples.words,
            samples=job.samples.count,
            batches=tuple(sizes),
            tolerance=job.tolerance,
            version=described[protocol].version,
        )
        for protocol in job.config.protocols
    ]
    return records, distinct or job.samples.count == 1 or not tallies


def _batch_sizes(job: _Job) -> list[int]:
    """Sizes of the requests that are sent."""
    batch = job.build.batch
    if not job.samples.batched or batch is None:
        return [1]
    most = min(group.count for group in job.samples.groups)
    wanted = {batch.min, batch.opt, batch.max, *(size for size in _SMALL_BATCHES if batch.min <= size <= batch.max)}
    return sorted({min(size, most) for size in wanted})


def _load(
    job: _Job, described: dict[Protocol, Described], progress: Progress
) -> tuple[list[LoadRecord], list[SaturationRecord]]:
    requests: Sequence[Request] = load_requests(job.samples, job.reference)
    load: list[LoadRecord] = []
    ends: list[SaturationRecord] = []
    for protocol in job.config.protocols:

        def run(concurrency: int, protocol: Protocol = protocol) -> LoadRecord:
            progress(f"{protocol}: {concurrency} clients")
            return run_level(
                protocol,
                lambda: closing(job.connect(protocol, described[protocol])),
                requests,
                concurrency=concurrency,
                duration_s=job.config.duration_s,
                tolerance=job.tolerance,
                timeout_s=job.config.timeout_s,
            )

        records = list(until_saturated(run, levels(job.config.max_concurrency)))
        load += records
        ends.append(saturation(records))
    return load, ends


def _problems(metadata: list[MetadataRecord], outputs: list[OutputsRecord], load: list[LoadRecord]) -> list[str]:
    problems = [f"{one.protocol}: {'; '.join(one.differences)}" for one in metadata if one.differences]
    for outcome in outputs:
        problems += output_problems(outcome)
    for one in load:
        asked = one.requests + one.errors + one.wrong
        if one.errors or one.wrong:
            problems.append(
                f"{one.protocol}, {one.concurrency} clients: {one.errors} errors and {one.wrong} wrong answers in "
                f"{asked} requests; first: {one.first_error}"
            )
        elif not asked:
            problems.append(f"{one.protocol}, {one.concurrency} clients: no request was sent")
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
