"""Options for ONNX Runtime's TensorRT execution provider: the same network, for those who deploy through it.

ONNX Runtime builds its own engines from model.onnx, on the machine that serves; these options let it do so as nm2trt
does. Source: onnxruntime, include/onnxruntime/core/providers/tensorrt/tensorrt_provider_options.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from nm2trt.artifacts import Document, sha256_of
from nm2trt.artifacts.package import network_digest
from nm2trt.onnx_tools.lazy_file import read_model

CACHE = "ort-cache"
"""Of timings, which are of layers' shapes and may be shared; engines have a folder for each network, beside it."""
_PROVIDER = "TensorrtExecutionProvider"
_BY_TYPE = {"FLOAT16": "trt_fp16_enable", "BFLOAT16": "trt_bf16_enable", "INT8": "trt_int8_enable"}


class OrtSessionDocument(Document):
    """ort-tensorrt.json: `InferenceSession(BUILD / model, providers=[tuple(one) for one in providers])`."""

    SCHEMA: ClassVar[str] = "nm2trt.ort-tensorrt/1"
    FILE: ClassVar[str] = "ort-tensorrt.json"

    model: str
    providers: list[tuple[str, dict[str, str]]]
    """In the order in which ONNX Runtime tries them. Cache paths are relative to the process's working folder."""
    no_profile: str = ""
    """Why no shapes are given, in words; empty where they are, or where the graph's are fixed."""
    note: str = (
        "trt_sparsity_enable lets TensorRT choose sparse kernels and proves nothing; with trt_detailed_build_log and "
        "verbose logging, the (Sparsity) lines tell: nm2trt inspect --log"
    )


def ort_session(
    onnx: Path,
    profile: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]],
    *,
    workspace: int | None,
) -> OrtSessionDocument:
    """Write down the provider's options for one network.

    Args:
        onnx: The network; the types of its weights settle which precisions are switched on.
        profile: Input name -> smallest, optimal and largest shape.
        workspace: Most bytes of scratch memory; None leaves ONNX Runtime's own.

    Raises:
        InputError: The file is no ONNX.
    """
    options = {
        "trt_sparsity_enable": "1",
        "trt_engine_cache_enable": "1",
        # ONNX Runtime's own key is of the graph's names: builds of other weights must not share a folder.
        "trt_engine_cache_path": _engine_cache(onnx),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": CACHE,
        "trt_detailed_build_log": "1",
    }
    options |= dict.fromkeys(sorted(_precisions(onnx)), "1")
    if workspace is not None:
        options["trt_max_workspace_size"] = str(workspace)
    unreadable = [name for name in profile if set(name) & {":", ","}]
    no_profile = ""
    if unreadable:
        no_profile = (
            f"ONNX Runtime takes the list of shapes apart at ':' and ',', which the name {unreadable[0]!r} holds: it "
            "builds an engine for the shapes that come first and again for larger ones; rename the input for a profile"
        )
    elif profile:
        for index, kind in enumerate(("min", "opt", "max")):
            options[f"trt_profile_{kind}_shapes"] = ",".join(
                f"{name}:{'x'.join(map(str, shapes[index]))}" for name, shapes in profile.items()
            )
    return OrtSessionDocument(
        model=onnx.name,
        providers=[(_PROVIDER, options), ("CUDAExecutionProvider", {})],
        no_profile=no_profile,
    )


def renew_engine_cache(folder: Path) -> None:
    """Give a build whose weights were replaced an engine cache of its own; a build without options stays as it is.

    Raises:
        InputError: Its ort-tensorrt.json cannot be read.
    """
    if not (folder / OrtSessionDocument.FILE).is_file():
        return
    old = OrtSessionDocument.read(folder)
    path = _engine_cache(folder / old.model)
    providers = [
        (name, {**options, "trt_engine_cache_path": path} if "trt_engine_cache_path" in options else options)
        for name, options in old.providers
    ]
    old.model_copy(update={"providers": providers}).write(folder)


def _engine_cache(onnx: Path) -> str:
    return f"{CACHE}-{_network_sha256(onnx)[:16]}"


def _network_sha256(onnx: Path) -> str:
    """Digest of the graph and of the files that hold its weights."""
    from onnx import TensorProto

    names = {
        entry.value
        for tensor in read_model(onnx).graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return network_digest({name: sha256_of(onnx.parent / name) for name in {onnx.name, *names}})


def _precisions(onnx: Path) -> set[str]:
    from onnx import TensorProto

    model = read_model(onnx)
    types = {TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer if tensor.dims}
    quantized = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)
    types = types - {"INT8"} if not quantized else types | {"INT8"}
    return {_BY_TYPE[one] for one in types if one in _BY_TYPE}
