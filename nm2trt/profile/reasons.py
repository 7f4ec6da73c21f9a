"""Why a layer is not faster in the sparse variant, and what to try. Rules with their source; no guess beyond them.

Sources: NVIDIA's documentation on structured sparsity; maintainers' answers in NVIDIA/TensorRT issues 4054 (groups),
3849 and 4065 (channels), 2310 (gains of CNNs); NVIDIA's sparse INT8 example (INT8 outputs); trtexec's own warnings
(enqueue above 0.8 of compute; unstable clocks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nm2trt.artifacts.report_layers import LayerTimeRecord, RooflineRecord

if TYPE_CHECKING:
    from nm2trt.estimate.geometry import LayerGeometry

_SMALL_CHANNELS = 64
_TILE = 128
_NO_GAIN = 1.03
_LAUNCH_MS = 0.006
"""Two launches of an empty kernel: a layer as short as that has nothing to save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What holds for all layers of a run."""

    batch: int
    sparse_kernels: bool | None
    tuned_for: int | None = None
    multiprocessors: int | None = None
    """SMs of the GPU; None where unknown or no GPU."""
    launch_bound: bool = False
    clocks_moved: bool = False
    roofline: RooflineRecord | None = None


def why_not_faster(row: LayerTimeRecord, products: Sequence[LayerGeometry], setting: Setting) -> list[tuple[str, str]]:
    """List (reason, what to try) for a layer with weights that gained nothing.

    Args:
        row: Its times and evidence.
        products: Its convolutions and matrix products, where the network was at hand.
        setting: What holds for the whole run.

    Returns:
        Empty for layers without weights, and for those whose sparse kernel gained more than 3 %.
    """
    if not row.weighted or row.sparse_ms is None:
        return []
    if row.eligible is False:
        return [_not_eligible(row)]
    if setting.sparse_kernels is False:
        return [("this backend has no sparse kernels", "profile engines with --backend tensorrt on the GPU")]
    if row.chosen and row.ratio is not None and row.ratio.value >= _NO_GAIN:
        return []
    found: list[tuple[str, str]] = []
    if row.chosen is False and row.eligible:
        found.append(("the builder timed its sparse kernels and kept a dense one", "see the reasons beside this one"))
    found += _of_shape(row, products, setting)
    found += _of_run(setting)
    return found


_ADVICE: dict[str, str] = {
    "not-legal": "train it with --pattern 2:4, or leave it dense on purpose",
    "grouped": "leave it dense: TensorRT never considers sparse kernels for groups",
    "channels": "leave it dense, or pad the channels to a multiple of 4",
    "float32": "export with --precision fp16, or quantize with nm2trt calibrate",
    "bfloat16": "export with --precision fp16",
    "zero-point": "calibrate again with symmetric ranges (nm2trt calibrate)",
    "conv-transpose": "leave it dense, or use resize and convolution",
}
"""Code of the reason why a layer is not eligible -> what to try."""


def _not_eligible(row: LayerTimeRecord) -> tuple[str, str]:
    return row.why_not or "not eligible", _ADVICE.get(row.why_not_code, "nm2trt verify says more")


def _of_shape(row: LayerTimeRecord, products: Sequence[LayerGeometry], setting: Setting) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for one in products[:1]:
        if min(one.channels or one.k, one.n) < _SMALL_CHANNELS:
            found.append(
                (
                    f"too small: {one.channels or one.k} channels in, {one.n} out",
                    "leave layers under 64 channels dense: it costs no time, and accuracy gains",
                )
            )
        tiles = math.ceil(one.m / _TILE) * math.ceil(one.n / _TILE) * max(1, one.groups)
        if setting.multiprocessors and tiles < setting.multiprocessors:
            found.append(
                (
                    f"batch too small: about {tiles} tiles of 128x128 for {setting.multiprocessors} multiprocessors",
                    "measure a larger --batch",
                )
            )
        if one.quantized and not one.int8_out:
            found.append(
                (
                    "INT8 in, but not INT8 out: its output is not quantized",
                    "put a QuantizeLinear right behind it (nm2trt calibrate does where the graph allows)",
                )
            )
    if setting.multiprocessors and row.sparse_ms is not None and row.sparse_ms < _LAUNCH_MS:
        found.append(("too short: about as long as a launch", "nothing: it is not worth a sparse kernel"))
    if _memory_bound(row, setting.roofline):
        found.append(
            (
                "memory bound: moving its tensors takes longer than its arithmetic",
                "fuse what surrounds it, or use INT8; sparse arithmetic cannot help",
            )
        )
    return found


def _memory_bound(row: LayerTimeRecord, roofline: RooflineRecord | None) -> bool:
    if roofline is None or not row.flops or not row.bytes:
        return False
    return row.bytes / roofline.bytes_per_s > row.flops / roofline.dense_flops_per_s


def _of_run(setting: Setting) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if setting.tuned_for is not None and setting.tuned_for != setting.batch:
        found.append(
            (
                f"tuned for batch {setting.tuned_for}, measured at {setting.batch}",
                f"export with --batch MIN:{setting.batch}:MAX",
            )
        )
    if setting.launch_bound:
        found.append(("launch bound: enqueueing takes over 0.8 of the computing", "use CUDA graphs, or a larger batch"))
    if setting.clocks_moved:
        found.append(("clocks not locked: they moved during the run", "lock them with nvidia-smi -lgc, measure again"))
    return found
