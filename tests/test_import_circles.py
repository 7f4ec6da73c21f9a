"""No module imports itself by way of others, at its top or inside a function: a circle hides a missing layer.

import-linter reads imports between packages; this reads every module, since most circles lie inside one package.
Imports under TYPE_CHECKING run nowhere and are left out. An `__init__` that loads names by
`importlib` when they are asked for imports nothing that is seen here: it hands on, and decides nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"nm2trt": "nm2trt", "training": "nm2trt.training", "calibration": "nm2trt.calibration"}


def modules_under(root: Path) -> dict[str, Path]:
    found = {}
    for folder, package in PACKAGES.items():
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run, those inside functions too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from statements(child)


def imports_of(path: Path, known: set[str]) -> set[str]:
    names = []
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if name in known else node.module for name in full]
    return {name for name in names if name in known}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules each of which reaches the others, by a plain search from every module."""

    def reached(start: str) -> set[str]:
        seen, pending = set(), list(graph[start])
        while pending:
            name = pending.pop()
            if name not in seen:
                seen.add(name)
                pending += graph[name]
        return seen

    reach = {name: reached(name) for name in graph}
    found: list[set[str]] = []
    for name in sorted(graph):
        if name in reach[name] and not any(name in circle for circle in found):
            found.append({name} | {other for other in reach[name] if name in reach[other]})
    return found


def graph_under(root: Path) -> dict[str, set[str]]:
    modules = modules_under(root)
    return {name: imports_of(path, set(modules)) - {name} for name, path in modules.items()}


def test_no_module_imports_itself_by_way_of_others():
    graph = graph_under(ROOT)
    assert len(graph) > 300
    assert {"nm2trt.layers", "nm2trt.pattern"} <= graph["nm2trt.verify.check"]
    assert circles(graph) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import nm2trt.b", True),
        ("def f():\n    from nm2trt import b", True),
        ("def f():\n    from nm2trt.b import thing", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nm2trt.b", False),
    ],
)
def test_a_circle_is_seen_wherever_the_import_stands(tmp_path, text, found):
    folder = tmp_path / "nm2trt"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text(text)
    (folder / "b.py").write_text("class thing:\n    def f(self):\n        from nm2trt.a import x")
    assert circles(graph_under(tmp_path)) == ([{"nm2trt.a", "nm2trt.b"}] if found else [])
