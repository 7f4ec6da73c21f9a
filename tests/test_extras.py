"""What the light core does without the libraries of the extras."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import REPOSITORY
from onnx import helper, numpy_helper
from profile_reports import report_document
from safetensors.numpy import save_file

from nm2trt.extras import EXTRAS, OPTIONAL_EXTRAS, explain_missing_module

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BLOCKED = (
    "torch", "torchvision", "onnxruntime", "onnxscript", "scipy", "matplotlib", "sklearn", "polygraphy", "accelerate",
    "jinja2", "tomli_w",
)  # fmt: skip
BLOCKER = f"""
import sys
class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker)
sys.argv[0] = "nm2trt"
from nm2trt.cli.main import main
main()
"""
LOG = "[I] [TRT] (Sparsity) Found 2 layer(s) eligible to use sparse tactics: a, b\n"


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((64, 64), (64, 64))]
    save_file({"fc.weight": weights[0]}, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **{"fc.weight": np.tile(np.float32([0, 0, 1, 2]), (8, 4))})
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w1"], ["y"], transB=1),
    ]
    ports = [helper.make_tensor_value_info(name, 1, [8, 64]) for name in "xy"]
    named = [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], named)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    (tmp_path / "build.log").write_text(LOG)
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report_document(name).write(tmp_path / name)
    return tmp_path


CORE = (
    (["verify", "w.npz", "--json"], 0),
    (["prune", "w.safetensors", "-o", "p.safetensors"], 0),
    (["verify", "p.safetensors"], 0),
    (["prune", "m.onnx", "-o", "p.onnx"], 0),
    (["verify", "p.onnx"], 0),
    (["inspect", "build.log"], 0),
    (["estimate", "m.onnx", "--gpu", "a10", "--json"], 0),
    (["recommend", "m.onnx", "--gpu", "a10"], 1),  # done; no layer of this small network gains
    (["compare", "a", "b"], 0),
    (["doctor", "--json"], 0),
)
MISSING = (
    (["verify", "w.pt"], "pip install 'nm2trt[torch]'"),
    (["prune", "m.onnx", "-o", "q.onnx", "--permute"], "pip install 'nm2trt[permute]'"),
    (["train", "-o", "run"], "pip install 'nm2trt[train]'"),
    (["export", "m.onnx", "-o", "build"], "pip install 'nm2trt[export]'"),
    (["calibrate", "m.onnx", "-o", "c", "--data", "digits"], "pip install 'nm2trt[calibrate]'"),
    (["profile", "m.onnx", "-o", "r"], "pip install 'nm2trt[profile]'"),
    (["benchmark-gpu", "-o", "g"], "pip install 'nm2trt[profile]'"),
    (["demo", "-o", "d"], "pip install 'nm2trt[all]'"),
)


def check_core(start, folder):
    """Run every command of the core, and every one that lacks something."""
    for arguments, code in CORE:
        result = subprocess.run([*start, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert result.returncode == code, (arguments, result.stdout, result.stderr)
    found = {one["name"]: one for one in json.loads(result.stdout)["findings"]}
    assert not found["extra train"]["present"]
    assert found["extra train"]["hint"] == "pip install 'nm2trt[train]'"
    before = sorted(path.name for path in folder.iterdir())
    for arguments, line in MISSING:
        result = subprocess.run([*start, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert result.returncode == 4, (arguments, result.stdout, result.stderr)
        assert line in result.stderr.splitlines()[-1], (arguments, result.stderr)
        assert "Traceback" not in result.stderr, arguments
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_core_runs_without_the_libraries_of_the_extras(files):
    check_core([sys.executable, "-c", BLOCKER], files)


@pytest.mark.slow
def test_an_environment_of_the_core_alone(files, tmp_path_factory):
    home = tmp_path_factory.mktemp("core") / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    began = time.monotonic()
    installed = subprocess.run(
        [home / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REPOSITORY],
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.monotonic() - began
    if installed.returncode:
        if "No matching distribution found" in installed.stderr or "Connection" in installed.stderr:
            pytest.skip(f"missing: a package index: {installed.stderr.splitlines()[-1]}")
        pytest.fail(installed.stderr)
    (site,) = home.glob("lib/python*/site-packages")
    present = {path.name for path in site.iterdir()}
    assert not present & set(BLOCKED)
    size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"the core alone: {size / 2**20:.0f} MiB, installed in {took:.0f} s")
    check_core([home / "bin/nm2trt"], files)


def test_the_extras_of_pyproject_bring_the_modules_that_are_looked_for():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    modules = {"scikit-learn": "sklearn", "tomli-w": "tomli_w", "onnxruntime-gpu": "onnxruntime", "PyYAML": "yaml"}

    def brought(extra):
        found = set()
        for line in project["optional-dependencies"][extra]:
            name, _, rest = line.partition("[")
            if name == "nm2trt":
                for inner in rest.partition("]")[0].split(","):
                    found |= brought(inner)
            else:
                name = line.partition(">=")[0]
                found.add(modules.get(name, name))
        return found

    for extra, expected in (EXTRAS | OPTIONAL_EXTRAS).items():
        assert brought(extra) == set(expected), extra
    assert brought("all") == set().union(*EXTRAS.values())


def test_a_module_of_no_extra_is_a_bug():
    assert explain_missing_module("nm2trt.nonsense") is None
    assert "nm2trt[torch]" in str(explain_missing_module("torch.nn", where=Path("w.pt")))
