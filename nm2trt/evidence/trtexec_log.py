"""trtexec's own log, 7 to 11: options, shapes, performance summary, table of layer times, and the build's lines.

Seen: shapes as `Input inference shape: x=1x3x224x224` (8.x), `... shape : x=...` (10.x), `Created input binding for x
with dimensions ...` (8.2), `Input binding for x with dimensions ... is created.` (8.5 on), `... and type fp32 is
created.` (10.16). The summary is one line per
quantity from 8.0 on, a block of lines in 7.x. The table names the layer first up to 8.5 and last from 8.6 on; medians
from 8.4 on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nm2trt.evidence.log import BuildLog, BuildLogReader
from nm2trt.evidence.profile_table import ProfiledLayer, ProfileTable
from nm2trt.evidence.text import LogLine
from nm2trt.evidence.trtexec_options import (
    Toggles,
    parse_version,
    read_asked_precision,
    read_command_shapes,
    read_command_toggles,
    read_sizes,
    read_toggles,
    read_version,
)

_RUNNING = re.compile(
    r"&&&& RUNNING TensorRT\.trtexec(?: \[TensorRT v(?P<version>\d+)\])?(?: \[b\d+\])?(?: #\s*(?P<command>.*))?"
)
_ENDED = re.compile(r"&&&& (?P<how>PASSED|FAILED|WAIVED) TensorRT\.trtexec")
_OPTION_KEYS = frozenset(
    {
        "Data transfers", "Spin-wait", "CUDA Graph", "Precision", "Format", "Batch", "Selected Device", "SMs",
        "Input inference shapes", "TensorRT version", "Streams", "Inference Streams",
    }
)  # fmt: skip
_SHAPE = r"(?P<sizes>\d+(?:x\d+)*|)"
_INFERENCE_SHAPE = re.compile(rf"Input inference shape ?: ?(?P<name>.+)={_SHAPE}\s*$")
_BINDING = re.compile(
    r"(?:Created input binding for|Input binding for) (?P<name>.+?) with dimensions (?P<sizes>\d+(?:x\d+)*|)"
    r"(?: and type \w+)?(?: is created\.?|\s*$)"
)
_SET = re.compile(r"Set shape of input tensor (?P<name>.+?) to: (?P<sizes>\d+(?:x\d+)*)\s*$")
_OVERRIDDEN = re.compile(
    r"(?:required for input:? (?P<name>\S+?),? but no shapes were provided\. Automatically overriding shape to:? )"
    r"(?P<sizes>\d+(?:x\d+)*)"
)
_METRIC = re.compile(
    r"^\s*(?P<what>GPU Compute(?: Time)?|(?:Host )?Latency|Enqueue Time|H2D Latency|D2H Latency): +(?P<rest>min = .*)$"
)
_VALUE = re.compile(
    r"(?P<key>min|max|mean|median|percentile)(?:\((?P<at>[\d.]+)%\))? = (?P<value>[\d.]+(?:e[+-]?\d+)?) ?ms"
)
_OLD_PERCENTILE = re.compile(r"percentile: (?P<value>[\d.]+) ms at (?P<at>[\d.]+)%")
_OLD_VALUE = re.compile(r"^\s*(?P<key>min|max|mean|median): (?P<value>[\d.]+) ms")
_OLD_BLOCKS = ("Host Latency", "Host latency", "GPU Compute", "Enqueue Time")
_LONGEST_SUMMARY = 2000
_THROUGHPUT = re.compile(r"^\s*[Tt]hroughput: (?P<value>[\d.]+(?:e[+-]?\d+)?) qps")
_TRACE = re.compile(r"Timing trace has (\d+) queries over")
_TABLE_HEAD = re.compile(r"\s*(?:Time\(ms\)\s.*\sLayer|Layer\s+Time \(ms\)\s.*Time %)\s*$")
_PROFILE = re.compile(r"=== Profile \((?P<count>\d+) iterations ?\) ===")


@dataclass(frozen=True, slots=True)
class TimingSummary:
    """Quantiles that trtexec printed, where the single times were not exported."""

    median_ms: float
    mean_ms: float
    low_ms: float
    high_ms: float
    samples: int | None = None
    percentiles_ms: Mapping[float, float] = field(default_factory=dict)
    """Per cent -> time."""


Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtexecLog:
    """One log of trtexec; everything may be missing."""

    build: BuildLog
    version: str = ""
    command: str = ""
    toggles: Toggles = field(default_factory=Toggles)
    """As the list of options has them."""
    command_toggles: Toggles = field(default_factory=Toggles)
    """As the command line and the defaults of the release have them."""
    streams: int | None = None
    """Concurrent streams of calls."""
    gpu: str = ""
    multiprocessors: int | None = None
    precision: str = ""
    """As the builder was asked; empty where an engine was loaded, since the log then says FP32 whatever it holds."""
    is_loaded: bool = False
    """An engine was loaded, none was built."""
    shapes: Shapes = field(default_factory=dict)
    """Every input's shape in the timed calls, where the log tells."""
    implicit_batch: int | None = None
    compute: TimingSummary | None = None
    latency: TimingSummary | None = None
    enqueue: TimingSummary | None = None
    queries_per_s: float | None = None
    layers: tuple[ProfiledLayer, ...] = ()
    iterations: int = 0
    """Of the profile."""
    is_trtexec: bool = False
    has_options: bool = False
    has_failed: bool = False
    runs: int = 1
    """Runs of trtexec in the file; this is the last."""
    notes: tuple[str, ...] = ()

    @property
    def builds(self) -> bool:
        """Whether it shows a build."""
        return not self.is_loaded and bool(self.build.passes or self.build.layers)


def read_trtexec_log(lines: Iterable[LogLine]) -> TrtexecLog:
    """Read a log; of several runs in one file, each part from the last run that has it."""
    return join_logs(read_trtexec_logs(lines))


def read_trtexec_logs(lines: Iterable[LogLine]) -> list[TrtexecLog]:
    """Read every run of trtexec in a log; a log of another program is one run."""
    logs: list[TrtexecLog] = []
    reader: _RunReader | None = None
    for line in lines:
        if "&&&& RUNNING" in line.text and (running := _RUNNING.search(line.text)) is not None:
            if reader is not None and reader.has_begun:
                logs.append(reader.finish())
                reader = None
            reader = reader if reader is not None else _RunReader()
            reader.start(running)
        else:
            if reader is not None and reader.has_compute and _is_compute(line.text):
                # Summaries of several runs in one text, without trtexec's first lines between them.
                logs.append(reader.finish())
                reader = None
            if reader is None:
                reader = _RunReader()
            reader.feed(line)
    return [*logs, (reader or _RunReader()).finish()]


def _is_compute(text: str) -> bool:
    """Whether a line begins a summary of GPU compute times."""
    if "GPU Compute" not in text:
        return False
    metric = _METRIC.match(text)
    return text.strip() == "GPU Compute" or (metric is not None and metric["what"].startswith("GPU"))


def join_logs(logs: list[TrtexecLog]) -> TrtexecLog:
    """One log of all runs in a file: the build's lines from the last run that built, the rest from the last."""
    last = logs[-1]
    built = next((log for log in reversed(logs) if log.build.passes or log.build.layers), last)
    if len(logs) == 1:
        return last
    notes = (
        f"the log holds {len(logs)} runs of trtexec; layers and (Sparsity) lines are those of the last that has any",
    )
    return replace(last, build=replace(built.build, notes=(*built.build.notes, *notes)), runs=len(logs))


class _RunReader:
    """One run of trtexec, line by line."""

    def __init__(self) -> None:
        self.has_begun = False
        self._is_trtexec = False
        self._build = BuildLogReader()
        self._version = self._command = ""
        self._options: dict[str, str] = {}
        self._asked: dict[str, tuple[int, ...]] = {}
        self._bound: dict[str, tuple[int, ...]] = {}
        self._overridden: dict[str, tuple[int, ...]] = {}
        self._metrics: dict[str, dict[str, float]] = {}
        self._metric = self._metric_text = self._block = ""
        self._queries_per_s: float | None = None
        self._samples: int | None = None
        self._table: ProfileTable | None = None
        self._failed = False

    @property
    def has_compute(self) -> bool:
        """Whether a summary of GPU compute times was read."""
        return "median" in self._metrics.get("GPU Compute", {})

    def start(self, running: re.Match[str]) -> None:
        """Begin with trtexec's first line."""
        self.has_begun = self._is_trtexec = True
        self._version = read_version(running["version"]) if running["version"] else ""
        self._command = (running["command"] or "").strip()

    def feed(self, line: LogLine) -> None:
        """Take the next line."""
        text = line.text
        self._build.feed(line)
        if self._table is not None and self._table.is_open:
            self._table.feed(line)
            if self._table.is_open:
                return
        if "=== Profile (" in text and (profile := _PROFILE.search(text)) is not None:
            self._table = ProfileTable(int(profile["count"][:12]), are_messages=line.is_message)
            return
        if text.startswith("Tactic"):
            return
        if "Time" in text and _TABLE_HEAD.match(text) is not None:
            # Copied without the line above it.
            self._table = ProfileTable(0, are_messages=line.is_message)
            self._table.feed(line)
            return
        if "nput" in text and self._read_shape(text):
            return
        key, colon, value = text.partition(":")
        if not colon:
            self._block = text.strip() if text.strip() in _OLD_BLOCKS else self._block
            if self._metric or "queries over" in text:
                self._read_metric(line)
            return
        key = key.strip()
        if key in _OPTION_KEYS:
            self._options.setdefault(key, value.strip())
        elif "ms" in text or "queries" in text or "qps" in text:
            self._read_metric(line)
        elif text.startswith("&&&& "):
            self._end(text)
        else:
            self._metric = ""

    def finish(self) -> TrtexecLog:
        """Everything that the lines told."""
        options = self._options
        version = self._version or parse_version(options.get("TensorRT version", ""))
        loaded = options.get("Format") == "*" or "--loadEngine" in self._command
        sms, batch = options.get("SMs", ""), options.get("Batch", "")
        streams = options.get("Inference Streams", options.get("Streams", ""))
        toggles = read_toggles(options)
        table = self._table.finish() if self._table is not None else ((), 0)
        command_shapes, command_batch = read_command_shapes(self._command)
        notes = [f"{table[1]} layers of the profile did not run: their time is no number"] if table[1] else []
        if self._failed:
            notes.append("trtexec ended with FAILED")
        return TrtexecLog(
            build=self._build.finish(tuple(int(part) for part in version.split(".") if part.isdigit())),
            version=version,
            command=self._command,
            toggles=toggles,
            command_toggles=read_command_toggles(self._command, version),
            streams=int(streams) if streams.isdigit() and len(streams) < 6 else None,
            gpu=options.get("Selected Device", ""),
            multiprocessors=int(sms) if sms.isdigit() and len(sms) < 6 else None,
            precision="" if loaded else read_asked_precision(options.get("Precision", ""), self._command),
            is_loaded=loaded,
            shapes={**command_shapes, **self._overridden, **self._asked, **self._bound},
            # "Batch: 1" is also printed where the engine has no implicit batch.
            implicit_batch=command_batch or (int(batch) if batch.isdigit() and int(batch[:9]) > 1 else None),
            compute=self._summary("GPU Compute"),
            latency=self._summary("Latency"),
            enqueue=self._summary("Enqueue"),
            queries_per_s=self._queries_per_s,
            layers=table[0],
            iterations=self._table.iterations if self._table is not None else 0,
            is_trtexec=self._is_trtexec,
            has_options=toggles != Toggles(),
            has_failed=self._failed,
            notes=tuple(notes),
        )

    def _end(self, text: str) -> None:
        ended = _ENDED.search(text)
        if ended is not None:
            self._is_trtexec = True
            self._failed = ended["how"] == "FAILED"

    def _read_shape(self, text: str) -> bool:
        for pattern, found in (
            (_INFERENCE_SHAPE, self._asked),
            (_BINDING, self._bound),
            (_OVERRIDDEN, self._overridden),
            (_SET, self._overridden),
        ):
            match = pattern.search(text)
            if match is not None:
                found[match["name"].strip()] = read_sizes(match["sizes"])
                return True
        return False

    def _read_metric(self, line: LogLine) -> None:
        text = line.text
        if (metric := _METRIC.match(text)) is not None:
            self._metric = metric["what"].removeprefix("Host ").removesuffix(" Time")
            self._metrics[self._metric] = {}
        elif (rate := _THROUGHPUT.match(text)) is not None:
            self._queries_per_s = float(rate["value"])
        elif (trace := _TRACE.search(text)) is not None:
            self._samples = int(trace[1][:12])
        elif self._block and ((old := _OLD_VALUE.match(text)) or (old := _OLD_PERCENTILE.search(text))):
            values = self._metrics.setdefault(
                self._block.removeprefix("Host ").removesuffix(" Time").capitalize()
                if "atency" in self._block
                else self._block.removesuffix(" Time"),
                {},
            )
            values[old["key"] if "key" in old.groupdict() else old["at"]] = float(old["value"])
            return
        if self._metric and (metric is not None or not line.is_message):
            # The rest of a line that a terminal broke, maybe within a number.
            self._metric_text = text if metric is not None else self._metric_text[-_LONGEST_SUMMARY:] + text
            for value in _VALUE.finditer(self._metric_text):
                self._metrics[self._metric][value["at"] or value["key"]] = _float(value["value"])
        elif line.is_message:
            self._metric = ""

    def _summary(self, name: str) -> TimingSummary | None:
        values = self._metrics.get(name)
        if values is None or "median" not in values or "mean" not in values:
            return None
        percentiles = {float(key): value for key, value in values.items() if key[:1].isdigit()}
        low, high = values.get("min", 0.0), values.get("max", values["median"])
        return TimingSummary(values["median"], values["mean"], low, high, self._samples, percentiles)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
