"""Which of ONNX Runtime's providers can be opened here, and what keeps the others from it."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import onnx
import onnxruntime as ort

from nm2trt.errors import MachineError
from nm2trt.ort import SessionError, open_session
from nm2trt.tensorrt_api import explain_missing_package, load_tensorrt

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_WARNINGS = 2
_NEEDED = re.compile(rb"libnvinfer\.so\.(\d+)\0")


def best_device() -> str:
    """`cuda` where ONNX Runtime can open its CUDA provider, else `cpu`."""
    return "cuda" if not explain_provider("cuda") else "cpu"


def require_device(device: str) -> None:
    """Check that a provider can be opened.

    Raises:
        MachineError: It cannot; the line says why.
    """
    reason = "" if device == "cpu" else explain_provider(device)
    if reason:
        raise MachineError(
            f"ONNX Runtime cannot open {PROVIDERS[device]}: {reason}", where="--provider", hint="use --provider cpu"
        )


def explain_provider(device: str) -> str:
    """What keeps a provider from being opened; "" where nothing does."""
    if PROVIDERS[device] not in ort.get_available_providers():
        return "this onnxruntime was built without it"
    if not _has_driver():
        return "no NVIDIA driver here"
    # Listed only means compiled in. The libraries it needs come with torch's wheels; loading them first lets it open.
    ort.preload_dlls()
    if device == "tensorrt":
        reason = _explain_tensorrt()
        if reason:
            return reason
    return _try_provider(PROVIDERS[device])


def needed_tensorrt() -> int | None:
    """Major version of the TensorRT that ONNX Runtime's provider is linked against; None where it has no such file."""
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    found = _NEEDED.search(library.read_bytes()) if library.is_file() else None
    return int(found.group(1)) if found else None


def _explain_tensorrt() -> str:
    """Load TensorRT's own libraries, which lie in its wheel where no loader looks, and compare the versions."""
    missing = explain_missing_package("tensorrt")
    if missing is not None:
        return f"{missing.what} ({missing.hint})"
    needed = needed_tensorrt()
    try:
        version = load_tensorrt("tensorrt").__version__
    except MachineError as error:
        return str(error)
    if needed is not None and version.partition(".")[0] != str(needed):
        return (
            f"onnxruntime {ort.__version__} was built for TensorRT {needed}, and {version} is installed "
            f"(pip install 'tensorrt=={needed}.*')"
        )
    return ""


def _try_provider(provider: str) -> str:
    tensor, result = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [tensor], [result])
    probe = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    try:
        session = open_session(
            probe.SerializeToString(), providers=[provider, PROVIDERS["cpu"]], log_severity=_WARNINGS
        )
    except SessionError as error:
        return error.reason
    return "" if provider in session.get_providers() else "its libraries or the GPU are missing"


def _has_driver() -> bool:
    """Ask the loader for NVIDIA's driver, so that a machine without one is spared ONNX Runtime's error lines."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False
