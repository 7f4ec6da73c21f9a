"""What trtexec 7 to 11 leaves behind: exported times, profile and layers, its log; and trex's copies of them.

Files are told apart by what is in them, not by their names. The defaults of the tool changed: up to 10.x, transfers are
timed and CUDA graph and spin wait are off; from 11.0 it is the other way round. Two numbers are comparable only where
these three agree, so they are read from the log, or follow from the version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.evidence.inspector import Inspection, parse_inspection
from nm2trt.evidence.log import BuildLog, parse_log

Milliseconds = NDArray[np.float64]

_MEND = "name a folder or PREFIX with trtexec's --exportTimes, --exportProfile, --exportLayerInfo files, and its log"
_RUNNING = re.compile(r"&&&& RUNNING TensorRT\.trtexec \[TensorRT v(\d+)\]")
_OPTION = re.compile(r"^(?:\[[^\]]*\]\s*)*(?P<key>[A-Z][A-Za-z0-9() -]*?):\s*(?P<value>.*?)\s*$")
_TOGGLES = {"Data transfers": "transfers", "CUDA Graph": "graph", "Spin-wait": "spin"}
_LARGEST_FILE_BYTES = 1 << 30
_H2D, _D2H = ("h2dMs", "inMs"), ("d2hMs", "outMs")
"""Up to 8.0, transfers were called in and out."""


@dataclass(frozen=True, slots=True)
class Toggles:
    """What a time covers; None where neither log nor version tells."""

    transfers: bool | None = None
    graph: bool | None = None
    spin: bool | None = None

    def words(self) -> str:
        """All three in words."""
        states = {True: "on", False: "off", None: "not known"}
        return (
            f"data transfers {states[self.transfers]}, CUDA graph {states[self.graph]}, spin wait {states[self.spin]}"
        )


@dataclass(frozen=True, slots=True)
class ProfiledLayer:
    """One entry of --exportProfile."""

    name: str
    average_ms: float
    median_ms: float | None


@dataclass(frozen=True, slots=True)
class TimingSummary:
    """Quantiles that trtexec printed, where the single times were not exported."""

    median_ms: float
    mean_ms: float
    low_ms: float
    high_ms: float
    samples: int | None = None


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
    layers: tuple[ProfiledLayer, ...] = ()
    iterations: int = 0
    """Of the profile."""
    inspection: Inspection | None = None
    log: BuildLog | None = None
    version: str = ""
    toggles: Toggles = Toggles()
    toggles_source: str = ""
    gpu: str = ""
    multiprocessors: int | None = None
    precision: str = ""
    """As the tool was asked, "FP32+FP16"; empty from 11.0 on, where the network's own types count."""
    shapes: str = ""
    """Input shapes as the tool was asked; empty where it was not."""
    notes: tuple[str, ...] = field(default=())

    @property
    def batch(self) -> int | None:
        """First dimension of the first input, where a file tells."""
        asked = re.search(r"[:=](\d+)(?:x\d+)*", self.shapes)
        if asked:
            return int(asked.group(1))
        if self.inspection is not None:
            for layer in self.inspection.layers:
                for tensor in layer.inputs:
                    if len(tensor.dimensions) > 1 and tensor.dimensions[0] > 0:
                        return tensor.dimensions[0]
        return None


def read_trtexec(path: Path) -> TrtexecRun:
    """Read a run from a folder, or from all files whose path begins with a prefix.

    Raises:
        InputError: There is no such file, none of them is trtexec's, or one that is cannot be read.
    """
    files = sorted(path.iterdir()) if path.is_dir() else sorted(path.parent.glob(f"{_escaped(path.name)}*"))
    files = [file for file in files if file.is_file() and file.suffix.lower() in (".json", ".log", ".txt")]
    if not files:
        raise InputError("no .json, .log or .txt file there", where=path, mend=_MEND)
    run = TrtexecRun(name=path.name)
    used: list[Path] = []
    for file in files:
        found = _read(file, run)
        if found is not None:
            used.append(file)
            run = found
    if not used:
        raise InputError("none of these files is trtexec's", where=path, mend=_MEND)
    return _with_defaults(replace(run, files=tuple(used)))


def _escaped(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def _read(file: Path, run: TrtexecRun) -> TrtexecRun | None:
    if file.stat().st_size > _LARGEST_FILE_BYTES:
        raise InputError("is larger than 1 GiB", where=file, mend="export times of a shorter run")
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix.lower() != ".json":
        return _from_log(text, run)
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"no readable JSON: {error}", where=file, mend=_MEND) from None
    if isinstance(raw, list):
        return _from_list(raw, file, run)
    return _from_object(raw, file, run) if isinstance(raw, dict) else None


def _from_list(raw: list[Any], file: Path, run: TrtexecRun) -> TrtexecRun | None:
    entries = [entry for entry in raw if isinstance(entry, dict)]
    if entries and all("computeMs" in entry for entry in entries):
        return _with_times(entries, file, run)
    if entries and "count" in entries[0]:
        return _with_profile(entries, file, run)
    if entries and "Name" in entries[0] and "COMPUTE_CAPABILITY_MAJOR" in entries[0]:
        return replace(run, gpu=str(entries[0]["Name"]))
    return None


def _with_times(entries: Sequence[Mapping[str, Any]], file: Path, run: TrtexecRun) -> TrtexecRun:
    if run.compute_ms is not None:
        raise InputError("a second file of times for the same run", where=file, mend="give each run its own PREFIX")
    compute_ms = _column(entries, ("computeMs",), file)
    h2d_ms, d2h_ms = _column(entries, _H2D, file), _column(entries, _D2H, file)
    moved_ms = h2d_ms + d2h_ms
    started, ended = ([entry.get(key) for entry in entries] for key in ("startEnqMs", "endEnqMs"))
    enqueue_ms = None
    if all(isinstance(value, int | float) for value in (*started, *ended)):
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
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise InputError(f"entry {index}: {keys[0]} is {value!r}, no time", where=file, mend="export it again")
    return np.array(values, dtype=np.float64)


def _with_profile(entries: Sequence[Mapping[str, Any]], file: Path, run: TrtexecRun) -> TrtexecRun:
    layers = []
    for index, entry in enumerate(entries[1:], start=1):
        name, average, median = entry.get("name"), entry.get("averageMs"), entry.get("medianMs")
        if not isinstance(name, str) or not _is_time(average) or not (median is None or _is_time(median)):
            raise InputError(f"entry {index} of the profile has no name or no time", where=file, mend="export it again")
        layers.append(ProfiledLayer(name, float(str(average)), None if median is None else float(median)))
    if run.layers:
        raise InputError("a second profile for the same run", where=file, mend="give each run its own PREFIX")
    count = entries[0]["count"]
    return replace(run, layers=tuple(layers), iterations=count if type(count) is int else 0)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _from_object(raw: Mapping[str, Any], file: Path, run: TrtexecRun) -> TrtexecRun | None:
    if "Layers" in raw:
        return replace(run, inspection=parse_inspection(raw, where=file))
    if isinstance(raw.get("inference_options"), dict):
        return _from_trex(raw, run)
    if isinstance(raw.get("build_options"), dict):
        return replace(run, precision=str(raw["build_options"].get("Precision", "")))
    compute = raw.get("computeMs")
    if isinstance(compute, dict) and all(_is_time(compute.get(key)) for key in ("median", "mean", "min", "max")):
        samples = raw.get("samples")
        summary = TimingSummary(compute["median"], compute["mean"], compute["min"], compute["max"])
        return replace(run, summary=replace(summary, samples=samples if type(samples) is int else None))
    return None


def _from_trex(raw: Mapping[str, Any], run: TrtexecRun) -> TrtexecRun:
    """NVIDIA's trex keeps the options and the summary of the log as JSON."""
    options = {str(key): str(value) for key, value in raw["inference_options"].items()}
    device = raw.get("device_information")
    device = device if isinstance(device, dict) else {}
    sms = device.get("SMs")
    found = replace(run, toggles=_toggles(options), toggles_source="its own record", shapes=_shapes(options))
    found = replace(
        found,
        gpu=str(device.get("Selected Device", run.gpu)),
        multiprocessors=int(float(str(sms))) if _is_time(sms) else run.multiprocessors,
    )
    compute = (raw.get("performance_summary") or {}).get("GPU Compute Time")
    if run.summary is None and isinstance(compute, list) and len(compute) >= 4 and all(map(_is_time, compute[:4])):
        low, high, mean, median = compute[:4]
        found = replace(found, summary=TimingSummary(median, mean, low, high))
    return found


def _from_log(text: str, run: TrtexecRun) -> TrtexecRun | None:
    version = _RUNNING.search(text)
    options: dict[str, str] = {}
    for line in text.splitlines():
        match = _OPTION.match(line)
        if match is not None:
            options.setdefault(match["key"], match["value"])
    if version is None and not set(options) & set(_TOGGLES) and "(Sparsity)" not in text:
        return None
    toggles = _toggles(options)
    known = toggles != Toggles()
    sms = options.get("SMs", "")
    return replace(
        run,
        version=_version(version.group(1)) if version else run.version,
        toggles=toggles if known else run.toggles,
        toggles_source="its own log" if known else run.toggles_source,
        gpu=_gpu(options) or run.gpu,
        multiprocessors=int(sms) if sms.isdigit() else run.multiprocessors,
        precision=options.get("Precision", run.precision),
        shapes=_shapes(options) or run.shapes,
        log=parse_log(text.splitlines(keepends=False)),
    )


def _gpu(options: Mapping[str, str]) -> str:
    return options.get("Selected Device", "")


def _shapes(options: Mapping[str, str]) -> str:
    """Input shapes that were asked for; "model" means the network's own."""
    asked = next((options[key] for key in ("Input inference shapes", "Input inference shape") if key in options), "")
    named = [f"{key.partition(' ')[2]}={value}" for key, value in options.items() if key == "Input inference shape"]
    text = asked or "".join(named)
    return "" if text == "model" else text


def _toggles(options: Mapping[str, str]) -> Toggles:
    found = {
        name: options[key].startswith("Enabled")
        for key, name in _TOGGLES.items()
        if options.get(key, "").startswith(("Enabled", "Disabled"))
    }
    return Toggles(**found)


def _version(digits: str) -> str:
    """8503 is 8.5.3, 101601 is 10.16.1."""
    number = int(digits)
    scale = 1000 if number < 10_000 else 10_000
    minor = number % scale // 100
    return f"{number // scale}.{minor}.{number % 100}"


def _with_defaults(run: TrtexecRun) -> TrtexecRun:
    """Fill in what the version's defaults tell, and what the times themselves show."""
    major = int(run.version.partition(".")[0]) if run.version else None
    toggles, source = run.toggles, run.toggles_source
    if toggles == Toggles() and major is not None:
        toggles = Toggles(transfers=major < 11, graph=major >= 11, spin=major >= 11)
        source = f"the defaults of trtexec {major}; its log does not list the options"
    if toggles.transfers is None and run.compute_ms is not None:
        toggles = replace(toggles, transfers=run.latency_ms is not None)
        source = source or "the times themselves"
    return replace(run, toggles=toggles, toggles_source=source or "no file")
