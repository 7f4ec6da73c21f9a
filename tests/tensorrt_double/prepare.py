"""Fetch TensorRT's real Python bindings and compile the stub libraries that let them be imported without TensorRT.

    python tests/tensorrt_double/prepare.py build/tensorrt-double

The bindings alone are about 1.3 MB a version; the libraries (several GB) are not installed. What is there is kept.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BINDINGS = {
    "10.0": "tensorrt_cu12_bindings==10.0.1",
    "10.16": "tensorrt_cu13_bindings==10.16.1.11",
    "11.0": "tensorrt_cu13_bindings==11.0.0.114",
    "11.4": "tensorrt_cu13_bindings==11.4.0.106",
}
"""Short version -> package. The double runs on 10.16 and 11.4; the others only have their surface dumped."""
SIMULATED = ("10.16", "11.4")
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
_TIMEOUT_S = 300


def install_bindings(home: Path, version: str) -> Path:
    """Install one version's bindings under `home`.

    Raises:
        subprocess.CalledProcessError: pip cannot get them for this Python or platform.
    """
    folder = home / f"bindings-{version}"
    if (folder / "tensorrt_bindings").is_dir():
        return folder
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--target", str(folder), BINDINGS[version]]
    subprocess.run(command, check=True, timeout=_TIMEOUT_S)
    return folder


def compile_stubs(home: Path, major: str) -> Path:
    """Compile the stub once for each library, with the names that the bindings of this major version ask for.

    Raises:
        FileNotFoundError: There is no C compiler.
        subprocess.CalledProcessError: It failed.
    """
    folder = home / f"stubs-{major}"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("no C compiler (cc)")
    folder.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        name = f"{library}.so.{major}"
        if not (folder / name).is_file():
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
            subprocess.run([*command, str(HERE / "stub.c")], check=True, timeout=_TIMEOUT_S)
    return folder


def main(arguments: list[str]) -> int:
    """Prepare the versions that are simulated, or the ones that are named."""
    home = Path(arguments[0]).resolve()
    for version in arguments[1:] or SIMULATED:
        install_bindings(home, version)
        compile_stubs(home, version.partition(".")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
