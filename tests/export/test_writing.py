"""Files on disk: external data above a threshold, and nothing left when the disk fills."""

import errno
import os

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import write_gemm

from nm2trt.errors import InputError
from nm2trt.export import check_onnx, export_source, write_onnx
from nm2trt.verify import verify_path


@pytest.fixture
def network(tmp_path):
    write_gemm(tmp_path / "m.onnx", scale=1.0, initializers={"big": np.ones((64, 64), np.float32)})
    return export_source(tmp_path / "m.onnx", precision="fp16")


@pytest.mark.parametrize(("options", "files"), [({}, 1), ({"external": True}, 2), ({"external_above_bytes": 100}, 2)])
def test_weights_lie_beside_the_model_above_a_threshold(network, tmp_path, options, files):
    (tmp_path / "out").mkdir()
    written = write_onnx(network.model, tmp_path / "out" / "model.onnx", **options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)
    assert len(written) == files
    check_onnx(tmp_path / "out" / "model.onnx")
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert np.array_equal(tensors["big"], np.ones((64, 64)))
    assert verify_path(tmp_path / "out" / "model.onnx").layers[0].name == "w"


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_leaves_nothing(network, tmp_path, monkeypatch, external):
    (tmp_path / "out").mkdir()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_onnx(network.model, tmp_path / "out" / "model.onnx", external=external)
    assert caught.value.errno == errno.ENOSPC
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_breaks_the_standard_is_one_line(tmp_path):
    write_gemm(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.node[0].input[1] = "ghost"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="ghost") as caught:
        check_onnx(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
