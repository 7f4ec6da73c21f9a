"""Holds the float graph that is calibrated against the file as it was given.

What was raised to a newer opset or taken apart may compute something else, and every later figure would rest on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from nm2trt.calibration.graph import OLDEST_OPSET, Graph, load_proto
from nm2trt.calibration.sessions import Feed, Runner
from nm2trt.calibration.stripping import quantized_ranges
from nm2trt.errors import InputError
from nm2trt.ort import Reason, as_arrays, compare_outputs, describe_comparison, first_failure
from nm2trt.ort.similarity import comparable_values, cosines_of_rows

_SAME, _SAME_NARROW = 1e-3, 2e-2
"""Bounds on what another opset may change, of float32 and of float16: the order of sums, and nothing else."""
_LEAST_COSINE = 0.9
_CLIPPED_SHARE = 5e-3
"""Calibrators leave fewer values than this outside of a range; a Clip that was folded into it cuts more."""


def find_clipped(given: Path, feeds: Iterable[Feed]) -> dict[str, tuple[float, float]]:
    """Activations that the file's own quantization clips, by running it: tensor -> the range that is left of it.

    A quantizer drops a Clip, Hardtanh or Relu6 before a Q whose range is the same, whatever that range is.

    Raises:
        InputError: ONNX Runtime refuses the model or a batch.
    """
    proto = load_proto(given)
    ranges = quantized_ranges(proto, given)
    if not ranges:
        return {}
    model = ir.from_proto(proto)
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    names = [name for name in ranges if name in values]
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in names)
    runner = Runner(ir.to_proto(model), given)
    counts = dict.fromkeys(names, 0)
    sizes = dict.fromkeys(names, 0)
    for feed in feeds:
        for name, array in runner.named(feed).items():
            low, high, step = ranges[name]
            counts[name] += int(np.count_nonzero((array < low - step) | (array > high + step)))
            sizes[name] += array.size
    return {name: ranges[name][:2] for name in names if counts[name] > _CLIPPED_SHARE * sizes[name]}


def check_against_given(graph: Graph, feed: Feed, *, resymmetrized: bool) -> None:
    """Run the graph that is calibrated and the file that was given on one batch.

    Args:
        graph: Its path is the file that was given.
        feed: Inputs by name.
        resymmetrized: Quantization was taken out, and with it rounding.

    Raises:
        InputError: They compute different things: the line says how far apart they are.
    """
    given = graph.path
    before, after = as_arrays(Runner(given, given).named(feed)), as_arrays(Runner(graph.proto, given).named(feed))
    if resymmetrized:
        _check_taken_apart(before, after, given)
        return
    narrow = any(array.dtype.kind == "f" and array.dtype.itemsize == 2 for array in before.values())
    compared = compare_outputs(before, after, tolerance=_SAME_NARROW if narrow else _SAME, mismatch_share=_SAME)
    failed = first_failure(compared)
    if failed is not None:
        raise InputError(
            f"computes something else once it is raised to opset {OLDEST_OPSET}: "
            f"{describe_comparison(failed, other='converted')}",
            where=given,
            hint=f"export the network again with opset {OLDEST_OPSET} or newer",
        )


def _check_taken_apart(before: Mapping[str, Any], after: Mapping[str, Any], given: Path) -> None:
    """Rounding is gone, so outputs differ; they still have to point the same way."""
    for compared in compare_outputs(before, after, tolerance=math.inf, mismatch_share=1.0):
        name = compared.name
        if compared.structural is not None or before[name].dtype.kind != "f" or not compared.elements:
            continue
        if compared.reason is Reason.NON_FINITE:
            raise InputError(
                f"computes something else without its quantization: {describe_comparison(compared, other='converted')}",
                where=given,
                hint="calibrate the float model that it was made from",
            )
        a, b = (array.reshape(1, -1) for array in comparable_values(before[name], after[name]))
        cosine = float(cosines_of_rows(a, b)[0])
        if cosine < _LEAST_COSINE:
            raise InputError(
                f"computes something else without its quantization: the cosine of output {name} is {cosine:.2f}. Its "
                "quantization clips more than was found",
                where=given,
                hint="calibrate the float model that it was made from",
            )
