"""Fixtures that every test may use, and guards against tests that leak into each other."""

import os
import shutil
from pathlib import Path

# One thread a process: the suite's nets are tiny, and spinning threads starve each other on small machines.
# Child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from helpers import missing_requirements
from quick import is_quick

# Tests assert no times, and a busy machine is no failure.
hypothesis.settings.register_profile("nm2trt", deadline=None)
hypothesis.settings.load_profile("nm2trt")

REFERENCE_VARIABLE = "NM2TRT_REFERENCE_DATA"


def _environment():
    # pytest, torch's compiler and OpenMP keep settings of their own there.
    own = ("PYTEST_", "TORCHINDUCTOR_", "KMP_")
    return {key: value for key, value in os.environ.items() if not key.startswith(own)}


@pytest.fixture(autouse=True)
def _no_leaked_environment():
    before = _environment()
    yield
    assert _environment() == before, "a test changed the environment; use monkeypatch.setenv"


@pytest.fixture(autouse=True, scope="session")
def _own_state_folder(tmp_path_factory):
    # What the tests write is no record of the user's.
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder of recorded A100 profiles."""
    value = os.environ.get(REFERENCE_VARIABLE)
    if not value:
        pytest.skip(f"recorded A100 data: set {REFERENCE_VARIABLE} to its folder")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{REFERENCE_VARIABLE} is set to {value!r}, which is no folder")
    return folder


@pytest.fixture
def chromium() -> str:
    """Path of a headless browser."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("missing: chromium (Debian package chromium)")
    return found


def pytest_runtest_setup(item):
    needs = {mark.name for mark in item.iter_markers()} & {"gpu", "tensorrt"}
    missing = missing_requirements(gpu=bool(needs), tensorrt="tensorrt" in needs)
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}")


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="only tests that start no process, train nothing and build no engine"
    )


def pytest_configure(config):
    if config.getoption("--quick"):
        hypothesis.settings.register_profile("quick", deadline=None, max_examples=15)
        hypothesis.settings.load_profile("quick")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        left_out = [item for item in items if not is_quick(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    # Files with the longest tests first, so that no worker is left alone with one at the end.
    long_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in long_files, item.get_closest_marker("slow") is None))
