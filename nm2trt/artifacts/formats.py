"""Files and folders of other formats, known by what they hold: what each is, and the way from there to one we read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_HEAD_BYTES = 512


@dataclass(frozen=True, slots=True)
class ForeignFormat:
    """A format that is recognized but not read."""

    what: str
    """As "is ...": a phrase with an article."""
    hint: str
    """The way on."""


_ONNX_HINT = "export the model to ONNX and pass that"

GGUF = ForeignFormat(
    "a GGUF file of llama.cpp, whose weights are packed for it", "pass the Hugging Face folder that it was made from"
)
HDF5 = ForeignFormat("an HDF5 file (Keras weights, or data)", f"load it in Keras, {_ONNX_HINT} (model.export, tf2onnx)")
KERAS = ForeignFormat(
    "a Keras archive", "keras.models.load_model('PATH').export('OUT.onnx', format='onnx') writes ONNX"
)
PT2 = ForeignFormat(
    "an exported program of torch.export (.pt2)",
    "torch.save(torch.export.load('PATH').state_dict, 'OUT.pt'), or torch.onnx.export it",
)
AOT_PACKAGE = ForeignFormat("a compiled package of AOTInductor (.pt2)", "pass the checkpoint that it was compiled from")
TORCHSCRIPT = ForeignFormat("a TorchScript archive", "torch.save(torch.jit.load('PATH').state_dict(), 'OUT.pt')")
LITE = ForeignFormat("a LiteRT (TensorFlow Lite) file", "pass the network that it was converted from, as ONNX")
EXECUTORCH = ForeignFormat("an ExecuTorch program", "pass the network that it was lowered from, as ONNX")
ORT_FORMAT = ForeignFormat("a file in ONNX Runtime's own .ort format", "pass the .onnx file that it was made from")
ENGINE = ForeignFormat(
    "a serialized TensorRT engine, whose weights are compiled in",
    "nm2trt inspect reads a build folder; verify the ONNX file that it was built from",
)
OPENVINO = ForeignFormat(
    "a file of an OpenVINO IR (.xml and .bin)", "pass the ONNX or torch file that it was made from"
)
PICKLE = ForeignFormat(
    "a Python pickle and no file of torch.save; a pickle can run code, so it is not opened",
    "save the network's state_dict with torch.save or as safetensors",
)
NUMPY = ForeignFormat(
    "a single array of numpy (.npy)", "numpy.savez('OUT.npz', **{'layer.weight': numpy.load('PATH')})"
)
LFS = ForeignFormat("a pointer of Git LFS and not the file itself", "fetch it: git lfs pull")
HTML = ForeignFormat("an HTML page, as a failed download leaves it", "download the file again")
MSGPACK = ForeignFormat(
    "a Flax msgpack file",
    "flax.serialization.msgpack_restore, then save it as safetensors (safetensors.flax.save_file)",
)
COREML = ForeignFormat("a Core ML model", "pass the network that it was converted from, as ONNX")
TENSORFLOW = ForeignFormat(
    "a TensorFlow graph or SavedModel", "python -m tf2onnx.convert --saved-model PATH --output OUT.onnx"
)
TF_CHECKPOINT = ForeignFormat(
    "a TensorFlow checkpoint", "restore it, write a SavedModel, and convert that with tf2onnx"
)
ARCHIVE = ForeignFormat("a packed archive", "unpack it, and pass the checkpoint inside")
DARKNET = ForeignFormat("a file of Darknet weights", "convert the network to ONNX or torch")
PADDLE = ForeignFormat("a Paddle model", "paddle2onnx converts it to ONNX")
DCP = ForeignFormat(
    "a folder of torch.distributed.checkpoint (DCP)",
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch PATH OUT.pt, then pass OUT.pt",
)
DCP_INSIDE = ForeignFormat(
    "a folder around one of torch.distributed.checkpoint (DCP), as FSDP writes it",
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER OUT.pt, FOLDER being the folder of the "
    ".distcp files, then pass OUT.pt",
)
OTHER_RUNTIME = ForeignFormat(
    "a model of another runtime (Caffe, MXNet, ncnn, MNN, RKNN, Torch7)",
    "pass the network that it was converted from, or convert it to ONNX with that runtime's own tools",
)
TFJS = ForeignFormat("a TensorFlow.js model", "pass the network that it was converted from, as ONNX")
DEEPSPEED = ForeignFormat(
    "a DeepSpeed checkpoint, whose weights are spread over ranks",
    "its zero_to_fp32.py joins them: python zero_to_fp32.py PATH OUT, then pass OUT",
)
PEFT = ForeignFormat(
    "a PEFT adapter: low-rank factors that are added to another model's weights",
    "merge it: PeftModel.from_pretrained(BASE, 'PATH').merge_and_unload().save_pretrained('OUT'), then pass OUT",
)
ORBAX = ForeignFormat(
    "an Orbax checkpoint of JAX", "restore it with orbax.checkpoint, and save its arrays as safetensors"
)
MEGATRON = ForeignFormat(
    "a Megatron checkpoint, spread over ranks", "convert it to Hugging Face's format, and pass that"
)
DIFFUSERS = ForeignFormat(
    "a Diffusers pipeline of several networks", "pass one of its folders (unet, transformer, vae)"
)

_MAGIC: tuple[tuple[int, bytes, ForeignFormat], ...] = (
    (0, b"GGUF", GGUF),
    *((0, magic, GGUF) for magic in (b"lmgg", b"fmgg", b"tjgg")),
    (0, b"\x89HDF\r\n\x1a\n", HDF5),
    (4, b"TFL3", LITE),
    (4, b"ET12", EXECUTORCH),
    (4, b"ORTM", ORT_FORMAT),
    *((0, magic, ENGINE) for magic in (b"ftrt", b"ptrt")),
    (0, b"\x93NUMPY", NUMPY),
    (0, b"version https://git-lfs", LFS),
    (257, b"ustar", ARCHIVE),
    *(
        (0, magic, ARCHIVE)
        for magic in (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"7z\xbc\xaf", b"BZh9", b"Rar!")
    ),
)
_SUFFIXES = {
    ".msgpack": MSGPACK,
    ".mlmodel": COREML,
    ".pb": TENSORFLOW,
    ".weights": DARKNET,
    ".pdmodel": PADDLE,
    ".pdiparams": PADDLE,
    ".pdparams": PADDLE,
    **dict.fromkeys((".caffemodel", ".params", ".param", ".mnn", ".rknn", ".t7"), OTHER_RUNTIME),
    ".engine": ENGINE,
    ".plan": ENGINE,
    ".trt": ENGINE,
}
"""For formats that have no mark of their own; asked last."""
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""Files of torch.save before 1.6 begin with a pickle of torch's magic number."""


def foreign_file(path: Path) -> ForeignFormat | None:
    """Recognize a file that no reader takes; None where it is not known."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for offset, magic, found in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return found
    if head[:4] == b"PK\x03\x04":
        return _foreign_zip(path)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return HTML
    if text.startswith((b"<?xml", b"<net ")) and (b"<net " in text or path.with_suffix(".bin").is_file()):
        return OPENVINO
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and _TORCH_MAGIC not in head[:32]:
        # A bare pickle of a state dict is what torch.load takes, too, but only from torch.save's older files.
        return PADDLE if path.suffix.lower() == ".pdparams" else PICKLE
    if path.suffix.lower() == ".bin" and _is_openvino(path.with_suffix(".xml")):
        return OPENVINO
    return _SUFFIXES.get(path.suffix.lower())


def _foreign_zip(path: Path) -> ForeignFormat | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, NotImplementedError):
        return None
    inside = {name.partition("/")[2] for name in names if "/" in name}
    if {"metadata.json", "config.json"} <= set(names) and any(name.endswith(".weights.h5") for name in names):
        return KERAS
    if "archive_format" in inside or any("serialized_exported_program" in name for name in names):
        compiled = any("aotinductor" in name for name in names)
        return AOT_PACKAGE if compiled and not any(name.startswith("models/") for name in inside) else PT2
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return TORCHSCRIPT
    if "data.pkl" in inside or any(name.endswith(".npy") for name in names):
        return None
    return ARCHIVE


def _is_openvino(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"<net " in file.read(_HEAD_BYTES)
    except OSError:
        return False


def _any(*patterns: str) -> Callable[[Path], bool]:
    return lambda folder: any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _is_tfjs(folder: Path) -> bool:
    try:
        with (folder / "model.json").open("rb") as file:
            return b"-model" in file.read(_HEAD_BYTES)
    except OSError:
        return False


_FOLDERS: tuple[tuple[Callable[[Path], bool], ForeignFormat], ...] = (
    (_any("*.distcp", "__0_0.distcp"), DCP),
    (_any("zero_to_fp32.py", "*zero_pp_rank_*", "global_step*/*optim_states.pt", "*model_states.pt"), DEEPSPEED),
    (_any("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"), PEFT),
    (_any("manifest.ocdbt", "_CHECKPOINT_METADATA", "*/manifest.ocdbt", "_METADATA"), ORBAX),
    (_any("*/*.distcp"), DCP_INSIDE),
    (_any("saved_model.pb", "saved_model.pbtxt"), TENSORFLOW),
    (_any("*.data-00000-of-*"), TF_CHECKPOINT),
    (_any("latest_checkpointed_iteration.txt", "mp_rank_00*"), MEGATRON),
    (_any("model_index.json"), DIFFUSERS),
    (_any("rank0.engine", "*.engine", "*.plan"), ENGINE),
    (_any("Data/com.apple.CoreML", "coremldata.bin", "Data/*/*.mlmodel"), COREML),
    (_is_tfjs, TFJS),
    (_any("*.gguf"), GGUF),
    (_any("flax_model.msgpack"), MSGPACK),
    (_any("*.h5"), HDF5),
    (_any("*.pdiparams"), PADDLE),
)
"""In this order: a DeepSpeed folder may hold adapters, too."""


def foreign_folder(path: Path) -> ForeignFormat | None:
    """Recognize a folder that holds a checkpoint in another format; None where it is not known."""
    found = next((known for test, known in _FOLDERS if test(path)), None)
    if found is None and any(_is_openvino(file) for file in path.glob("*.xml")):
        return OPENVINO
    return found


def is_adapter(names: Iterable[str]) -> bool:
    """Whether all tensors of two and more dimensions are the factors of a low-rank adapter."""
    marks = (".lora_", "lora_up.", "lora_down.", "lora_A", "lora_B", ".lokr_", ".hada_")
    found = False
    for name in names:
        if not name.endswith(".alpha"):
            found = any(mark in name for mark in marks)
            if not found:
                return False
    return found
