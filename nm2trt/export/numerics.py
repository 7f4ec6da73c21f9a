"""ONNX Runtime against torch in float32, on the same inputs, at several batch sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nm2trt.artifacts import BatchRange, NumericsRecord
from nm2trt.errors import InputError

Array = NDArray[Any]

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""Bounds on the largest error over the largest reference magnitude.

Measured on the mlp, resnet8 and resnet20 trained on digits, three seeds each: fp32 at most 4.6e-7, fp16 4.3e-4, bf16
3.2e-3. The bounds leave 15 to 200 times that for deeper networks, and a wrong epsilon, a lost bias or a
mistaken transpose is far above them.
"""

_FEWEST_SAMPLES = 64
_MOST_SAMPLES = 1024
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Inputs of the check, and where they came from in words."""

    x_BX: NDArray[np.float32]
    """[samples, *input_shape]."""
    inputs: str


def numerics_samples(
    data: str | None, input_shape: tuple[int, ...], batch: BatchRange, *, data_dir: Path | None = None
) -> Samples:
    """Take real test samples; only a source without data gets random ones, and the record says so.

    Args:
        data: Name of a data set, or None.
        input_shape: One sample, without the batch.
        batch: Its maximum decides how many samples are taken, between 64 and 1,024.
        data_dir: Where the data set's files are; None looks in the usual places.

    Raises:
        InputError: The data set cannot be read, or its samples have another shape.
    """
    wanted = min(max(batch.max, _FEWEST_SAMPLES), _MOST_SAMPLES)
    if data is None:
        x_BX = np.random.default_rng(_SEED).standard_normal((wanted, *input_shape), dtype=np.float32)
        return Samples(x_BX=x_BX, inputs=f"{wanted} samples of seeded normal noise (the source names no data)")
    from nm2trt.data import load_data_for

    x_BX = load_data_for(data, input_shape, data_dir).test_samples(wanted)
    if tuple(x_BX.shape[1:]) != tuple(input_shape):
        raise InputError(
            f"samples are {list(x_BX.shape[1:])}, the network takes {list(input_shape)}", where=f"data set {data}"
        )
    return Samples(
        x_BX=np.ascontiguousarray(x_BX, dtype=np.float32), inputs=f"first {len(x_BX)} test samples of {data}"
    )


def check_numerics(
    module: nn.Module, onnx: bytes, samples: Samples, batch: BatchRange, *, tolerance: float, bf16: bool = False
) -> NumericsRecord:
    """Run all samples through torch once and through ONNX Runtime at each batch size.

    Args:
        module: The network in float32 with BatchNorm as trained, not folded; the reference.
        onnx: The model's bytes.
        samples: Inputs.
        batch: Its three sizes are run, each capped by the number of samples.
        tolerance: Bound on the relative error, larger than 0.
        bf16: The model computes in bfloat16, for which ONNX Runtime's CPU has no kernels: the same weights are
            computed in float32, and the record says so.

    Raises:
        InputError: ONNX Runtime refuses the model.
    """
    count = len(samples.x_BX)
    batches = tuple(sorted({min(size, count) for size in (batch.min, batch.opt, batch.max)}))
    reference_BO = _torch_outputs(module, samples.x_BX, batches[-1])
    session = _session(_computed_in_float32(onnx) if bf16 else onnx)
    worst, worst_at, agreeing = -1.0, "", 0
    for size in batches:
        output_BO = _onnx_outputs(session, samples.x_BX, size)
        error, where = _largest_error(reference_BO, output_BO)
        agreeing += int((_argmax(reference_BO) == _argmax(output_BO)).sum())
        # NaN never compares as larger, so it is caught by name.
        if error > worst or np.isnan(error):
            worst, worst_at = error, f"{where}, batch {size}"
        if np.isnan(error):
            break
    scale = float(np.abs(reference_BO).max(initial=0.0))
    relative = worst / scale if scale > 0 else worst
    how = "ONNX Runtime CPU" + (
        ", its bfloat16 weights computed in float32 (no bfloat16 kernels there)" if bf16 else ""
    )
    return NumericsRecord(
        reference=f"torch {torch.__version__} float32 CPU, BatchNorm not folded; against {how}",
        inputs=samples.inputs,
        samples=count,
        batches=batches,
        max_abs_error=worst,
        max_abs_error_at=worst_at,
        max_rel_error=relative,
        tolerance=tolerance,
        argmax_agreement=agreeing / (count * len(batches)),
        passed=bool(relative <= tolerance),
    )


def _argmax(y_BO: Array) -> NDArray[np.intp]:
    indices: NDArray[np.intp] = y_BO.reshape(len(y_BO), -1).argmax(axis=1)
    return indices


def _largest_error(reference_BO: Array, output_BO: Array) -> tuple[float, str]:
    """Largest absolute difference and where it is; a NaN on one side only is larger than any number."""
    difference_BO = np.abs(reference_BO.astype(np.float64) - output_BO.astype(np.float64))
    # np.argmax returns the first NaN if there is one.
    index = np.unravel_index(int(np.argmax(difference_BO)), difference_BO.shape)
    position = ",".join(str(int(part)) for part in index[1:])
    where = (
        f"sample {int(index[0])}, output {position}: torch {float(reference_BO[index]):.8g}, "
        f"ONNX Runtime {float(output_BO[index]):.8g}"
    )
    return float(difference_BO[index]), where


def _torch_outputs(module: nn.Module, x_BX: Array, size: int) -> Array:
    with torch.inference_mode():
        pieces = [module(torch.from_numpy(x_BX[at : at + size])).numpy() for at in range(0, len(x_BX), size)]
    return np.concatenate(pieces)


def _onnx_outputs(session: Any, x_BX: Array, size: int) -> Array:
    name = session.get_inputs()[0].name
    pieces = [session.run(None, {name: x_BX[at : at + size]})[0] for at in range(0, len(x_BX), size)]
    return np.concatenate(pieces)


def _session(onnx: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime's exception classes have no public base.
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"ONNX Runtime refuses the model: {first}", where="export") from error


def _computed_in_float32(onnx: bytes) -> bytes:
    """The same graph and the same bfloat16-rounded weights, typed float32."""
    import onnx_ir as ir
    from onnx import ModelProto

    model = ir.from_proto(ModelProto.FromString(onnx))
    narrow, wide = ir.DataType.BFLOAT16, ir.DataType.FLOAT
    for value in model.graph.initializers.values():
        if value.dtype == narrow and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = wide
    for node in model.graph.all_nodes():
        for output in node.outputs:
            if output.dtype == narrow:
                output.dtype = wide
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and to.as_int() == int(narrow):
            node.attributes["to"] = ir.AttrInt64("to", int(wide))
    content: bytes = ir.to_proto(model).SerializeToString()
    return content
