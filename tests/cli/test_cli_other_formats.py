"""Every command that opens networks says of a file in another format what it is."""

import zipfile

import numpy as np
import pytest
from helpers import assert_one_error_line, nm2trt


@pytest.mark.parametrize("command", ["verify", "prune", "export", "calibrate"])
def test_one_line_and_the_way_on(command, tmp_path):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "{}")
    np.savez(tmp_path / "s.npz", x=np.zeros((2, 4), np.float32))
    more = {
        "verify": [],
        "prune": ["-o", tmp_path / "o.keras"],
        "export": ["-o", tmp_path / "build"],
        "calibrate": ["--data", tmp_path / "s.npz", "-o", tmp_path / "o.onnx"],
    }
    result = nm2trt(command, tmp_path / "m.keras", *more[command])
    assert_one_error_line(result, 3, "is a Keras archive")
    assert "keras.models.load_model(" in result.stderr


@pytest.mark.parametrize("command", ["verify", "prune", "export"])
def test_folders(command, tmp_path):
    folder = tmp_path / "dcp"
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(b"x")
    more = [] if command == "verify" else ["-o", tmp_path / "out"]
    assert_one_error_line(nm2trt(command, folder, *more), 3, "dcp_to_torch")
