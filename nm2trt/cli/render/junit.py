"""Verdicts as a JUnit file, which CI systems show test by test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from nm2trt.cli.render.verify import first_violation_words, plain

if TYPE_CHECKING:
    from nm2trt.pipelines.verify import CheckResult

_HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'


def check_target(path: Path) -> None:
    """Refuse to write over anything but an older report.

    Raises:
        ConfigError: The path is a folder, its folder is missing, or it is some other file.
    """
    from nm2trt.errors import ConfigError

    if path.is_dir():
        raise ConfigError("is a folder", where=f"--junit {path}", hint="name a file")
    if not path.parent.is_dir():
        raise ConfigError(
            "parent directory does not exist", where=f"--junit {path}", hint="name a file in an existing folder"
        )
    if path.exists():
        with path.open("rb") as file:
            if file.read(len(_HEAD) + 11) != (_HEAD + "<testsuites").encode():
                raise ConfigError("exists and is no JUnit report", where=f"--junit {path}", hint="choose another name")


def write_junit(results: list[CheckResult], path: Path) -> None:
    """Write the file in one piece."""
    from nm2trt.artifacts import write_atomic

    write_atomic(path, junit_from_documents(results))


def junit_from_documents(documents: list[CheckResult]) -> str:
    """One test suite per file, one test per prunable layer, one for the file's verdict as a whole."""
    from nm2trt.pipelines.verify import UNREAD_VERDICTS

    root = ET.Element("testsuites", name="nm2trt verify")
    for document in documents:
        suite = ET.SubElement(root, "testsuite", name=plain(document.source))
        failures = 0
        checked = [layer for layer in document.layers if layer.verdict not in UNREAD_VERDICTS]
        for layer in checked:
            case = ET.SubElement(suite, "testcase", classname=plain(document.source), name=plain(layer.name))
            if layer.verdict in ("violates", "wrong-axis", "zero-point"):
                failures += 1
                words = "; ".join(filter(None, (layer.note, first_violation_words(layer))))
                failure = ET.SubElement(
                    case, "failure", type=layer.verdict, message=f"{layer.pattern}: {layer.verdict}"
                )
                failure.text = plain(words)
            else:
                ET.SubElement(case, "system-out").text = f"{layer.pattern}: {layer.verdict}; TensorRT: {layer.tensorrt}"
        case = ET.SubElement(suite, "testcase", classname=plain(document.source), name="verdict")
        if document.verdict == "fail":
            failures += 1
            ET.SubElement(case, "failure", type="fail", message=plain("; ".join(document.problems)))
        suite.set("tests", str(len(checked) + 1))
        suite.set("failures", str(failures))
    ET.indent(root)
    return _HEAD + ET.tostring(root, encoding="unicode") + "\n"
