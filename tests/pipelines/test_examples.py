"""The examples in the docstrings of what others call: each runs, in a folder with the files that it names."""

import doctest
import importlib

import numpy as np
import onnx
import pytest
from small_networks import small_network

import nm2trt
from nm2trt.cli.main import COMMANDS

PIPELINES = {
    "benchmark-gpu": "benchmark_gpu.measure_gpu",
    "calibrate": "calibrate.calibrate_model",
    "check-server": "check_server.check_server",
    "compare": "compare.compare_files",
    "demo": "demo.run_demo",
    "doctor": "doctor.examine_machine",
    "estimate": "estimate.estimate_network",
    "export": "export.export_network",
    "inspect": "inspect.inspect_build",
    "package": "package.package_build",
    "profile": "profile.profile_build",
    "prune": "prune.prune_file",
    "recommend": "recommend.recommend_layers",
    "refit": "refit.refit_build",
    "serve": "serve.serve_repository",
    "train": "train.train_network",
    "verify": "verify.verify_file",
}
"""What each command calls."""


def _functions():
    named = {name: getattr(nm2trt, name) for name in nm2trt.__all__}
    found = {name: value for name, value in named.items() if callable(value) and not isinstance(value, type)}
    for path in (*PIPELINES.values(), "package.change_versions"):
        module, _, name = path.partition(".")
        found[name] = getattr(importlib.import_module(f"nm2trt.pipelines.{module}"), name)
    return found


FUNCTIONS = _functions()


@pytest.fixture
def example_folder(tmp_path, monkeypatch):
    """Where an example runs: a network in 2:4, the same one dense, its build and samples of its input."""
    onnx.save(small_network(sparse=True, channels=32), tmp_path / "model.onnx")
    onnx.save(small_network(channels=32), tmp_path / "dense.onnx")
    samples_NCHW = np.random.default_rng(0).standard_normal((64, 4, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples_NCHW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_has_its_pipeline():
    assert PIPELINES.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_example_runs(name, example_folder):
    function = FUNCTIONS[name]
    module = importlib.import_module(function.__module__)
    (test,) = (
        found
        for found in doctest.DocTestFinder(recurse=False).find(function, name, globs=dict(vars(module)), module=module)
    )
    assert test.examples, f"{name}: no example in its docstring"
    said = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert result.failed == 0, "".join(said)
    assert result.attempted == len(test.examples)
