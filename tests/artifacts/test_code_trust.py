"""Documents of strangers: code that they name is not imported, files outside their folder are not read."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.artifacts.code_trust import (
    check_code,
    check_inside,
    code_names,
    record_written,
    state_folder,
    was_written_here,
)
from nm2trt.errors import InputError


def test_only_what_was_recorded_byte_by_byte_was_written_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "run.json"
    path.write_text("{}")
    assert not was_written_here(path)
    record_written("{}")
    assert was_written_here(path)
    path.write_text("{ }")
    assert not was_written_here(path)
    assert not was_written_here(tmp_path / "none")


def test_a_state_folder_that_cannot_be_written_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    record_written("{}")
    (tmp_path / "run.json").write_text("{}")
    assert not was_written_here(tmp_path / "run.json")


def test_a_relative_state_folder_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "elsewhere")
    assert state_folder().is_absolute()


@pytest.mark.parametrize("name", ["digits", "resnet50", "timm:resnet18", "torchvision:resnet18", None])
def test_names_of_libraries_are_no_code(name, tmp_path):
    assert code_names({"model": name}) == {}
    check_code(tmp_path / "run.json", {"model": name}, trust=False)


def test_the_refusal_says_what_would_be_imported_and_trust_lets_it_pass(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("{}")
    named = {"model": "evil.net:make", "data": "evil_data:load"}
    with pytest.raises(InputError, match=r"model evil\.net:make, data evil_data:load.*look at evil\.net, evil_data"):
        check_code(path, named, trust=False)
    check_code(path, named, trust=True)
    assert not {"evil", "evil.net", "evil_data"} & sys.modules.keys()


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up.plan", "a/../../up", "..\\up.plan", "C:\\up.plan", "\\\\host\\share", "C:up"]
)
def test_files_outside_the_folder_are_refused(name, tmp_path):
    with pytest.raises(InputError, match="outside its own folder"):
        check_inside(tmp_path / "build.json", ["model.onnx", name])


_PART = st.text(st.characters(categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=8)


@given(st.lists(_PART, min_size=1, max_size=3), st.sampled_from(["", ".log", "..plan"]))
def test_names_inside_the_folder_pass(parts, suffix):
    check_inside("build.json", ["/".join(parts) + suffix])
