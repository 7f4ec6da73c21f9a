"""Published pairs of dense and sparse engines that the constants were not fitted on (UNet's sums excepted)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import estimate_networks as networks
from estimate_data import UNET_END_TO_END_MS

from nm2trt.estimate.gpus import find_gpu
from nm2trt.estimate.kernel import KernelConstants
from nm2trt.estimate.network import NetworkEstimate, estimate_network
from nm2trt.pattern import NMPattern

# Name, batch, tokens, published ratio.
BERT = (("seq 384 b32", 32, 384, 1.23), ("seq 384 b128", 128, 384, 1.26), ("seq 128 b128", 128, 128, 1.15))


def report_published(constants: KernelConstants) -> list[float]:
    """Print them, and return logs of measured over predicted dense times of whole networks."""
    logs = []
    print(f"\n{'published':34}{'predicted':>10} {'range':>14} {'published':>10} {'off by':>9}   dense ms")

    def line(name: str, found: NetworkEstimate, ratio: float, dense_ms: float | None, clock: float = 1.0) -> None:
        value = found.speedup.scaled(clock)
        inside = "" if value.low <= ratio <= value.high else "  outside the range"
        measured = "" if dense_ms is None else f" ({dense_ms:.2f} published)"
        if dense_ms is not None and len(found.layers) > 1:
            logs.append(math.log(dense_ms / found.dense_ms.value))
        print(
            f"{name:34}{value.value:9.3f}x  [{value.low:.2f}, {value.high:.2f}] {ratio:9.2f}x"
            f" {100 * (value.value - ratio):+6.1f} points   {found.dense_ms.value:.2f}{measured}{inside}"
        )

    def run(make: Callable[[Path], Path], gpu: str, precision: str, **size) -> NetworkEstimate:
        with tempfile.TemporaryDirectory() as folder:
            return estimate_network(
                make(Path(folder) / "model.onnx"),
                find_gpu(gpu),
                precision,
                assume=NMPattern(2, 4),
                constants=constants,
                **size,
            )

    for precision, (dense_ms, sparse_ms) in UNET_END_TO_END_MS.items():
        found = run(networks.unet, "a100-pcie-40gb", precision, batch=32)
        ratio = dense_ms / sparse_ms
        line(f"UNet {precision} b32, kernels alone", found, ratio, dense_ms)
        line(f"UNet {precision} b32, with its clocks", found, ratio, dense_ms, found.clock_gain)
    for name, batch, tokens, ratio in BERT:
        found = run(networks.bert, "a100-sxm-80gb", "int8", shapes={"x": (batch, tokens, 1024)})
        line(f"BERT-Large int8 {name}", found, ratio, None)
    found = run(lambda path: networks.linear(path, 10240, 3072), "a100-sxm-80gb", "fp16", batch=3072)
    line("Linear 10240 -> 3072, M=3072 fp16", found, 1.38, 0.870)
    found = run(networks.resnet18, "a100-pcie-80gb", "fp16", batch=32)
    line("ResNet-18 fp16: 'usually <= 15 %'", found, 1.15, 0.862)
    # The recorded engine: INT8 behind its Q/DQ pairs, FP32 elsewhere.
    found = run(lambda path: networks.quantized(networks.resnet18(path)), "a100-pcie-80gb", "fp32", batch=32)
    line("ResNet-18 Q/DQ: 'usually <= 15 %'", found, 1.15, 0.546)
    return logs
