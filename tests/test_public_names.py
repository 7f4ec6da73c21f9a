"""What others may import from nm2trt itself: the names, what they are, and what importing costs."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import REPOSITORY
from safetensors.numpy import save_file

import nm2trt

NAMES = {
    "CalibrationConfig",
    "DataConfig",
    "EstimateConfig",
    "ExportConfig",
    "InspectConfig",
    "NMPattern",
    "PackageConfig",
    "ProfileConfig",
    "ProfileSources",
    "PruneConfig",
    "Sparsifier",
    "VerifyConfig",
    "__version__",
    "calibrate_model",
    "estimate_network",
    "export_network",
    "inspect_build",
    "package_build",
    "profile_build",
    "prune_file",
    "recommend_layers",
    "refit_build",
    "sparsify",
    "verify_file",
    "write_model_card",
}


def test_the_names_are_pinned():
    assert set(nm2trt.__all__) == NAMES


def test_the_page_of_the_api_describes_each_where_it_is_defined():
    described = {line[4:] for line in (REPOSITORY / "docs/api.md").read_text().splitlines() if line.startswith("::: ")}
    public = {f"{getattr(nm2trt, name).__module__}.{name}" for name in NAMES - {"__version__"}}
    assert described == public


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_every_name_is_a_function_or_a_class_with_a_docstring(name):
    found = getattr(nm2trt, name)
    assert callable(found)
    assert found.__doc__
    assert found.__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prove'"):
        _ = nm2trt.prove


def test_importing_loads_nothing_else():
    """In a process of its own: this one has loaded all of it."""
    code = "import sys, nm2trt; print(sorted(n for n in sys.modules if n.startswith(('nm2trt.', 'numpy', 'torch'))))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['nm2trt._version']"


def test_prune_then_verify_as_a_library(tmp_path):
    weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    save_file({"fc.weight": weight}, tmp_path / "dense.safetensors")
    nm2trt.prune_file(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors")
    assert nm2trt.verify_file(tmp_path / "dense.safetensors").verdict == "fail"
    assert nm2trt.verify_file(tmp_path / "sparse.safetensors").verdict == "pass"
