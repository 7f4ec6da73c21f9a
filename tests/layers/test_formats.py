"""Files and folders of other formats: recognized by what they hold, in one line with the way on."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nm2trt.artifacts.formats import foreign_file, foreign_folder
from nm2trt.errors import InputError
from nm2trt.layers import open_source


def zipped(*names):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return raw.getvalue()


def tarred():
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model_weights.ckpt"))
    return raw.getvalue()


FILES = {
    "m.gguf": (b"GGUF\x03\0\0\0", "GGUF", "Hugging Face"),
    "m.h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5", "ONNX"),
    "m.keras": (zipped("metadata.json", "config.json", "model.weights.h5"), "Keras", "export"),
    "m.tflite": (b"\x1c\0\0\0TFL3" + bytes(64), "LiteRT", "ONNX"),
    "m.pte": (b"\x1c\0\0\0ET12" + bytes(64), "ExecuTorch", "ONNX"),
    "m.ort": (b"\x1c\0\0\0ORTM" + bytes(64), "ONNX Runtime", ".onnx"),
    "m.engine": (b"ftrt" + bytes(64), "TensorRT engine", "inspect"),
    "m.plan": (b"ftrt" + bytes(64), "TensorRT engine", "inspect"),
    "m.xml": (b'<?xml version="1.0"?>\n<net name="m" version="11">', "OpenVINO", "ONNX"),
    "m.pkl": (b"\x80\x04}\x94.", "pickle", "state_dict"),
    "m.pt": (b"\x80\x02}q\x00.", "pickle", "state_dict"),
    "m.npy": (b"\x93NUMPY\x01\0", "numpy", "npz"),
    "model.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
    "model.onnx": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
    "down.bin": (b"\n<!DOCTYPE html><html>", "HTML", "download"),
    "flax_model.msgpack": (b"\x82\xa6params", "Flax", "safetensors"),
    "m.nemo": (tarred(), "archive", "unpack"),
    "m.pt.gz": (b"\x1f\x8b\x08" + bytes(64), "archive", "unpack"),
    "m.caffemodel": (b"\n\x09GoogLeNet" + bytes(64), "Caffe", "ONNX"),
    "m.params": (b"\x12\x01" + bytes(64), "MXNet", "ONNX"),
    "m.pdparams": (b"\x80\x04\x95" + bytes(64), "Paddle", "paddle2onnx"),
    "frozen.pb": (b"\x0a\x05input", "TensorFlow", "tf2onnx"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path):
    raw, what, hint = FILES[name]
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(InputError) as caught:
        open_source(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: is ")
    assert what in line
    assert hint in line.partition(what)[2]
    assert "\n" not in line
    assert caught.value.exit_code == 3


def test_programs_and_scripts_that_torch_writes(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    torch.export.save(torch.export.export(network, (torch.randn(1, 4),)), tmp_path / "m.pt2")
    torch.jit.save(torch.jit.trace(network, torch.randn(1, 4)), tmp_path / "script.pt")
    for name, words in (("m.pt2", "torch.export.load"), ("script.pt", "torch.jit.load")):
        with pytest.raises(InputError, match=words):
            open_source(tmp_path / name)


FOLDERS = {
    "dcp": (("__0_0.distcp", ".metadata"), "dcp_to_torch"),
    "deepspeed": (("zero_to_fp32.py", "latest", "global_step5/mp_rank_00_model_states.pt"), "zero_to_fp32.py"),
    "peft": (("adapter_config.json", "adapter_model.safetensors"), "merge_and_unload"),
    "orbax": (("_CHECKPOINT_METADATA", "manifest.ocdbt", "d/x"), "orbax"),
    "saved_model": (("saved_model.pb", "variables/variables.index"), "tf2onnx"),
    "tf": (("checkpoint", "model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001"), "tf2onnx"),
    "megatron": (("latest_checkpointed_iteration.txt",), "Hugging Face"),
    "diffusers": (("model_index.json", "unet/config.json"), "unet"),
    "trtllm": (("config.json", "rank0.engine"), "inspect"),
    "gguf": (("model-Q4.gguf",), "Hugging Face"),
    "fsdp": (("pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata"), "FOLDER being the folder"),
    "coreml": (("Manifest.json", "Data/com.apple.CoreML/model.mlmodel"), "ONNX"),
    "compiled coreml": (("coremldata.bin", "model.mil"), "ONNX"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders(kind, tmp_path):
    names, hint = FOLDERS[kind]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=hint) as caught:
        open_source(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: is ")


def test_a_model_of_tensorflow_js(tmp_path):
    (tmp_path / "model.json").write_text('{"format": "graph-model"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"is a TensorFlow\.js model"):
        open_source(tmp_path)


def test_a_real_dcp_folder(tmp_path):
    import torch.distributed.checkpoint as dcp

    dcp.save({"fc.weight": torch.zeros(4, 4)}, checkpoint_id=tmp_path / "dcp")
    with pytest.raises(InputError, match="dcp_to_torch"):
        open_source(tmp_path / "dcp")


@pytest.mark.parametrize(
    "names", [("base.q.lora_A.weight", "base.q.lora_B.weight"), ("lora_unet_q.lora_up.weight", "lora_unet_q.alpha")]
)
def test_an_adapter_is_no_network(names, tmp_path):
    save_file({name: np.zeros((4, 4), np.float32) for name in names}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="adapter"):
        open_source(tmp_path / "a.safetensors")


def test_a_folder_of_unusual_names_lists_its_files(tmp_path):
    for name in ("a.safetensors", "b.pt", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.safetensors, b\.pt; pass one of the files"):
        open_source(tmp_path)


def test_a_folder_of_folders_names_them(tmp_path):
    (tmp_path / "0_Transformer").mkdir()
    (tmp_path / "0_Transformer" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="pass a folder inside it: 0_Transformer"):
        open_source(tmp_path)


def test_files_that_are_read_are_not_foreign(tmp_path):
    save_file({"fc.weight": np.zeros((4, 4), np.float32)}, tmp_path / "m.safetensors")
    np.savez(tmp_path / "m.npz", w=np.zeros((4, 4)))
    torch.save({"fc.weight": torch.zeros(4, 4)}, tmp_path / "new.pt")
    torch.save({"w": torch.zeros(4, 4)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"w": torch.zeros(4, 4)}, tmp_path / "old4.pt", _use_new_zipfile_serialization=False, pickle_protocol=4)
    for path in tmp_path.iterdir():
        assert foreign_file(path) is None, path.name
    assert foreign_folder(tmp_path) is None


@given(head=st.binary(max_size=64), suffix=st.sampled_from(["", ".pt", ".bin", ".onnx", ".npz", ".safetensors"]))
@examples(200)
def test_any_bytes_are_refused_in_one_line(tmp_path_factory, head, suffix):
    path = tmp_path_factory.mktemp("bytes") / f"m{suffix}"
    path.write_bytes(head)
    with pytest.raises(InputError) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
