"""No code takes a sentence apart that other code of nm2trt put together."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SEAMS = ("; ", ": ", ". ", ", batch ", " because ")
READS_OTHERS_TEXT = {
    "nm2trt/evidence": "what TensorRT writes",
    "nm2trt/library_errors.py": "errors of other libraries",
}


def test_no_sentence_is_taken_apart() -> None:
    found = []
    for path in (path for folder in ("nm2trt", "calibration", "training") for path in (ROOT / folder).rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        if where.startswith(tuple(READS_OTHERS_TEXT)):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            separator = node.args[0]
            if node.func.attr in ("partition", "rpartition", "split", "rsplit") and (
                isinstance(separator, ast.Constant) and separator.value in _SEAMS
            ):
                found.append(f"{where}:{node.lineno}")
    assert found == []
