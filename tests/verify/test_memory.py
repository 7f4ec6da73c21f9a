"""Memory stays that of a piece, whatever the size of the checkpoint or of one tensor."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

MEGABYTE = 1_000_000


def peak_mb(path):
    """Highest resident memory of a process that checks `path` (VmHWM: ru_maxrss starts from the parent's)."""
    code = (
        "import sys; from nm2trt.cli.main import run; assert run(['verify', sys.argv[1]]) == 0; "
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-2]) * 1024 / MEGABYTE


def sparse_file(path, head, size):
    """A file whose zeros cost no disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)


def shard(path, shapes):
    header, start = {}, 0
    for name, shape in shapes.items():
        stop = start + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
        start = stop
    raw = json.dumps(header).encode()
    sparse_file(path, len(raw).to_bytes(8, "little") + raw, start)


def external(folder, op, shape):
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    graph = helper.make_graph([helper.make_node(op, ["x", "w"], ["y"])], "g", [], [], [weight])
    onnx.save(helper.make_model(graph), folder / "m.onnx")
    sparse_file(folder / "w.bin", b"", 4 * int(np.prod(shape)))
    return folder / "m.onnx"


@pytest.fixture(scope="module")
def small_mb(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    shard(folder / "model.safetensors", {"fc.weight": [64, 64]})
    return peak_mb(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="missing: Linux's /proc")
class TestPeak:
    def test_one_large_tensor(self, small_mb, tmp_path):
        shard(tmp_path / "model.safetensors", {"fc.weight": [8192, 16384]})
        assert peak_mb(tmp_path) < small_mb + 100

    def test_many_shards(self, small_mb, tmp_path):
        weight_map = {}
        for index in range(4):
            names = [f"l{index}.{i}.weight" for i in range(8)]
            shard(tmp_path / f"{index}.safetensors", {name: [2048, 2048] for name in names})
            weight_map |= dict.fromkeys(names, f"{index}.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert peak_mb(tmp_path) < small_mb + 100

    @pytest.mark.parametrize(("op", "shape"), [("MatMul", (8192, 16384)), ("Conv", (4096, 4096, 3, 3))])
    def test_external_data(self, op, shape, small_mb, tmp_path):
        # What onnx itself imports is no more than the margin.
        assert peak_mb(external(tmp_path, op, shape)) < small_mb + 100
