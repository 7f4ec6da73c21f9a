"""Which integers a network takes, found by running it: what its graph alone does not tell.

`nm2trt.ort.index_limits` follows an input to the tables it is looked up in. Arithmetic on the way (an offset for each
column, two features in one number), other operators than Gather, and tables in subgraphs are beyond it. ONNX Runtime
refuses an index behind a table's end, so the largest value that runs is the table's last row.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nm2trt.artifacts import GraphPort
from nm2trt.ort.index_limits import largest_modulus
from nm2trt.ort.random_inputs import is_mask
from nm2trt.serve.draw import InputRange, is_length
from nm2trt.serve.ports import numpy_type
from nm2trt.serve.trial_run import OPEN_SESSION

_BUDGET_S = 15.0
_MOST_COLUMNS = 64
"""Longer last axes are sequences, not features with a table each."""
_LARGEST = 1 << 22
"""A value so large that still runs is no index."""
_MEMORY = 8 << 30
"""Bytes of address space."""
_PROBE = f"""{OPEN_SESSION}
import contextlib, json, resource, time
with contextlib.suppress(ValueError, OSError):
    # A value may be a size: a network must not take all memory for it.
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY} if hard == -1 else min({_MEMORY}, hard), hard))
plan = json.loads(sys.argv[3])
with np.load(sys.argv[2]) as values:
    base = [values[f"arr_{{at}}"] for at in range(len(values.files))]
end = time.monotonic() + {_BUDGET_S}

def runs(changes):
    if time.monotonic() > end:
        sys.exit(0)
    feeds = [value.copy() for value in base]
    for at, column, value in changes:
        feeds[at][... if column is None else (..., column)] = value
    try:
        session.run(None, dict(zip(plan["names"], feeds)))
    except Exception:
        return False
    return True

def largest(at, column, low, most):
    high = low
    while True:
        if high >= most:
            return None
        step = min(max(2 * high, 1), most)
        if not runs([(at, column, step)]):
            break
        high = step
    while step - high > 1:
        middle = (step + high) // 2
        if runs([(at, column, middle)]):
            high = middle
        else:
            step = middle
    return high

def say(**found):
    print(json.dumps(found), flush=True)

if runs([]):
    for one in plan["inputs"]:
        at, most, known = one["at"], one["most"], one["known"]
        if known is not None and runs([(at, None, known)]):
            top = known
        else:
            top = largest(at, None, int(base[at].flat[0]), most if known is None else known)
        say(at=at, top=top)
        if top is None or not one["columns"]:
            continue
        tops = []
        for column in range(one["columns"]):
            more = top < most and runs([(at, column, top + 1)])
            tops.append(largest(at, column, top + 1, most) if more else top)
        say(at=at, tops=tops)
        say(at=at, together=runs([(at, column, value) for column, value in enumerate(tops) if value is not None]))
    for one in plan["inputs"]:
        say(at=one["at"], zero=runs([(one["at"], None, 0)]))
"""


def probe_ranges(
    inputs: Sequence[GraphPort], onnx: Path, limits: Mapping[str, int], feed: Mapping[str, NDArray[Any]]
) -> dict[str, int | InputRange]:
    """Range of each integer input.

    Args:
        inputs: Of the network.
        onnx: Its graph.
        limits: What the graph tells: input name -> its values are below it.
        feed: One request; its integers are replaced by ones.

    Returns:
        `limits`, corrected and completed by what ONNX Runtime takes; masks and lengths are left to their names. Where
        the network does not run with ones, or its inputs cannot be at their ends together, `limits` as it is.
    """
    asked = [(at, port) for at, port in enumerate(inputs) if _is_probed(port, limits)]
    if not asked:
        return dict(limits)
    base = [_base(port, feed[port.name], limits) for port in inputs]
    plan = [
        {
            "at": at,
            "most": min(_LARGEST, int(np.iinfo(numpy_type(port.dtype)).max)),
            "known": limits[port.name] - 1 if port.name in limits else None,
            "columns": _columns(port),
        }
        for at, port in asked
    ]
    found = _run(onnx, base, {"names": [port.name for port in inputs], "inputs": plan})
    ranges: dict[str, int | InputRange] = dict(limits)
    for at, port in asked:
        drawn = _range(found.get(at, {}), port, known=port.name in limits)
        if drawn is None:
            continue
        modulus = 0 if drawn.below else min(largest_modulus(ir.load(onnx)), _LARGEST)
        ranges[port.name] = replace(drawn, below=(modulus,)) if modulus > 1 else drawn
    return ranges


def _is_probed(port: GraphPort, limits: Mapping[str, int]) -> bool:
    if np.dtype(numpy_type(port.dtype)).kind not in "iu":
        return False
    if port.name in limits:
        return bool(_columns(port))
    return not is_mask(port.name) and not is_length(port.name)


def _columns(port: GraphPort) -> int:
    """Length of a last axis whose positions may be features of their own; 0: none."""
    size = port.shape[-1] if len(port.shape) > 1 else 0
    return size if isinstance(size, int) and 1 < size <= _MOST_COLUMNS else 0


def _base(port: GraphPort, value: NDArray[Any], limits: Mapping[str, int]) -> NDArray[Any]:
    if value.dtype.kind not in "iu":
        return value
    return np.full_like(value, min(1, limits.get(port.name, 2) - 1))


def _range(found: Mapping[str, Any], port: GraphPort, *, known: bool) -> InputRange | None:
    """What was found of one input; None: nothing that its type or its graph does not say."""
    if "top" not in found:
        return None
    low = 0 if found.get("zero") else 1
    top, tops = found["top"], found.get("tops")
    if top is None:
        # A number: an 8-bit one takes all of its type.
        wide = np.dtype(numpy_type(port.dtype)).itemsize == 1
        return None if known or wide else InputRange(below=(), low=low)
    if tops is not None and len(set(tops)) > 1 and found.get("together"):
        return InputRange(below=tuple(top + 1 if one is None else one + 1 for one in tops), low=low)
    return InputRange(below=(top + 1,), low=min(low, top))


def _run(onnx: Path, base: Sequence[NDArray[Any]], plan: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """What each input's lines say, those before the process ended: an integer division by zero ends it."""
    with tempfile.TemporaryDirectory(prefix="nm2trt-probe-") as folder:
        file = Path(folder) / "values.npz"
        np.savez(file, *base)
        try:
            ended = subprocess.run(
                [sys.executable, "-c", _PROBE, str(onnx.resolve()), str(file), json.dumps(plan)],
                capture_output=True,
                text=True,
                timeout=4 * _BUDGET_S,
                check=False,
            )
            text = ended.stdout
        except subprocess.TimeoutExpired as error:
            text = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    found: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        if re.fullmatch(r"\{.*\}", line):
            said = json.loads(line)
            found.setdefault(said.pop("at"), {}).update(said)
    return found
