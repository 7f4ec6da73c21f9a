"""The schemas that are published under docs/schemas, against what the commands print and write."""

import ast
import json
import subprocess
import sys

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


@pytest.fixture(scope="module")
def written():
    """File name -> text, as write_schemas.py makes them; in a process of its own, since it imports much."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import write_schemas as w;"
        "print(json.dumps({name: w.schema_text(kind) for name, kind in w.find_documents().items()}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(SCHEMAS)], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    return json.loads(found.stdout)


def test_every_document_has_its_schema_published_and_listed(written):
    """Where one is missing or old: python docs/schemas/write_schemas.py."""
    published = {path.name: path.read_text() for path in SCHEMAS.glob("*.json")}
    assert published.keys() == written.keys()
    assert [name for name in written if published[name] != written[name]] == []
    listed = (SCHEMAS / "README.md").read_text()
    for name, text in published.items():
        Draft202012Validator.check_schema(json.loads(text))
        assert f"`{name}`" in listed


def test_no_document_is_forgotten(written):
    """Counted in the sources, by the classes that name Document as their base."""
    named = set()
    for folder in ("nm2trt", "training", "calibration"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and any(getattr(b, "id", "") == "Document" for b in node.bases):
                    named |= {
                        part.value.value
                        for part in node.body
                        if isinstance(part, ast.AnnAssign) and getattr(part.target, "id", "") == "SCHEMA"
                    }
    assert {json.loads(text)["title"] for text in written.values()} == named


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
