"""The check of TensorRT's names finds what a release lacks, and nm2trt itself passes it."""

import subprocess
import sys

import pytest
from helpers import REPOSITORY

SCRIPT = REPOSITORY / "tests" / "tensorrt_double" / "check_api.py"
TYPES = (REPOSITORY / "nm2trt" / "tensorrt_api" / "types.py").read_text(encoding="utf-8")


def check(package):
    return subprocess.run([sys.executable, SCRIPT, package], capture_output=True, text=True, check=False)


def package_with(tmp_path, code, types=TYPES):
    folder = tmp_path / "package"
    (folder / "tensorrt_api").mkdir(parents=True)
    (folder / "tensorrt_api" / "types.py").write_text(types)
    (folder / "module.py").write_text(code)
    return folder


def test_nm2trt_reads_only_what_every_release_has():
    result = check(REPOSITORY / "nm2trt")
    assert result.returncode == 0, result.stdout
    assert "10.0, 10.16, 11.0, 11.4, rtx-1.7" in result.stdout


FUNCTIONS = {
    "missing in 10.0": "def f(engine: ICudaEngine) -> int: return engine.device_memory_size_v2",
    "10.0, 10.16, 11.0, 11.4, rtx-1.7": "def f(engine: ICudaEngine | None): return engine.max_batch_size",
    "Tensorrt.BuilderFlags": "def f(trt: Tensorrt): return trt.BuilderFlags",
    "Runtime.load": "def f(trt: Tensorrt, log): runtime = trt.Runtime(log); runtime.load()",
    "IExecutionContext.enqueue_v2": "def f(e: ICudaEngine): e.create_execution_context().enqueue_v2()",
    "IExecutionContext.go": "def f(e: ICudaEngine): c = require(e.create_execution_context(), 1); c.go()",
    "ICudaEngine.bindings": "class A:\n  def g(self): self.e: ICudaEngine = 1\ndef f(a): return a.e.bindings",
    "Runtime.gpu_name": "def make() -> Runtime: ...\ndef f(): return make().gpu_name",
    "imports tensorrt;": "import tensorrt as trt",
    "imports tensorrt_rtx": "def f():\n  from tensorrt_rtx import Builder",
}


@pytest.mark.parametrize("found", FUNCTIONS)
def test_what_a_release_lacks_is_found(tmp_path, found):
    result = check(package_with(tmp_path, FUNCTIONS[found]))
    assert result.returncode == 1
    assert found in result.stdout


@pytest.mark.parametrize(
    "code",
    [
        "def f(engine: ICudaEngine):\n    return getattr(engine, 'device_memory_size_v2', None)\n",
        "def f(engine):\n    return engine.anything\n",
        "def f(engine: ICudaEngine):\n    return engine.num_io_tensors\n",
    ],
)
def test_what_is_guarded_or_there_passes(tmp_path, code):
    assert check(package_with(tmp_path, code)).returncode == 0


def test_a_type_that_no_release_has_is_found(tmp_path):
    types = TYPES.replace("def refit_cuda_engine", "def refit_everything")
    assert "Refitter.refit_everything" in check(package_with(tmp_path, "", types)).stdout
