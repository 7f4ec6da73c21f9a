"""Speed and memory of `nm2trt verify`, each beside its yardstick in the same run.

    python benchmarks/verify.py [--runs 5] [--gigabytes 10] [--only process,count,memory]

process: the whole command on a ResNet-50 ONNX file (torchvision, random weights, every layer that can be is 2:4),
         against `polygraphy inspect sparsity` on the same file. Wall time and processor time (user + system), which
         a busy machine disturbs less. Goal: at least 100 times faster.
count:   the check alone on arrays in memory, against numpy.copyto of the same bytes. Goal: at least half its speed.
memory:  peak resident memory while a sharded checkpoint is checked, beyond that of checking a checkpoint of one small
         layer. The shards are sparse files, so that they cost no disk. Goal: below 500 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from nm2trt.pattern import NMPattern, mask
from nm2trt.verify.counting import count_groups

PATTERN = NMPattern(2, 4)
SHARD_BYTES = 2_000_000_000
WEIGHT_SHAPE = (8192, 8192)
BYTES_COUNTED = 1 << 26

EXPORT = """
import sys, torch, torchvision
from nm2trt.pattern import NMPattern, mask
torch.manual_seed(0)
net = torchvision.models.resnet50(weights=None).eval()
with torch.no_grad():
    for weight in net.parameters():
        if weight.ndim > 1 and weight.shape[1] % 4 == 0:
            weight *= torch.from_numpy(mask(weight.numpy(), NMPattern(2, 4), 1))
for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
    image = torch.zeros(1, 3, 224, 224, dtype=dtype)
    torch.onnx.export(net.to(dtype), (image,), f"{sys.argv[1]}/{name}.onnx", dynamo=True, external_data=False)
"""


def run(arguments: list[str]) -> tuple[float, float]:
    """Wall seconds and processor seconds of a child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    wall_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def process(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", EXPORT, folder], stdout=subprocess.DEVNULL, check=True)
        for name in ("fp32", "fp16"):
            file = f"{folder}/{name}.onnx"
            ours = [sys.executable, "-m", "nm2trt", "verify", file]
            theirs = [str(Path(sys.executable).with_name("polygraphy")), "inspect", "sparsity", file]
            run(ours)
            mine = [run(ours) for _ in range(runs)]
            their_wall_s, their_cpu_s = run(theirs)
            mine += [run(ours) for _ in range(runs)]
            for kind, their_s, index in (("wall", their_wall_s, 0), ("processor", their_cpu_s, 1)):
                times = sorted(sample[index] for sample in mine)
                middle = statistics.median(times)
                print(
                    f"ResNet-50 {name} {kind:9} polygraphy {their_s:7.2f} s   nm2trt {middle:6.3f} s "
                    f"({times[0]:.3f} to {times[-1]:.3f})   {their_s / middle:5.0f} times faster",
                    flush=True,
                )


def count(runs: int) -> None:
    rng = np.random.default_rng(0)
    for label, shape, axis in (
        ("linear [4096, 4096]", (4096, 4096), 1),
        ("conv [512, 512, 3, 3]", (512, 512, 3, 3), 1),
        ("matmul [K, N] [4096, 4096]", (4096, 4096), 0),
    ):
        weight = rng.standard_normal(shape).astype(np.float32)
        weight *= mask(weight, PATTERN, axis)
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            one = weight.astype(dtype)
            # More than any cache holds, so that both read from memory.
            arrays = [one.copy() for _ in range(max(1, BYTES_COUNTED // one.nbytes))]
            targets = [np.empty_like(array) for array in arrays]
            compare(f"{label:28} {np.dtype(dtype).name:9}", arrays, targets, axis, runs)


def compare(label: str, arrays: list[np.ndarray], targets: list[np.ndarray], axis: int, runs: int) -> None:
    def copy() -> None:
        for array, target in zip(arrays, targets, strict=True):
            np.copyto(target, array)

    def check() -> None:
        for array in arrays:
            assert count_groups(array, PATTERN, axis).violations == 0

    copy(), check()
    pairs = [(seconds(copy), seconds(check)) for _ in range(4 * runs)]
    ratios = sorted(copy_s / check_s for copy_s, check_s in pairs)
    gigabytes = sum(array.nbytes for array in arrays) / 1e9
    best_copy, best_judge = (min(times) for times in zip(*pairs, strict=True))
    print(
        f"{label} copyto {gigabytes / best_copy:5.1f} GB/s   check {gigabytes / best_judge:5.1f} GB/s   of copyto: "
        f"best {best_copy / best_judge:.2f}, median {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )


def seconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def memory(gigabytes: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name, "small"), Path(name, "large")
        write_checkpoint(small, 1_000_000, shape=(512, 512))
        write_checkpoint(large, int(gigabytes * 1e9))
        small_mb, _ = peak_mb(small)
        large_mb, wall_s = peak_mb(large)
        size_gb = sum(file.stat().st_size for file in large.glob("*.safetensors")) / 1e9
        shards = len(list(large.glob("*.safetensors")))
        print(
            f"{size_gb:.1f} GB in {shards} shards: peak {large_mb:.0f} MB, one small layer {small_mb:.0f} MB, "
            f"{large_mb - small_mb:.0f} MB beyond; {wall_s:.1f} s, {size_gb / wall_s:.2f} GB/s"
        )


def peak_mb(folder: Path) -> tuple[float, float]:
    # VmHWM and not ru_maxrss: the latter starts from the parent's.
    code = "import sys; from nm2trt.cli.main import run; run(sys.argv[1:]); "
    code += "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", code, "verify", str(folder)], capture_output=True, text=True, check=True
    )
    return int(result.stdout.split()[-2]) * 1024 / 1e6, time.perf_counter() - started


def write_checkpoint(folder: Path, size_bytes: int, shape: tuple[int, int] = WEIGHT_SHAPE) -> None:
    """An index and shards of bf16 weights, all zero, whose bytes the file system does not store."""
    folder.mkdir()
    layer_bytes = 2 * shape[0] * shape[1]
    layers = max(1, size_bytes // layer_bytes)
    per_shard = max(1, min(layers, SHARD_BYTES // layer_bytes))
    weight_map = {}
    for first in range(0, layers, per_shard):
        names = [f"layers.{index}.weight" for index in range(first, min(first + per_shard, layers))]
        file = f"model-{first:05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        header = json.dumps(
            {
                name: {"dtype": "BF16", "shape": shape, "data_offsets": [at * layer_bytes, (at + 1) * layer_bytes]}
                for at, name in enumerate(names)
            }
        ).encode()
        with (folder / file).open("wb") as shard:
            shard.write(len(header).to_bytes(8, "little") + header)
            shard.truncate(8 + len(header) + layer_bytes * len(names))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--only", default="process,count,memory")
    arguments = parser.parse_args()
    # One thread everywhere: no yardstick may profit from more.
    os.environ["OMP_NUM_THREADS"] = "1"
    if "count" in arguments.only:
        count(arguments.runs)
    if "memory" in arguments.only:
        memory(arguments.gigabytes)
    if "process" in arguments.only:
        process(arguments.runs)


if __name__ == "__main__":
    main()
