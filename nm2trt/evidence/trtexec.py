"""What trtexec 7 to 11 leaves behind: exported times, profile and layers, its logs; and trex's copies of them.

Files are told apart by what is in them, not by their names, and those of one run are joined: trex and most scripts
keep a log of the build beside one of the timed run. The defaults of the tool changed: up to 10.x, transfers are timed
and CUDA graph and spin wait are off; from 11.0 it is the other way round. Two numbers are comparable only where these
three agree, so they are read from the log's list of options, or follow from its command line and the version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.evidence.inspector import Inspection, parse_inspection
from nm2trt.evidence.log import BuildLog
from nm2trt.evidence.precision import precision_of
from nm2trt.evidence.profile_table import ProfiledLayer
from nm2trt.evidence.recognize import Content, FileKind, is_text, recognize, restore_backslashes
from nm2trt.evidence.trtexec_log import Shapes, TimingSummary, TrtexecLog, read_trtexec_logs
from nm2trt.evidence.trtexec_options import Toggles, read_asked_precision, read_shapes, read_toggles

__all__ = ["ProfiledLayer", "TimingSummary", "Toggles", "TrtexecRun", "read_trtexec"]

Milliseconds = NDArray[np.float64]

_HINT = "name a log, or a folder or PREFIX with trtexec's log, --exportTimes, --exportProfile, --exportLayerInfo files"
_OTHER_SUFFIXES = frozenset({".onnx", ".py", ".sh", ".md", ".csv", ".html", ".svg"})
"""Left alone beside the files of a run, unless one is named itself."""
_OWN_PREFIX = "give each run its own PREFIX or folder"
_H2D, _D2H = ("h2dMs", "inMs"), ("d2hMs", "outMs")
"""Up to 8.0, transfers were called in and out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtexecRun:
    """Everything that was found of one run."""

    name: str
    files: tuple[Path, ...] = ()
    compute_ms: Milliseconds | None = None
    """GPU compute time of every iteration."""
    latency_ms: Milliseconds | None = None
    """With transfers; None where none were timed."""
    enqueue_ms: Milliseconds | None = None
    summary: TimingSummary | None = None
    """Of the GPU compute time, as trtexec printed it."""
    latency_summary: TimingSummary | None = None
    enqueue_summary: TimingSummary | None = None
    queries_per_s: float | None = None
    layers: tuple[ProfiledLayer, ...] = ()
    iterations: int = 0
    """Of the profile."""
    inspection: Inspection | None = None
    log: BuildLog | None = None
    version: str = ""
    toggles: Toggles = field(default_factory=Toggles)
    toggles_source: str = ""
    streams: int | None = None
    gpu: str = ""
    multiprocessors: int | None = None
    asked_precision: str = ""
    """As the builder was asked, "FP32+FP16"; empty where no log of a build tells."""
    precision: str = ""
    """What the engine's layers hold, "fp16+int8", where a layer file tells; else as asked of the builder."""
    shapes: Shapes = field(default_factory=dict)
    """Every input's shape in the timed calls, where a file tells."""
    implicit_batch: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def batch(self) -> int | None:
        """First dimension of the first input, where a file tells."""
        # With --batch=1, engines of an explicit batch are timed at their own.
        if self.implicit_batch is not None and (self.implicit_batch > 1 or not self.shapes):
            return self.implicit_batch
        sized = [sizes for sizes in self.shapes.values() if sizes and sizes[0] > 0]
        if sized:
            return next((sizes for sizes in sized if len(sizes) > 1), sized[0])[0]
        layers = (
            self.inspection.layers if self.inspection is not None else self.log.layers if self.log is not None else ()
        )
        tensors = (tensor.dimensions for layer in layers for tensor in layer.inputs)
        return next((sizes[0] for sizes in tensors if len(sizes) > 1 and sizes[0] > 0), None)


def read_trtexec(path: Path) -> TrtexecRun:
    """Read a run from one file, a folder, or all files whose path begins with a prefix.

    Raises:
        InputError: There is no such file, none of them is trtexec's, one that is cannot be read, or two of them
        belong to different runs.
    """
    contents, others = _contents(path)
    run = TrtexecRun(name=path.name)
    logs: list[tuple[Path, TrtexecLog]] = []
    used: list[Path] = []
    for content in contents:
        if content.kind is FileKind.LOG:
            logs += [(content.path, log) for log in read_trtexec_logs(content.lines())]
            used.append(content.path)
        elif (found := _from_json(content, run)) is not None:
            used.append(content.path)
            run = replace(found, notes=(*found.notes, *(f"{content.path.name}: {note}" for note in content.notes)))
        else:
            others.append(f"{content.path.name} ({content.words})")
    if not used:
        raise InputError(f"none of these files is trtexec's: {', '.join(others)}", where=path, hint=_HINT)
    run = _with_logs(run, logs)
    if others:
        run = replace(run, notes=(*run.notes, f"not read: {', '.join(others[:5])}"))
    return _with_precision(_with_defaults(replace(run, files=tuple(used))))


def _contents(path: Path) -> tuple[list[Content], list[str]]:
    """What the named files are, and those that are no text at all."""
    alone = path.is_file() and is_text(path)
    files = (
        [path] if alone else sorted(path.iterdir() if path.is_dir() else path.parent.glob(f"{_escaped(path.name)}*"))
    )
    files = [file for file in files if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise InputError("no file of trtexec there", where=path, hint=_HINT)
    alone = alone or files == [path]
    contents, others = [], []
    for file in files:
        is_other = file.suffix.lower() in _OTHER_SUFFIXES or not is_text(file)
        if is_other and not alone:
            others.append(f"{file.name} (no log and no JSON)")
            continue
        content = recognize(file)
        if alone and content.kind in (FileKind.OTHER_TEXT, FileKind.OTHER_JSON, FileKind.OUTPUT):
            raise content.refuse("a measurement of trtexec", _HINT)
        contents.append(content)
    return contents, others


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "[]*?" else letter for letter in name)


def _from_json(content: Content, run: TrtexecRun) -> TrtexecRun | None:
    raw, file = content.raw, content.path
    if content.kind is FileKind.TIMES:
        return _with_times(raw, file, run)
    if content.kind is FileKind.PROFILE:
        return _with_profile(raw, file, run)
    if content.kind is FileKind.LAYERS:
        found = parse_inspection(raw, where=file)
        if run.inspection is not None and run.inspection.layers != found.layers:
            raise InputError("a second layer file, with other layers, for the same run", where=file, hint=_OWN_PREFIX)
        return replace(run, inspection=found)
    if content.kind is FileKind.DEVICES:
        return replace(run, gpu=str(raw[0].get("Name", "")) or run.gpu)
    if content.kind is FileKind.RECORD:
        return _from_trex(raw, run)
    if content.kind is FileKind.SUMMARY:
        return _with_summary(raw, run)
    return None


def _with_times(raw: Sequence[Any], file: Path, run: TrtexecRun) -> TrtexecRun:
    entries = [entry for entry in raw if isinstance(entry, dict)]
    compute_ms = _column(entries, ("computeMs",), file)
    if run.compute_ms is not None and not np.array_equal(run.compute_ms, compute_ms):
        raise InputError("a second file of times for the same run", where=file, hint=_OWN_PREFIX)
    h2d_ms, d2h_ms = _column(entries, _H2D, file), _column(entries, _D2H, file)
    moved_ms = h2d_ms + d2h_ms
    started, ended = ([entry.get(key) for entry in entries] for key in ("startEnqMs", "endEnqMs"))
    enqueue_ms = None
    if all(_is_time(value) for value in (*started, *ended)):
        enqueue_ms = np.array(ended, dtype=np.float64) - np.array(started, dtype=np.float64)
    return replace(
        run,
        compute_ms=compute_ms,
        latency_ms=compute_ms + moved_ms if moved_ms.any() else None,
        enqueue_ms=enqueue_ms,
    )


def _column(entries: Sequence[Mapping[str, Any]], keys: tuple[str, ...], file: Path) -> Milliseconds:
    values = [next((entry[key] for key in keys if key in entry), 0.0) for entry in entries]
    for index, value in enumerate(values):
        if not _is_time(value):
            raise InputError(f"entry {index}: {keys[0]} is {value!r}, no time", where=file, hint="export it again")
    return np.array(values, dtype=np.float64)


def _with_profile(raw: Sequence[Any], file: Path, run: TrtexecRun) -> TrtexecRun:
    layers, idle = [], []
    for index, entry in enumerate(raw):
        if not isinstance(entry, dict) or set(entry) == {"count"}:
            continue
        name, average, median = entry.get("name"), entry.get("averageMs"), entry.get("medianMs")
        if not isinstance(name, str) or not _is_number(average) or not (median is None or _is_number(median)):
            raise InputError(f"entry {index} of the profile has no name or no time", where=file, hint="export it again")
        if not _is_time(average) or not (median is None or _is_time(median)):
            idle.append(restore_backslashes(name))
            continue
        layers.append(
            ProfiledLayer(restore_backslashes(name), float(str(average)), None if median is None else float(median))
        )
    if run.layers and run.layers != tuple(layers):
        raise InputError("a second profile for the same run", where=file, hint=_OWN_PREFIX)
    count = next((entry["count"] for entry in raw if isinstance(entry, dict) and "count" in entry), 0)
    if not layers:
        why = "0 iterations were profiled" if count == 0 and not idle else "no layer has a time"
        raise InputError(f"the profile holds no layer: {why}", where=file, hint="profile it again")
    notes = run.notes
    if idle:
        notes = (*notes, f"{file.name}: {', '.join(idle[:3])} did not run: the time is no number")
    return replace(run, layers=tuple(layers), iterations=count if type(count) is int else 0, notes=notes)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _with_summary(raw: Mapping[str, Any], run: TrtexecRun) -> TrtexecRun | None:
    compute = raw["computeMs"]
    if not all(_is_time(compute.get(key)) for key in ("median", "mean", "min", "max")):
        return None
    samples = raw.get("samples")
    summary = TimingSummary(
        compute["median"], compute["mean"], compute["min"], compute["max"], samples if type(samples) is int else None
    )
    return replace(run, summary=summary)


def _from_trex(raw: Mapping[str, Any], run: TrtexecRun) -> TrtexecRun:
    """NVIDIA's trex keeps the options and the summary of the log as JSON."""
    built = raw.get("build_options")
    model = raw.get("model_options")
    if isinstance(built, dict):
        loaded = isinstance(model, dict) and model.get("Format") == "*"
        run = replace(
            run,
            asked_precision=""
            if loaded
            else read_asked_precision(str(built.get("Precision", "")), "") or run.asked_precision,
        )
    asked = raw.get("inference_options")
    if not isinstance(asked, dict):
        return run
    options = {str(key): str(value) for key, value in asked.items()}
    device = raw.get("device_information")
    device = device if isinstance(device, dict) else {}
    sms = device.get("SMs")
    shapes = {
        name: sizes
        for key, value in options.items()
        if key.startswith("Input inference shape")
        for name, sizes in read_shapes(value).items()
    }
    found = replace(
        run,
        toggles=read_toggles(options),
        toggles_source="its own record",
        shapes=shapes or run.shapes,
        gpu=str(device.get("Selected Device", run.gpu)),
        multiprocessors=int(float(str(sms))) if _is_time(sms) else run.multiprocessors,
    )
    performance = raw.get("performance_summary")
    compute = performance.get("GPU Compute Time") if isinstance(performance, dict) else None
    if run.summary is None and isinstance(compute, list) and len(compute) >= 4 and all(map(_is_time, compute[:4])):
        low, high, mean, median = compute[:4]
        found = replace(found, summary=TimingSummary(median, mean, low, high))
    return found


def _with_logs(run: TrtexecRun, logs: Sequence[tuple[Path, TrtexecLog]]) -> TrtexecRun:
    """Join the logs of one engine: the build's lines from the log that built it, the times from the one that timed."""
    if not logs:
        return run
    _check_one_engine(logs)
    timed = _timed_log([log for _, log in logs])
    builds = [log for _, log in logs if log.builds] or [log for _, log in logs if log.build.passes or log.build.layers]
    built = builds[-1] if builds else timed
    any_log = [timed, *(log for _, log in logs if log is not timed)]
    asked = next((log.precision for log in (built, *any_log) if log.precision), "")
    layers = next((log for log in any_log if log.layers), None)
    notes = [note for log in dict.fromkeys(map(id, any_log)) for one in any_log if id(one) == log for note in one.notes]
    passes = next((log.build for _, log in logs if log.build.passes), built.build)
    toggles, source = (timed.toggles, "its own log") if timed.has_options else (run.toggles, run.toggles_source)
    if toggles == Toggles() and timed.command_toggles != Toggles():
        release = timed.version.partition(".")[0]
        toggles, source = timed.command_toggles, f"its command line and the defaults of trtexec {release}"
    dumped = built.build.layers or next((log.build.layers for _, log in logs if log.build.layers), ())
    return replace(
        run,
        log=replace(passes, layers=dumped),
        version=next((log.version for log in any_log if log.version), run.version),
        toggles=toggles,
        toggles_source=source,
        streams=timed.streams,
        gpu=next((log.gpu for log in any_log if log.gpu), run.gpu),
        multiprocessors=next((log.multiprocessors for log in any_log if log.multiprocessors), run.multiprocessors),
        asked_precision=asked or run.asked_precision,
        shapes=timed.shapes or next((log.shapes for log in any_log if log.shapes), run.shapes),
        implicit_batch=timed.implicit_batch,
        summary=timed.compute or run.summary,
        latency_summary=timed.latency if timed.toggles.transfers is not False else None,
        enqueue_summary=timed.enqueue,
        queries_per_s=timed.queries_per_s,
        layers=run.layers or (layers.layers if layers is not None else ()),
        iterations=run.iterations or (layers.iterations if layers is not None else 0),
        notes=(*run.notes, *notes),
    )


def _timed_log(logs: Sequence[TrtexecLog]) -> TrtexecLog:
    """The log of the timed run: it loads the engine and has a summary, or at least one of the two."""

    def rank(log: TrtexecLog) -> tuple[bool, bool, bool, bool]:
        # With --dumpProfile, the profiler slows the calls that the summary is of.
        return log.compute is not None, log.is_loaded, not log.layers, log.has_options

    return max(logs, key=rank)


def _check_one_engine(logs: Sequence[tuple[Path, TrtexecLog]]) -> None:
    """Refuse logs that cannot be those of one engine.

    Raises:
        InputError: Two of them built an engine, or timed one in the same way, or on different GPUs.
    """
    builds = [(path, log) for path, log in logs if log.build.passes and not log.is_loaded]
    if len(builds) > 1 and len({log.build.passes for _, log in builds}) > 1:
        raise InputError("a second log of a build for the same run", where=builds[1][0], hint=_OWN_PREFIX)
    timed = [(path, log) for path, log in logs if log.compute is not None and log.is_loaded]
    timed = timed or [(path, log) for path, log in logs if log.compute is not None]
    timed = [(path, log) for path, log in timed if not log.layers] or timed
    if len(timed) > 1 and len({(log.compute.median_ms, log.compute.mean_ms) for _, log in timed if log.compute}) > 1:
        if timed[0][0] == timed[1][0]:
            raise InputError("holds the times of several runs", where=timed[0][0], hint="give each run its own file")
        raise InputError("a second log with times for the same run", where=timed[1][0], hint=_OWN_PREFIX)
    gpus = [(path, log.gpu) for path, log in logs if log.gpu]
    if len({gpu for _, gpu in gpus}) > 1:
        raise InputError(
            f"{gpus[0][1]} in {gpus[0][0].name}, {gpus[1][1]} here: not one run", where=gpus[1][0], hint=_OWN_PREFIX
        )


def _with_precision(run: TrtexecRun) -> TrtexecRun:
    layers = run.inspection.layers if run.inspection is not None else run.log.layers if run.log is not None else ()
    held = "+".join(precision_of(layers))
    return replace(run, precision=held or run.asked_precision)


def _with_defaults(run: TrtexecRun) -> TrtexecRun:
    """Fill in what the times themselves show."""
    toggles, source = run.toggles, run.toggles_source
    if toggles.transfers is None and run.compute_ms is not None:
        toggles = replace(toggles, transfers=run.latency_ms is not None)
        source = source or "the times themselves"
    return replace(run, toggles=toggles, toggles_source=source or "no file")
