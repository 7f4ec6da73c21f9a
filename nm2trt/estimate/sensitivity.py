"""Sensitivities by layer from a file: what making a layer sparse costs, in any unit."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from nm2trt.errors import InputError

_LARGEST_FILE_BYTES = 64 << 20
_HINT = 'use JSON {"layer": cost} or CSV lines "layer,cost", larger is worse'


def read_sensitivity(path: Path) -> tuple[dict[str, float], str]:
    """Read a JSON object, a CSV table, or what `nm2trt calibrate --sensitivity` or `nm2trt prune --data` wrote.

    Returns:
        Cost by layer name, and a note where the file measured something else than sparsity.

    Raises:
        InputError: The file is missing, unreadable, or holds no finite costs of at least 0.
    """
    if not path.is_file():
        raise InputError("no such file", where=path, hint=_HINT)
    if path.stat().st_size > _LARGEST_FILE_BYTES:
        raise InputError("is larger than 64 MiB, no sensitivities", where=path, hint=_HINT)
    try:
        text = path.read_text(encoding="utf-8")
        raw: Any = json.loads(text) if text.lstrip().startswith("{") else _from_csv(text)
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"no readable JSON or CSV: {error}", where=path, hint=_HINT) from None
    note = ""
    if isinstance(raw, dict) and str(raw.get("schema", "")).startswith("nm2trt.calibration/"):
        raw, note = _from_calibration(raw), "the sensitivities are those to INT8, not to sparsity: a stand-in"
    elif isinstance(raw, dict) and str(raw.get("schema", "")).startswith("nm2trt.prune/"):
        raw, note = _from_prune(raw)
    if not isinstance(raw, dict) or not raw:
        raise InputError("holds no sensitivities", where=path, hint=_HINT)
    costs = {}
    for name, value in raw.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise InputError(f"{name!r}: {value!r} is no finite cost of at least 0", where=path, hint=_HINT)
        costs[str(name)] = float(value)
    return costs, note


def _from_csv(text: str) -> dict[str, float]:
    costs = {}
    for number, row in enumerate(csv.reader(text.splitlines())):
        if not row or not "".join(row).strip():
            continue
        if len(row) != 2:
            raise ValueError(f"line {number + 1} has {len(row)} columns, not 2")
        try:
            costs[row[0].strip()] = float(row[1])
        except ValueError:
            if number:
                raise ValueError(f"line {number + 1}: {row[1]!r} is no number") from None
    return costs


def _from_calibration(raw: dict[str, Any]) -> dict[str, float]:
    costs = {}
    for entry in raw.get("sensitivity") or ():
        drop = entry.get("score_drop_points")
        # Without a score, noise over signal: it adds up over layers, decibels do not.
        costs[str(entry["layer"])] = max(0.0, drop) if drop is not None else 10 ** (-float(entry["sqnr_db"]) / 10)
    return costs


def _from_prune(raw: dict[str, Any]) -> tuple[dict[str, float], str]:
    """Each layer pruned alone where that was measured, else what pruning does to the layer's own output."""
    found = raw.get("calibrated") or {}
    if found.get("sensitivity"):
        # Noise over signal adds up over layers; a score of a few samples, which is there, too, is mostly 0.
        return {str(one["layer"]): 10 ** (-float(one["sqnr_db"]) / 10) for one in found["sensitivity"]}, ""
    errors = {
        str(layer["name"]): float(layer["output"]["error"]) for layer in raw.get("layers") or () if layer.get("output")
    }
    return errors, "the sensitivities are errors of each layer's own output: prune with --sensitivity for the network's"
