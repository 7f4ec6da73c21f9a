"""What the worker does with timing caches, held against RTX's library, whose calls are TensorRT's."""

import subprocess
import sys

import pytest
from helpers import requires
from run_folders import DIGITS, random_network

from nm2trt.engine import worker
from nm2trt.engine.job import EngineJob
from nm2trt.export import onnx_bytes, onnx_from_module

# Polygraphy settles on a library when it is imported, so this takes a process of its own.
SCRIPT = """
import os, sys
os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
from pathlib import Path
from polygraphy.backend.tensorrt_rtx.config import CreateConfigRTX
from polygraphy.backend.trt import NetworkFromOnnxPath
from nm2trt.engine import worker
from nm2trt.engine.job import EngineJob
folder = Path(sys.argv[1])
job = EngineJob(backend="tensorrt", onnx=folder / "m.onnx", folder=folder, arm="sparse", sm=None, profile={},
                timing_cache=folder / "t.cache")
builder, network, parser = NetworkFromOnnxPath(str(job.onnx))()
def config(known):
    load = None if known is None else worker._Bytes(known)
    return CreateConfigRTX(compute_capabilities=[(8, 0)], load_timing_cache=load)(builder, network)
assert worker._known_timings(job) is None
print(worker._keep_timings(job, config(None), None))
known = worker._known_timings(job)
assert known == (folder / "t.cache").read_bytes() and known
print(worker._keep_timings(job, config(known), known))
"""


@requires(rtx=True)
def test_a_cache_is_started_then_read_and_written_whole(tmp_path):
    model = onnx_from_module(random_network("mlp"), DIGITS, precision="fp16")
    (tmp_path / "m.onnx").write_bytes(onnx_bytes(model))
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stdout.splitlines() if line.startswith("t.cache")]
    assert said == ["t.cache started", "t.cache read and extended"]
    # No lock file, no half.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "t.cache"]


class Refused:
    def get_timing_cache(self):
        return None


@pytest.mark.parametrize(
    ("backend", "cache", "words"),
    [
        ("tensorrt-rtx", "t.cache", "not used: TensorRT-RTX"),
        ("tensorrt", None, "none"),
        ("tensorrt", "t.cache", "t.cache not used: TensorRT refused it"),
    ],
)
def test_it_is_said_when_no_cache_was_used(tmp_path, backend, cache, words):
    path = tmp_path / cache if cache else None
    if path is not None:
        path.write_bytes(b"another version's")
    job = EngineJob(
        backend=backend, onnx=tmp_path / "m.onnx", folder=tmp_path, arm="sparse", sm=None, profile={}, timing_cache=path
    )
    assert worker._keep_timings(job, Refused(), b"").startswith(words)
    assert worker._known_timings(job) == (b"another version's" if backend == "tensorrt" and cache else None)
    if path is not None:
        assert path.read_bytes() == b"another version's"
