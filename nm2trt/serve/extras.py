"""Folders for DeepStream and for ONNX Runtime alone: a model, what runs it, and where it came from."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from nm2trt.artifacts import file_records
from nm2trt.artifacts.build import BuildDocument, Variant
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.artifacts.package import PackageDocument
from nm2trt.errors import ConfigError, InputError
from nm2trt.serve.config_pbtxt import LABELS, PLAN
from nm2trt.serve.ports import check_name, has_dynamic_batch
from nm2trt.serve.source import Network, has_plan, onnx_network, plan_network, read_build
from nm2trt.serve.triton import checked_labels, version_record

_COLORS = {1: 2, 3: 0}
"""Channels -> nvinfer's model-color-format: 0 RGB, 2 GRAY."""
_SMALLEST_SCALE = 1.2e-38
_LARGEST_SCALE = 3.4e38
_MODES = {"fp32": 0, "int8": 1, "int8+fp16": 1, "fp16": 2}
"""Precision -> nvinfer's network-mode."""


def package_deepstream(
    folder: Path,
    target: Path,
    *,
    name: str,
    variant: Variant,
    labels: Path | None,
    scale: float,
    sm: str | None = None,
    tensorrt: str | None = None,
) -> PackageDocument:
    """Fill a folder for DeepStream's Gst-nvinfer: the model, its labels, and `config_infer.txt`.

    Args:
        folder: Build folder.
        target: Folder to fill.
        name: Of the model.
        variant: Which engine or graph.
        labels: One class a line; None: classes are numbers.
        scale: nvinfer multiplies pixels 0..255 by this before the network sees them.
        sm: What the user says the plan is for.
        tensorrt: What the user says the server has.

    Raises:
        InputError: The network takes no images, or the plan cannot be used.
    """
    check_name(name)
    _check_scale(scale)
    build = read_build(folder)
    channels, height, width = _image(folder, build)
    with_plan = has_plan(build, variant)
    for option, given in (("--sm", sm), ("--tensorrt", tensorrt)):
        if given is not None and not with_plan:
            raise ConfigError("states what a plan is for, and no plan is packaged here", where=option, hint="drop it")
    network = plan_network((folder,), variant, sm=sm, tensorrt=tensorrt) if with_plan else onnx_network(folder, variant)
    _copy_graph(network, target)
    for path, _ in network.plans:
        shutil.copyfile(path, target / PLAN)
    text = None if labels is None else _nvinfer_labels(labels, build)
    if text is not None:
        (target / LABELS).write_text(text, encoding="utf-8")
    lines = _nvinfer_lines(
        build, (channels, height, width), name=name, scale=scale, plan=with_plan, labels=text is not None
    )
    (target / "config_infer.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return _document(target, network, name=name, server="deepstream")


def _check_scale(scale: float) -> None:
    """Nvinfer reads it as a 32-bit float and refuses what is not above zero (gstnvinfer_property_parser.cpp)."""
    if not _SMALLEST_SCALE <= scale <= _LARGEST_SCALE:
        raise ConfigError(
            f"{scale:g} is no factor for pixels", where="--scale", hint="give a number above 0; 1/255 makes them 0..1"
        )


def _nvinfer_labels(path: Path, build: BuildDocument) -> str:
    """Class names as nvinfer's classifiers read them: in one line, apart by semicolons."""
    lines = checked_labels(path, build).removesuffix("\n").split("\n")
    for at, label in enumerate(lines):
        if set(label) & {";", "\r"} or label != label.strip():
            raise InputError(
                f"line {at + 1} is {label!r}, and nvinfer takes labels apart at semicolons and line ends",
                where=path,
                hint="write the class name without ';' and without spaces around it",
            )
    return ";".join(lines) + "\n"


def _nvinfer_lines(
    build: BuildDocument, image_CHW: tuple[int, int, int], *, name: str, scale: float, plan: bool, labels: bool
) -> list[str]:
    """Gst-nvinfer's configuration; keys as in DeepStream's `gstnvinfer_property_parser.h`."""
    for port in build.outputs:
        if set(port.name) & {";", "\n", "\r"} or port.name != port.name.strip():
            raise InputError(
                f"output {port.name!r} has a name that nvinfer's list takes apart",
                hint="rename it in the network and export again",
            )
    channels, height, width = image_CHW
    batch = build.batch.max if build.batch is not None and has_dynamic_batch(build) else _fixed_batch(build)
    return [
        f"# {name}: {build.source.method or 'unknown method'} {build.source.pattern or ''}".rstrip(),
        "# nvinfer has no key for SPARSE_WEIGHTS: an engine that it builds itself from the ONNX is built without the",
        "# flag. Only nm2trt export's model.plan had it; whether that runs sparse kernels is in its build.json.",
        "[property]",
        "gpu-id=0",
        f"onnx-file={ONNX_FILE}",
        *([f"model-engine-file={PLAN}"] if plan else []),
        f"batch-size={batch}",
        f"infer-dims={channels};{height};{width}",
        f"network-mode={_MODES.get(build.precision, 0)}",
        "network-type=1" if labels else "network-type=100",
        f"output-blob-names={';'.join(port.name for port in build.outputs)}",
        f"model-color-format={_COLORS[channels]}",
        f"net-scale-factor={scale:.9g}",
        "process-mode=1",
        "gie-unique-id=1",
        "output-tensor-meta=1",
        *([f"labelfile-path={LABELS}", "classifier-threshold=0.0"] if labels else []),
    ]


def package_onnxruntime(folder: Path, target: Path, *, name: str, variant: Variant) -> PackageDocument:
    """Fill a folder with the graph and two programs that run it in ONNX Runtime: run.py and main.cpp.

    Raises:
        InputError: The build cannot be used, or has more than the one input that the programs feed.
    """
    check_name(name)
    network = onnx_network(folder, variant)
    if len(network.build.inputs) != 1 or network.build.inputs[0].dtype not in ("float32", "fp32", "float"):
        raise InputError("the programs feed one float32 input, and this build has others", where=folder)
    _copy_graph(network, target)
    key = version_record(network, 1).model_copy(update={"files": file_records(target)}).network_sha256[:16]
    for file in ("run.py", "main.cpp", "CMakeLists.txt"):
        text = resources.files("nm2trt.serve").joinpath("snippets", f"{file}.txt").read_text(encoding="utf-8")
        # ONNX Runtime tells no weights apart in its engine cache: a folder that is replaced must not find old engines.
        (target / file).write_text(text.replace("ENGINES", f"engines-{key}"), encoding="utf-8")
    return _document(target, network, name=name, server="onnxruntime")


def _copy_graph(network: Network, target: Path) -> None:
    shutil.copyfile(network.onnx, target / ONNX_FILE)
    for path in network.data:
        shutil.copyfile(path, target / path.name)


def _image(folder: Path, build: BuildDocument) -> tuple[int, int, int]:
    shape = build.inputs[0].shape[1:]
    sizes = [size for size in shape if isinstance(size, int)]
    if len(build.inputs) != 1 or len(shape) != 3 or len(sizes) != 3 or sizes[0] not in _COLORS:
        raise InputError(
            "Gst-nvinfer feeds one image [batch, 1 or 3, height, width], and this network takes "
            + ", ".join(f"{port.name} {list(port.shape)}" for port in build.inputs),
            where=folder,
        )
    return sizes[0], sizes[1], sizes[2]


def _fixed_batch(build: BuildDocument) -> int:
    size = build.inputs[0].shape[0]
    if not isinstance(size, int):
        raise ConfigError("the build states no batch", hint="export with --batch MIN:OPT:MAX")
    return size


def _document(target: Path, network: Network, *, name: str, server: str) -> PackageDocument:
    build = network.build
    version = version_record(network, 1).model_copy(update={"files": file_records(target)})
    return PackageDocument(
        model=name,
        server="deepstream" if server == "deepstream" else "onnxruntime",
        platform="nvinfer" if server == "deepstream" else "onnxruntime",
        gpu=server == "deepstream",
        max_batch=build.batch.max if build.batch is not None and has_dynamic_batch(build) else 0,
        queue_delay_us=0,
        batch=build.batch,
        inputs=build.inputs,
        outputs=build.outputs,
        versions=[version],
    )
