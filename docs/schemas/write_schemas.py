"""Writes the JSON Schema of every document of nm2trt beside this file: `python docs/schemas/write_schemas.py`."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
from pathlib import Path

import nm2trt
from nm2trt.artifacts import Document

FOLDER = Path(__file__).resolve().parent


def find_documents() -> dict[str, type[Document]]:
    """File name -> document, of every subclass of `Document` below nm2trt."""
    for module in pkgutil.walk_packages(nm2trt.__path__, "nm2trt."):
        # Importing all of nm2trt would need every extra.
        source = importlib.util.find_spec(module.name)
        if source is not None and source.origin and "(Document)" in Path(source.origin).read_text(encoding="utf-8"):
            importlib.import_module(module.name)
    found = {}
    for kind in Document.__subclasses__():
        if kind.__module__.startswith("nm2trt."):
            found[kind.FILE or f"{kind.SCHEMA.removeprefix('nm2trt.').partition('/')[0]}.json"] = kind
    return dict(sorted(found.items()))


def schema_text(kind: type[Document]) -> str:
    """What the file holds; the same that `nm2trt COMMAND --schema` prints where a command has it."""
    return json.dumps(kind.json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    for name, kind in find_documents().items():
        (FOLDER / name).write_text(schema_text(kind), encoding="utf-8")
        print(f"{name}: {kind.SCHEMA}")
