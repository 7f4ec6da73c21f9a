"""Set two reports side by side, or an estimate beside a report."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from nm2trt.profile.comparison import ComparisonDocument, compare_reports
from nm2trt.profile.estimate_comparison import (
    EstimateComparisonDocument,
    Pair,
    compare_with_report,
    is_estimate,
)

__all__ = ["CompareConfig", "ComparisonDocument", "EstimateComparisonDocument", "Pair", "compare_files"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """What is held against what."""

    first: Path
    """Report folder, its report.json, or a file of `nm2trt estimate --json`."""
    second: Path
    """The same; at most one of the two is an estimate."""


def compare_files(config: CompareConfig) -> ComparisonDocument | EstimateComparisonDocument:
    """Compare two reports by their ratios, or say how far an estimate was off.

    Args:
        config: The two, in either order where one is an estimate.

    Returns:
        What differs between two reports and whether their ratios agree; or estimated and measured values in pairs,
        times in milliseconds end to end and in microseconds a layer.

    Raises:
        InputError: One cannot be read, or an estimate and a report share no batch size.

    Example:
        >>> from nm2trt import ProfileConfig, profile_build
        >>> timing = ProfileConfig(backend="onnxruntime", batches=(1,), duration_s=0.1)
        >>> for folder in ("first", "second"):
        ...     _ = profile_build("model.onnx", folder, timing)
        >>> document = compare_files(CompareConfig(first=Path("first"), second=Path("second")))
        >>> [batch.batch for batch in document.batches]
        [1]
    """
    first, second = config.first, config.second
    if is_estimate(second):
        first, second = second, first
    if is_estimate(first):
        logger.debug("compare the estimate %s with the report %s", first, second)
        return compare_with_report(first, second)
    return compare_reports(first, second)
