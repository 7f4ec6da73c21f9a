"""Write what a TensorRT binding offers, as JSON: the source of tests/tensorrt_double/surfaces/.

    python tests/tensorrt_double/prepare.py build/tensorrt-double 10.0 10.16 11.0 11.4
    python tests/tensorrt_double/dump_surface.py build/tensorrt-double 10.0 10.16 11.0 11.4 rtx

Each version is read in a process of its own; `rtx` is the installed tensorrt_rtx.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "site" / "tensorrt"))
from _loading import import_bindings  # noqa: E402
from _surface import describe  # noqa: E402


def load(home: Path, version: str) -> ModuleType:
    """Import one version's bindings."""
    return importlib.import_module("tensorrt_rtx") if version == "rtx" else import_bindings(home, version)


def main(arguments: list[str]) -> int:
    """Dump one version here, or start a process for each of several."""
    home, versions = Path(arguments[0]).resolve(), arguments[1:]
    if len(versions) > 1:
        for version in versions:
            subprocess.run([sys.executable, __file__, str(home), version], check=True)
        return 0
    described = describe(load(home, versions[0]))
    short = ".".join(described["version"].split(".")[:2])
    name = f"rtx-{short}" if versions[0] == "rtx" else short
    lines = [
        f'{{"version": {json.dumps(described["version"])}, "names": {json.dumps(described["names"])}, "classes": {{'
    ]
    lines += [",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in described["classes"].items())]
    (HERE / "surfaces" / f"{name}.json").write_text("\n".join([*lines, "}}"]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
