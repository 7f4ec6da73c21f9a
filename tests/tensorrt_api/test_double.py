"""The double is as strict as the real bindings, and nothing that it says can be taken for an observation."""

import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY
from tensorrt_double.double import SITE, VERSIONS, double_environment, require_double

STRICT = """
import tensorrt as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
config = builder.create_builder_config()
def refused(kind, work):
    try:
        work()
    except kind:
        return
    raise SystemExit(f"{kind.__name__} was not raised")
refused(AttributeError, lambda: builder.build_engine)
refused(AttributeError, lambda: setattr(config, "max_workspace_size", 1))
refused(TypeError, lambda: config.set_flag("SPARSE_WEIGHTS"))
refused(TypeError, lambda: config.set_flag())
refused(TypeError, lambda: config.set_flag(trt.BuilderFlag.REFIT, 1))
refused(TypeError, lambda: builder.create_network("explicit"))
refused(TypeError, lambda: trt.Runtime("logger"))
refused(TypeError, lambda: setattr(config, "profiling_verbosity", 3))
refused(NotImplementedError, lambda: config.avg_timing_iterations)
refused(NotImplementedError, lambda: builder.reset())
config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
assert config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS) is True
import torch
stream, a, b = torch.cuda.Stream(), torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
a.record()
with torch.cuda.stream(stream):
    b.record()
refused(RuntimeError, lambda: a.elapsed_time(b))
graph = torch.cuda.CUDAGraph()
refused(RuntimeError, graph.capture_begin)
with torch.cuda.stream(stream):
    graph.capture_begin()
    refused(RuntimeError, stream.synchronize)
    refused(RuntimeError, a.record)
    refused(RuntimeError, graph.capture_end)
assert torch.cuda.current_stream() is not stream
print(trt.__version__)
"""


def python(code, environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("version", VERSIONS)
def test_names_and_arguments_are_those_of_the_real_bindings(version):
    result = python(STRICT, double_environment(require_double(version)))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().startswith(version)
    assert result.stdout.strip().endswith("+double")


def test_outside_of_the_tests_it_cannot_be_imported():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NM2TRT_TENSORRT")}
    result = python("import tensorrt", environment | {"PYTHONPATH": str(SITE)})
    assert result.returncode == 1
    assert "only nm2trt's own tests may import it" in result.stderr


def test_an_unknown_fault_is_an_error():
    result = python("import tensorrt", double_environment(require_double(VERSIONS[0]), "no_such_fault"))
    assert "knows no fault ['no_such_fault']" in result.stderr


def test_its_version_stands_in_no_document():
    """Whatever the double had a hand in holds "+double"; only the tests may."""
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    holding = [
        name
        for name in files.splitlines()
        if (REPOSITORY / name).is_file() and b"+double" in (REPOSITORY / name).read_bytes()
    ]
    assert holding
    assert all(name.startswith("tests/") for name in holding), holding


def test_the_package_does_not_hold_it():
    assert not (REPOSITORY / "nm2trt" / "tensorrt").exists()
    assert SITE.is_relative_to(REPOSITORY / "tests")
