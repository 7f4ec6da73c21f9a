"""Peak memory and time of reading a long log: `nm2trt inspect --log` and `nm2trt profile DENSE.log SPARSE.log`.

    python benchmarks/evidence_memory.py [--megabytes 200] [--limit 150]

Writes two made-up verbose build logs, each with so many megabytes of tactics that were timed, reads them with both
commands, each in a process of its own, and prints what the operating system counted. Exit code 1 if one took more
than the limit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS = 60
HEAD = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v101401] [b48] # trtexec --onnx=net.onnx --fp16 --sparsity=enable --verbose
[09/26/2026-10:00:00] [I] Precision: FP32+FP16
[09/26/2026-10:00:00] [I] Input inference shape : x=32x3x224x224
[09/26/2026-10:00:00] [I] Data transfers: Disabled
[09/26/2026-10:00:00] [I] Spin-wait: Enabled
[09/26/2026-10:00:00] [I] CUDA Graph: Enabled
[09/26/2026-10:00:00] [I] Selected Device: NVIDIA A100 80GB PCIe
"""


def write_log(path: Path, megabytes: float, *, median_ms: float) -> None:
    stamp = "[09/26/2026-10:00:01] [V] [TRT]"
    names = [f"/layer{index}/Conv + /layer{index}/Relu" for index in range(LAYERS)]
    with path.open("w") as file:
        file.write(HEAD)
        written, number = 0, 0
        while written < megabytes * 1e6:
            name = names[number % LAYERS]
            kernel = f"sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize{number % 97}x64x32"
            tactic = 0x9E3779B97F4A7C15 * number & (1 << 64) - 1
            block = (
                f"{stamp} --------------- Timing Runner: {name} (CaskConvolution[0x80000009])\n"
                f"{stamp} {name} Set Tactic Name: {kernel} Tactic: 0x{tactic:016x}\n"
                f"{stamp} Tactic: 0x{tactic:016x} Time: {0.01 + number % 100 / 1000:.6f}\n"
            )
            file.write(block)
            written += len(block)
            number += 1
        listed = ", ".join(names)
        file.write(
            f"{stamp} (Sparsity) Found {LAYERS} layer(s) eligible to use sparse tactics: {listed}\n"
            f"{stamp} (Sparsity) Chose {LAYERS // 2} layer(s) using sparse tactics: {', '.join(names[::2])}\n"
            f"[09/26/2026-10:09:00] [I] Throughput: {1000 / median_ms:.1f} qps\n"
            f"[09/26/2026-10:09:00] [I] GPU Compute Time: min = {median_ms} ms, max = {2 * median_ms} ms, "
            f"mean = {median_ms} ms, median = {median_ms} ms, percentile(90%) = {median_ms} ms, "
            f"percentile(99%) = {median_ms} ms\n"
        )


def measure(command: list[str]) -> tuple[float, float, str]:
    """Peak resident memory in MB, seconds, and what was printed."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}:\n{text[-2000:]}")
    return usage.ru_maxrss / 1024, seconds, text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--limit", type=float, default=150, help="MB that no command may exceed")
    arguments = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        logs = [folder / "dense.log", folder / "sparse.log"]
        for log, median_ms in zip(logs, (2.0, 1.6), strict=True):
            write_log(log, arguments.megabytes, median_ms=median_ms)
        tool = [sys.executable, "-m", "nm2trt"]
        for title, command, wanted in (
            ("inspect", [*tool, "inspect", "--log", str(logs[1])], f"{LAYERS // 2} run a sparse kernel"),
            ("profile", [*tool, "profile", *map(str, logs), "-o", str(folder / "report")], "1.25x"),
        ):
            megabytes, seconds, text = measure(command)
            if wanted not in text:
                raise SystemExit(f"{title} did not say {wanted!r}:\n{text[-2000:]}")
            worst = max(worst, megabytes)
            size = arguments.megabytes * (2 if title == "profile" else 1)
            print(f"{title}: {size:.0f} MB of log, {megabytes:.0f} MB of memory, {seconds:.1f} s")
    return 1 if worst > arguments.limit else 0


if __name__ == "__main__":
    sys.exit(main())
