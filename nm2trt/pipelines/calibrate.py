"""Quantize a float ONNX model to INT8, and prove what became of it: the stages calibration and engine, joined."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nm2trt.artifacts.calibration import CalibrationDocument
from nm2trt.calibration.files import check_target
from nm2trt.calibration.run import calibrate
from nm2trt.calibration.settings import Settings
from nm2trt.engine import choose_builder
from nm2trt.pipelines.compile_check import compile_result
from nm2trt.pipelines.progress import ignore_progress

__all__ = ["CalibrationConfig", "CalibrationDocument", "calibrate_model", "draw_ranges"]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, samples or layers done, of how many."""


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig(Settings):
    """How a model is quantized. One of `data` and `cache` is needed.

    Raises:
        ConfigError: A value is not allowed, or options do not go together.
    """

    builder: str = "auto"
    """What compiles the result, to see that it builds: "auto", "tensorrt", "tensorrt-rtx" or "none"."""
    sm: str | None = None
    """Compute capability to compile for, such as "80"; None takes the builder's usual one."""


def calibrate_model(
    model: Path | str,
    output: Path | str,
    config: CalibrationConfig,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> CalibrationDocument:
    """Quantize a float ONNX model to INT8 Q/DQ, keep its N:M pattern, and prove both.

    Args:
        model: Float32 or float16 ONNX file, or a folder of `nm2trt export`.
        output: `.onnx` to write; OUT.calibration.json goes beside it, both or neither.
        config: Samples, how ranges are chosen, where Q/DQ go.
        force: Replace an output that nm2trt wrote.
        progress: Called with what is being done, how much of it is done, of how many.

    Returns:
        What was written as OUT.calibration.json. Its verdict is "fail" where a layer lost its pattern, the score drops
        too far or the result does not compile; the files are there all the same.

    Raises:
        ConfigError: Wrong options, or the output exists.
        InputError: The model or the samples cannot be used; nothing is written.
        MachineError: A builder was asked for that this machine lacks.

    Example:
        >>> config = CalibrationConfig(data="samples.npz", builder="none")
        >>> document = calibrate_model("model.onnx", "int8.onnx", config)
        >>> document.verdict, [layer.name for layer in document.layers]
        ('pass', ['c0', 'c1'])
    """
    model, output = Path(model), Path(output)
    check_target(model, output, force=force)
    chosen = choose_builder(config.builder)
    sm = chosen.builder.resolve_sm(config.sm) if chosen.builder is not None else None
    logger.debug("calibrate %s with %s", model, config.data or config.cache)
    return calibrate(
        model,
        output,
        config,
        force=force,
        progress=progress or ignore_progress,
        compile_check=partial(compile_result, chosen=chosen, sm=sm),
    )


def draw_ranges(document: CalibrationDocument, output: Path) -> None:
    """Draw the range of every tensor, and what is clipped, into a PNG."""
    from nm2trt.report.calibration import write_ranges_png

    write_ranges_png(document, output)
