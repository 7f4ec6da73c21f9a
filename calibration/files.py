"""Which file is calibrated, and which may be written."""

from __future__ import annotations

from pathlib import Path

from nm2trt.artifacts.calibration import document_path
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.errors import ConfigError


def model_file(path: Path) -> Path:
    """Return the ONNX file itself where a folder of `nm2trt export` was named."""
    return path / ONNX_FILE if (path / ONNX_FILE).is_file() else path


def check_target(model: Path, output: Path, *, force: bool) -> None:
    """Refuse an output that would cost the user data.

    Raises:
        ConfigError: It is no `.onnx`, is the model itself, has no folder, or exists and is not nm2trt's to replace.
    """
    if output.suffix.lower() != ".onnx":
        raise ConfigError("is no .onnx", where=f"-o {output}", hint="name the file OUT.onnx")
    if not output.parent.is_dir():
        raise ConfigError("its folder does not exist", where=f"-o {output}", hint="make it first")
    if not output.exists() and not document_path(output).exists():
        return
    if output.exists() and model.exists() and output.samefile(model):
        raise ConfigError("is the model itself", where=f"-o {output}", hint="choose another -o")
    if not force:
        raise ConfigError("exists", where=f"-o {output}", hint="choose another -o, or replace it with --force")
    if output.is_dir() or not document_path(output).is_file():
        raise ConfigError(
            f"exists without {document_path(output).name}, so nm2trt did not write it and --force leaves it alone",
            where=f"-o {output}",
            hint="choose another -o",
        )
