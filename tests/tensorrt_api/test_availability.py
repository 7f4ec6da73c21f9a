"""What is missing is named as what it is: the package, the driver, its age, or the GPU."""

import sys
import types

import pytest
import torch

from nm2trt.errors import InputError, MachineError
from nm2trt.tensorrt_api import distribution_version, explain_missing, explain_missing_gpu
from nm2trt.tensorrt_api.logger import LogKeeper, require

OLD = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver"
NONE = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"


@pytest.fixture
def cuda(monkeypatch):
    """torch with a CUDA build whose initialization raises what the test says."""

    def refuse(words):
        def init():
            if words:
                raise RuntimeError(words)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "init", init)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return refuse


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (OLD, "old-driver", "supports CUDA 12.2, and torch was built for CUDA 13.0"),
        (NONE, "no-driver", "there is no NVIDIA driver"),
        ("No CUDA GPUs are available", "no-device", "no NVIDIA GPU is visible"),
        ("CUDA unknown error - this may be due to an incorrectly set up environment", "other", "CUDA unknown error"),
        ("", "no-device", "no NVIDIA GPU is visible"),
    ],
)
def test_torchs_words_are_understood(cuda, words, code, said):
    cuda(words)
    missing = explain_missing_gpu()
    assert missing.code == code
    assert said in missing.what
    assert missing.hint


def test_hidden_gpus_are_not_missing_ones(cuda, monkeypatch):
    cuda("No CUDA GPUs are available")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert explain_missing_gpu().code == "hidden"


def test_a_torch_without_cuda_is_named(cuda, monkeypatch):
    cuda(NONE)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert explain_missing_gpu().code == "no-cuda-build"


def test_the_module_counts_and_not_the_distribution(cuda, monkeypatch, tmp_path):
    # As tensorrt_cu12 has it: a module `tensorrt`, and no distribution of that name.
    cuda("")
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.9.0'")
    info = tmp_path / "tensorrt_cu12-10.9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_cu12\nVersion: 10.9.0.34\n")
    (info / "top_level.txt").write_text("tensorrt\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [one.code for one in explain_missing("tensorrt")] == ["no-device"]
    assert distribution_version("tensorrt") == "10.9.0.34"


def test_none_becomes_the_last_error():
    log = LogKeeper("ERROR")
    log.take("ERROR", "first")
    log.take("ERROR", "out of\nmemory")
    log.take("WARNING", "not it")
    with pytest.raises(MachineError, match="no context: out of memory"):
        require(None, "no context", log)
    with pytest.raises(InputError, match="plan: no engine: out of memory; build it again"):
        require(None, "no engine", log, error=InputError, where="plan", hint="build it again")
    assert require(0, "no number", log) == 0


def test_messages_go_to_stderr_by_severity(capsys):
    log = LogKeeper("WARNING")
    for severity in ("VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR"):
        log.take(severity, severity.lower())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["[W] warning", "[E] error", "[F] internal_error"]


def test_a_module_that_does_not_load_is_one_line(monkeypatch):
    from nm2trt.tensorrt_api import load_tensorrt

    old = types.ModuleType("tensorrt")
    old.__version__ = "8.6.1"
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(MachineError, match=r"version 8\.6\.1 is too old.*10\.0 or newer"):
        load_tensorrt("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MachineError, match="cannot be imported"):
        load_tensorrt("tensorrt")
