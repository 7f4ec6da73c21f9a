"""Whether two runs of trtexec may be compared at all. What a file does not tell is no difference, but it is said."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from nm2trt.artifacts.report import VariantName
from nm2trt.errors import InputError
from nm2trt.evidence.precision import differs
from nm2trt.evidence.trtexec import TrtexecRun

_HINT = "measure both alike; trtexec 10 and 11 have other defaults, so name every option"


def check_comparable(runs: Mapping[VariantName, TrtexecRun]) -> None:
    """Refuse runs that differ in what is not the engine.

    Raises:
        InputError: Precision, shapes, batch, GPU, TensorRT's release, or what was timed differ.
    """
    for (one_name, one), (other_name, other) in combinations(runs.items(), 2):
        for what, a, b in _differences(one, other):
            raise InputError(
                f"{what}: {a} in the {one_name} run, {b} in the {other_name} run",
                where=f"{one.name} and {other.name}",
                hint=_HINT,
            )


def _differences(one: TrtexecRun, other: TrtexecRun) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    held = differs(one.precision, other.precision, one_is_asked=_is_asked(one), other_is_asked=_is_asked(other))
    asked = differs(one.asked_precision, other.asked_precision, one_is_asked=True, other_is_asked=True)
    if held:
        found.append(("precision", one.precision, other.precision))
    elif asked:
        found.append(("precision", one.asked_precision, other.asked_precision))
    if _shapes_differ(one, other):
        found.append(("input shapes", shape_words(one), shape_words(other)))
    elif one.batch and other.batch and one.batch != other.batch:
        found.append(("batch", str(one.batch), str(other.batch)))
    # Older drivers leave the maker's name out.
    if one.gpu and other.gpu and one.gpu.removeprefix("NVIDIA ") != other.gpu.removeprefix("NVIDIA "):
        found.append(("GPU", one.gpu, other.gpu))
    if one.version and other.version and _release(one.version) != _release(other.version):
        found.append(("TensorRT", one.version, other.version))
    if one.streams and other.streams and one.streams != other.streams:
        found.append(("inference streams", str(one.streams), str(other.streams)))
    for what, a, b in (
        ("data transfers", one.toggles.transfers, other.toggles.transfers),
        ("CUDA graph", one.toggles.graph, other.toggles.graph),
        ("spin wait", one.toggles.spin, other.toggles.spin),
    ):
        if a is not None and b is not None and a != b:
            found.append((what, "on" if a else "off", "on" if b else "off"))
    return found


def _is_asked(run: TrtexecRun) -> bool:
    return bool(run.asked_precision) and run.precision == run.asked_precision


def _release(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _shapes_differ(one: TrtexecRun, other: TrtexecRun) -> bool:
    shared = set(one.shapes) & set(other.shapes)
    if shared:
        return any(one.shapes[name] != other.shapes[name] for name in shared)
    # Exported apart, inputs may have other names.
    return bool(one.shapes and other.shapes) and sorted(one.shapes.values()) != sorted(other.shapes.values())


def shape_words(run: TrtexecRun) -> str:
    """x=32x3x224x224, as trtexec's log spells it."""
    return ", ".join(f"{name}={'x'.join(map(str, sizes))}" for name, sizes in run.shapes.items())


def comparison_notes(runs: Mapping[VariantName, TrtexecRun]) -> list[str]:
    """What the runs leave open about being alike."""
    if len(runs) < 2:
        return []
    notes: list[str] = []
    versions = {run.version for run in runs.values() if run.version}
    if len(versions) > 1:
        notes.append(f"The runs are of TensorRT {' and '.join(sorted(versions))}.")
    unknown_things: list[str] = []
    for what, unknown in (
        ("precision", [name for name, run in runs.items() if not run.precision]),
        ("GPU", [name for name, run in runs.items() if not run.gpu]),
        ("input shapes", [name for name, run in runs.items() if not run.shapes and run.batch is None]),
        ("TensorRT's version", [name for name, run in runs.items() if not run.version]),
    ):
        if unknown:
            unknown_things.append(f"{what} ({', '.join(unknown)})")
    if unknown_things:
        notes.append(f"No file tells {', '.join(unknown_things)}, so nothing shows that the runs are alike in that.")
    names = {frozenset(run.shapes) for run in runs.values() if run.shapes}
    if len(names) > 1 and frozenset.intersection(*names):
        lists = " and ".join(", ".join(sorted(one)) for one in sorted(names, key=sorted))
        notes.append(f"The runs tell shapes of different inputs ({lists}): those of the others are not compared.")
    return notes
