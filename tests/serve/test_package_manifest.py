import json
import shutil

import pytest
from helpers import assert_one_error_line, nm2trt_inline
from hypothesis import given
from hypothesis import strategies as st
from serve_builds import everything, make_build

from nm2trt.errors import InputError
from nm2trt.serve import PackageRequest, check_repository, package_triton, read_model


def package(repository, build):
    package_triton(PackageRequest(builds=(build,), repository=repository, name="net"))


def damage_cases():
    def strangers(repository):
        shutil.rmtree(repository / "net")
        (repository / "net").mkdir()
        (repository / "net/config.pbtxt").write_text('name: "net"')

    def changed(repository):
        (repository / "net/1/model.onnx").write_bytes(b"other")

    def missing(repository):
        (repository / "net/1/model.onnx").unlink()

    def unnamed(repository):
        (repository / "net/2").mkdir()

    def renamed(repository):
        document = json.loads((repository / "net/package.json").read_text())
        (repository / "net/package.json").write_text(json.dumps({**document, "model": "other"}))

    def no_json(repository):
        (repository / "net/package.json").write_text("{")

    return [
        (strangers, "nm2trt did not package"),
        (changed, "was changed since it was packaged"),
        (missing, "is missing, though package.json names it"),
        (unnamed, "version 2 is not in package.json"),
        (renamed, "is of model 'other'"),
        (no_json, "no readable JSON"),
    ]


@pytest.mark.parametrize(("damage", "words"), damage_cases(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_manifest_that_does_not_match_is_told(tmp_path, damage, words):
    """A server is not started on it; packaging again is the way on, unless what lies there is nobody's."""
    repository = tmp_path / "repo"
    build = make_build(tmp_path / "build")
    package(repository, build)
    damage(repository)
    before = everything(repository)
    if damage.__name__ != "strangers":
        assert_one_error_line(nm2trt_inline("serve", repository), 3, words)
    assert everything(repository) == before
    result = nm2trt_inline("package", build, "-o", repository, "--name", "net")
    if damage.__name__ in ("changed", "missing"):
        assert result.returncode == 0, result.stderr
        assert "version 1 is no longer served" in result.stderr
        assert check_repository(repository)["net"][1] == [2]
    else:
        assert_one_error_line(result, 2 if damage.__name__ == "strangers" else 3, words)
        assert everything(repository) == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packaged")
    package(folder / "repo", make_build(folder / "build"))
    return folder / "repo/net"


@given(data=st.data())
def test_a_spoilt_manifest_is_the_users_error_never_ours(packaged, data):
    path = packaged / "package.json"
    right = path.read_bytes()
    document = json.loads(right)
    spoilt = data.draw(st.sampled_from(["bytes", "value", "missing", "version"]))
    if spoilt == "bytes":
        text = data.draw(st.binary(max_size=60))
    else:
        part = document["versions"][0] if spoilt == "version" else document
        key = data.draw(st.sampled_from(sorted(part)))
        value = part.pop(key)
        if spoilt != "missing":
            part[key] = data.draw(JSON.filter(lambda one: type(one) is not type(value)))
        text = json.dumps(document).encode()
    path.write_bytes(text)
    try:
        read_model(packaged)
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(right)
