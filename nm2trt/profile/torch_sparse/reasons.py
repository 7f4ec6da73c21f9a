"""Why a product is not faster with torch's 2:4 kernels, and what to try."""

from __future__ import annotations

import math

from nm2trt.artifacts.report_layers import LayerTimeRecord
from nm2trt.torch_sparse.conversion import ProductLayer
from nm2trt.torch_sparse.eligibility import advise

_NO_GAIN = 1.03
_FEW_ROWS = 256
_TILE = 128
_LAUNCH_MS = 0.006
_OTHER_KERNELS = 0.2
_SLOWED = 1.1


def why_not_faster(
    row: LayerTimeRecord, layer: ProductLayer, *, multiprocessors: int | None, sparse_share: float | None
) -> list[tuple[str, str]]:
    """List (reason, what to try) for a product that gained nothing.

    Args:
        row: Its times and kernels.
        layer: Its sizes, and why it is not eligible.
        multiprocessors: Of the GPU.
        sparse_share: Share of the product's time that its sparse kernel took; the rest is padding and copying.
    """
    if layer.reason is not None:
        found = [(layer.reason.words(), advise(layer.reason))]
        if row.ratio is not None and row.ratio.high < 1 / _SLOWED:
            found.append(
                (
                    "slower by the same kernel: its input comes out of a 2:4 product column by column, and is copied",
                    "leave the product before it dense",
                )
            )
        return found
    if row.chosen and row.ratio is not None and row.ratio.low >= 1 and row.ratio.value >= _NO_GAIN:
        return []
    found = []
    if row.chosen is False:
        found.append(("no kernel with a sparse name ran", "report it to PyTorch with the kernel names in report.json"))
    if layer.m < _FEW_ROWS:
        found.append(
            (
                f"{layer.m} rows: the weight is read once for few products, and cuSPARSELt's kernels are slow there",
                "measure a larger --batch",
            )
        )
    tiles = math.ceil(layer.m / _TILE) * math.ceil(layer.n / _TILE)
    if multiprocessors and tiles < multiprocessors:
        found.append(
            (
                f"about {tiles} tiles of 128x128 for {multiprocessors} multiprocessors",
                "measure a larger --batch",
            )
        )
    if row.sparse_ms is not None and row.sparse_ms < _LAUNCH_MS:
        found.append(("about as short as a launch", "nothing: it is not worth a sparse kernel"))
    if sparse_share is not None and sparse_share < 1 - _OTHER_KERNELS:
        found.append(
            (
                f"only {100 * sparse_share:.0f} % of its time is the sparse kernel; the rest pads or copies",
                "use batch sizes that need no padding; see the kernel names",
            )
        )
    if not found:
        found.append(
            (
                "torch's default algorithm is not faster for these sizes",
                "nm2trt benchmark-gpu says whether a searched one is",
            )
        )
    return found
