"""verify's findings as JSON documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import ClassVar, Literal

from nm2trt.artifacts import Document
from nm2trt.verify.verdicts import CheckResult, LayerVerdict, Totals


class VerifyDocument(Document):
    """Printed by `nm2trt verify --json`."""

    SCHEMA: ClassVar[str] = "nm2trt.verify/1"

    source: str
    kind: Literal["checkpoint", "onnx"]
    pattern: str
    """The pattern that layers are checked by unless something names another for them."""
    method: str | None
    """Training method that the file names."""
    strict: bool
    verdict: Literal["pass", "fail"]
    problems: list[str]
    """Why the verdict is fail, one line each."""
    notes: list[str]
    layers: list[LayerVerdict]
    excluded: list[str]
    totals: Totals


class VerifyManyDocument(Document):
    """Printed by `nm2trt verify --json` for more than one path."""

    SCHEMA: ClassVar[str] = "nm2trt.verify-many/1"

    verdict: Literal["pass", "fail"]
    files: list[VerifyDocument]


def document_of(result: CheckResult) -> VerifyDocument:
    """The same findings with schema, version and time."""
    return VerifyDocument(**{field.name: getattr(result, field.name) for field in fields(result)})


def json_of(results: Sequence[CheckResult]) -> str:
    """One document for one file, a VerifyManyDocument for more."""
    documents = [document_of(result) for result in results]
    if len(documents) == 1:
        return documents[0].to_json()
    passed = all(document.verdict == "pass" for document in documents)
    return VerifyManyDocument(verdict="pass" if passed else "fail", files=documents).to_json()
