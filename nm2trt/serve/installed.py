"""Which tritonserver this machine has, and how it is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from nm2trt.errors import MachineError

VARIABLE = "NM2TRT_TRITON"
USUAL = Path("build/triton")
STAND_INS = ("onnxruntime", "tensorrt")
"""Backends that our Python model can stand in for: same repository and protocol, another engine."""

_PROBE = """
import importlib.util, json, sys, sysconfig
def version(name):
    try:
        from importlib import metadata
        return metadata.version(name)
    except Exception:
        return ""
print(json.dumps({
    "site": sysconfig.get_path("purelib"), "python": "%d.%d" % sys.version_info[:2],
    "lib": sysconfig.get_config_var("LIBDIR") or "",
    "pytriton": version("nvidia-pytriton"), "numpy": version("numpy"), "onnxruntime": version("onnxruntime"),
}))
"""
_PROBE_S = 60
_INSTALL = "pip install nvidia-pytriton 'numpy<2' onnxruntime onnx in a virtual environment of its own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A tritonserver that can be started."""

    binary: Path
    description: str
    site: Path | None = None
    """site-packages with nvidia-pytriton; None for a whole Triton, which has its own backends."""
    bin: Path | None = None
    library_folders: tuple[Path, ...] = ()
    python: str = ""
    backends: frozenset[str] = field(default_factory=frozenset)
    """Backends that are inside; empty: not known, a whole Triton."""

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Environment to start it in."""
        environment = dict(inherited)
        if self.site is not None:
            environment["LD_LIBRARY_PATH"] = ":".join(map(str, self.library_folders))
            environment["PATH"] = f"{self.bin}:{inherited.get('PATH', '')}"
            environment["PYTHONPATH"] = str(self.site)
        return environment

    def missing(self, needed: Iterable[str]) -> list[str]:
        """Backends that a repository needs and this server lacks."""
        return [] if self.site is None else sorted(set(needed) - self.backends)


def find_triton(environment: Mapping[str, str] = os.environ) -> Installed:
    """Find what is installed: $NM2TRT_TRITON, tritonserver on PATH, build/triton, this Python, in this order.

    Args:
        environment: NM2TRT_TRITON in it names a virtual environment with nvidia-pytriton, or a tritonserver binary.

    Raises:
        MachineError: There is none, or the named one cannot serve.
    """
    named = environment.get(VARIABLE)
    if named:
        path = Path(named)
        if path.is_file():
            return Installed(binary=path.resolve(), description=f"tritonserver named by {VARIABLE}")
        return _in_environment(path, f"named by {VARIABLE}")
    on_path = shutil.which("tritonserver", path=environment.get("PATH"))
    if on_path:
        return Installed(binary=Path(on_path).resolve(), description="tritonserver from PATH")
    if (USUAL / "bin" / "python").exists():
        return _in_environment(USUAL, "")
    if find_spec("pytriton") is not None:
        return _in_environment(Path(sys.prefix), "of this Python")
    raise MachineError(
        "no tritonserver on PATH, and no nvidia-pytriton",
        hint=f"run `make triton`, or {_INSTALL} and set {VARIABLE} to it; or use the Dockerfile in REPOSITORY",
    )


def _in_environment(folder: Path, how: str) -> Installed:
    """Read a virtual environment with nvidia-pytriton; its Python says where things are."""
    python = folder / "bin" / "python"
    if not python.exists():
        raise MachineError(f"is no virtual environment (no bin/python), {how}", where=folder, hint=_INSTALL)
    try:
        answer = subprocess.run(
            # Its own interpreter, away from our PYTHONPATH and working directory.
            [str(python.absolute()), "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_S,
            check=True,
            cwd="/",
        )
        found = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, json.JSONDecodeError) as error:
        raise MachineError(f"its Python does not answer: {error}", where=folder, hint=_INSTALL) from None
    site = Path(found["site"])
    root = site / "pytriton" / "tritonserver"
    if not found["pytriton"] or not (root / "bin" / "tritonserver").is_file():
        raise MachineError("holds no nvidia-pytriton", where=folder, hint=_INSTALL)
    if not found["numpy"] or int(found["numpy"].split(".")[0]) >= 2:
        raise MachineError(
            f"has numpy {found['numpy'] or 'none'}: with numpy 2 this server returns empty outputs and no error",
            where=folder,
            hint=f"run {folder}/bin/pip install 'numpy<2'",
        )
    if not found["onnxruntime"]:
        raise MachineError("has no onnxruntime, which runs the models", where=folder, hint=_INSTALL)
    return Installed(
        binary=root / "bin" / "tritonserver",
        description=f"tritonserver of nvidia-pytriton {found['pytriton']}, ONNX Runtime {found['onnxruntime']}",
        site=site,
        bin=(folder / "bin").absolute(),
        library_folders=tuple(Path(one) for one in (found["lib"], site / "nvidia_pytriton.libs") if str(one)),
        python=found["python"],
        backends=frozenset({"python"}),
    )


def write_backends(installed: Installed, folder: Path, stand_ins: Iterable[str]) -> None:
    """Lay out a backend folder for nvidia-pytriton: its Python backend, its stub, and our model for each stand-in.

    Raises:
        MachineError: The package has no stub for its own Python.
    """
    assert installed.site is not None
    root = installed.site / "pytriton" / "tritonserver"
    python = folder / "python"
    python.mkdir(parents=True)
    stub = root / "python_backend_stubs" / installed.python / "triton_python_backend_stub"
    if not stub.is_file():
        raise MachineError(f"nvidia-pytriton has no stub for Python {installed.python}", where=installed.site)
    for source in (root / "backends" / "python" / "libtriton_python.so", stub):
        # Copies: the backend looks for its neighbors where the real file lies.
        shutil.copy2(source, python / source.name)
    shutil.copy2(root / "backends" / "python" / "triton_python_backend_utils.py", python)
    code = resources.files("nm2trt.serve").joinpath("python_model.py").read_text(encoding="utf-8")
    for name in stand_ins:
        (folder / name).mkdir()
        (folder / name / "model.py").write_text(code, encoding="utf-8")
