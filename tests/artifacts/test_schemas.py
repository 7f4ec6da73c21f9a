"""The schemas that are published under docs/schemas, against what the commands print and write."""

import json

import pytest
from helpers import REPOSITORY, nm2trt_inline
from jsonschema import Draft202012Validator, ValidationError
from serve_builds import make_build

SCHEMAS = REPOSITORY / "docs" / "schemas"


@pytest.mark.parametrize(
    ("command", "file"), [("profile", "report.json"), ("package", "package.json"), ("check-server", "server.json")]
)
def test_a_published_schema_is_the_one_that_the_command_prints(command, file):
    """Where it is not: nm2trt COMMAND --schema > docs/schemas/FILE."""
    result = nm2trt_inline(command, "--schema")
    assert result.returncode == 0, result.stderr
    schema = json.loads(result.stdout)
    Draft202012Validator.check_schema(schema)
    assert json.loads((SCHEMAS / file).read_text()) == schema


@pytest.mark.parametrize("builder", [None, "tensorrt"])
def test_a_package_follows_its_schema(tmp_path, builder):
    build = make_build(tmp_path / "build", builder=builder)
    for options in ((), ("--instances", "2"), ("--max-batch", "4")):
        result = nm2trt_inline("package", build, "-o", tmp_path / "repo", "--name", "net", *options)
        assert result.returncode == 0, result.stderr
    assert nm2trt_inline("package", "-o", tmp_path / "repo", "--rollback").returncode == 0
    validator = Draft202012Validator(json.loads((SCHEMAS / "package.json").read_text()))
    document = json.loads((tmp_path / "repo/net/package.json").read_text())
    validator.validate(document)
    for name in ("versions", "model", "platform"):
        with pytest.raises(ValidationError):
            validator.validate({key: value for key, value in document.items() if key != name})
    with pytest.raises(ValidationError):
        validator.validate({**document, "stranger": 1})
