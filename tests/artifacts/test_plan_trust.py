"""The gate before a plan is loaded: every way in which a plan can be another than the one that was built."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_networks import build_folder, small_network

from nm2trt.artifacts import BuildDocument, check_plan, this_platform
from nm2trt.errors import InputError

PLAN = b"\x00plan"
HERE = {"tensorrt_version": "10.16.1.11", "sm": "80", "platform": "linux_x86_64"}


@pytest.fixture
def folder(tmp_path):
    """A build folder whose sparse plan fits HERE."""
    made = build_folder(tmp_path / "b", small_network(seed=1))
    (made / "sparse.plan").write_bytes(PLAN)
    change(made, builder="tensorrt", builder_version="10.16.1.11", sm="80", platform="linux_x86_64",
           sha256=hashlib.sha256(PLAN).hexdigest())  # fmt: skip
    return made


def change(folder, **engine):
    build = BuildDocument.read(folder)
    build.model_copy(update={"engines": [build.engines[0].model_copy(update=engine)]}).write(folder)


def test_the_plan_that_was_built_here_passes(folder):
    assert check_plan(folder, "sparse", **HERE) == folder / "sparse.plan"


def test_a_changed_plan_is_refused_unless_trusted(folder):
    (folder / "sparse.plan").write_bytes(PLAN + b"!")
    with pytest.raises(InputError, match=r"sha256 is not that of build\.json.*--trust"):
        check_plan(folder, "sparse", **HERE)
    assert check_plan(folder, "sparse", trust=True, **HERE).read_bytes() == PLAN + b"!"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tensorrt_version": "10.16.1.12"}, "TensorRT 10.16.1.11, here is 10.16.1.12"),
        ({"sm": "86"}, "SM 80, here is 86"),
        ({"platform": "linux_aarch64"}, "platform linux_x86_64, here is linux_aarch64"),
        ({"tensorrt_version": "", "sm": ""}, "here is unknown, SM 80"),
    ],
)
def test_what_the_plan_was_not_built_for_is_refused_even_if_trusted(folder, changed, words):
    for trust in (False, True):
        with pytest.raises(InputError, match=words):
            check_plan(folder, "sparse", trust=trust, **(HERE | changed))


def test_a_record_without_a_platform_is_not_taken_on_faith(folder):
    change(folder, platform="")
    with pytest.raises(InputError, match="platform unknown"):
        check_plan(folder, "sparse", **HERE)


def test_plans_of_rtx_never_load_in_tensorrt(folder):
    change(folder, builder="tensorrt-rtx")
    with pytest.raises(InputError, match="built by tensorrt-rtx"):
        check_plan(folder, "sparse", trust=True, **HERE)


def test_plugins_are_named_and_refused(folder):
    change(folder, plugins=("libmine.so",))
    with pytest.raises(InputError, match=r"libmine\.so"):
        check_plan(folder, "sparse", **HERE)


@pytest.mark.parametrize("name", ["../secret.plan", "/etc/passwd", "sub/x.plan", ".", ""])
def test_a_manifest_cannot_point_outside_its_folder(folder, name):
    (folder.parent / "secret.plan").write_bytes(PLAN)
    change(folder, file=name)
    with pytest.raises(InputError):
        check_plan(folder, "sparse", trust=True, **HERE)


def test_a_link_is_no_plain_file(folder, tmp_path):
    (tmp_path / "elsewhere").write_bytes(PLAN)
    (folder / "sparse.plan").unlink()
    (folder / "sparse.plan").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no plain file"):
        check_plan(folder, "sparse", **HERE)


def test_missing_engines_say_why(folder):
    with pytest.raises(InputError, match="names no dense engine"):
        check_plan(folder, "dense", **HERE)
    with pytest.raises(InputError, match="names no sparse engine"):
        check_plan(folder, "sparse", rebuild=1, **HERE)
    change(folder, file=None, error="out of memory")
    with pytest.raises(InputError, match="out of memory"):
        check_plan(folder, "sparse", **HERE)


def test_a_manifest_of_another_schema_is_refused(folder):
    raw = json.loads((folder / "build.json").read_text())
    (folder / "build.json").write_text(json.dumps(raw | {"schema": "nm2trt.build/1"}))
    with pytest.raises(InputError, match=r"nm2trt\.build/1"):
        check_plan(folder, "sparse", **HERE)


@given(position=st.integers(0, len(PLAN) - 1), bit=st.integers(0, 7))
def test_any_changed_bit_is_seen(tmp_path_factory, position, bit):
    made = build_folder(tmp_path_factory.mktemp("t") / "b", small_network(seed=1))
    broken = bytearray(PLAN)
    broken[position] ^= 1 << bit
    (made / "sparse.plan").write_bytes(bytes(broken))
    change(made, builder="tensorrt", builder_version="10.16.1.11", sm="80", platform="linux_x86_64",
           sha256=hashlib.sha256(PLAN).hexdigest())  # fmt: skip
    with pytest.raises(InputError, match="sha256"):
        check_plan(made, "sparse", **HERE)


def test_the_platform_is_named_as_plans_name_it():
    system, _, machine = this_platform().partition("_")
    assert system in ("linux", "win32", "darwin")
    assert machine
