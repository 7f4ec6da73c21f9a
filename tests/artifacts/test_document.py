import json

import pytest

from nm2trt.artifacts import Document
from nm2trt.errors import InputError


class Note(Document):
    SCHEMA = "test.note/1"
    FILE = "note.json"
    text: str
    value: float = 0.0


def test_keys_are_as_documented_and_read_back(tmp_path):
    note = Note(text="hello")
    note.write(tmp_path)
    raw = json.loads((tmp_path / "note.json").read_text())
    assert raw["schema"] == "test.note/1"
    assert set(raw) == {"schema", "nm2trt_version", "created_utc", "text", "value"}
    assert Note.read(tmp_path) == note


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no note\.json here; run it first"),
        ("{", "no readable JSON"),
        ("[]", "schema None"),
        ('{"schema": "test.note/2", "text": "x"}', r"schema 'test\.note/2' is not"),
        ('{"schema": "test.note/1"}', "text: Field required"),
        ('{"schema": "test.note/1", "text": "x", "extra": 1}', "extra: "),
        (b"\xff\xfe\x00", "no readable JSON"),
    ],
)
def test_a_bad_document_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "note.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        Note.read(tmp_path, hint="run it first")
    assert "\n" not in str(caught.value)
