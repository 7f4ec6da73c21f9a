"""Hold every name that nm2trt reads from a TensorRT object against what each release offers.

    python tests/tensorrt_double/check_api.py nm2trt

TensorRT's wheels hold no type information, so a name that one release lacks would only show on a machine with that
release. This walks the syntax tree: what is annotated with a class of `nm2trt/tensorrt_api/types.py`, and what follows
from it by assignment, call and attribute, is a TensorRT object. What not every release has must be read with
`getattr(object, "name", default)`. Nobody but `nm2trt/tensorrt_api/` imports TensorRT.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

SURFACES = Path(__file__).resolve().parent / "surfaces"
TYPES = "tensorrt_api/types.py"
MODULE = "Tensorrt"
HOME = "tensorrt_api"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Surface:
    """One release."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        self.name = path.stem
        self._names, self._classes = set(content["names"]), content["classes"]

    def offers(self, kind: str, name: str) -> bool:
        """Whether an object of this class, or the module, has the name."""
        return name in (self._names if kind == MODULE else self._classes.get(kind, ()))


def load_surfaces() -> list[Surface]:
    """All releases whose surface is kept."""
    return [Surface(path) for path in sorted(SURFACES.glob("*.json"))]


class Known:
    """The classes of types.py, and what their members are."""

    def __init__(self, package: Path) -> None:
        tree = ast.parse((package / TYPES).read_text(encoding="utf-8"))
        self.members: dict[str, dict[str, str]] = {}
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(name_of(base) == "Protocol" for base in node.bases):
                self.members[node.name] = dict(self._members(node))

    def _members(self, node: ast.ClassDef) -> Iterator[tuple[str, str]]:
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                yield item.target.id, annotated(item.annotation)
            elif isinstance(item, _FUNCTIONS):
                yield item.name, annotated(item.returns).removeprefix("_")


def name_of(node: ast.expr | None) -> str:
    """Last part of a name or attribute."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def annotated(node: ast.expr | None) -> str:
    """The class that an annotation names, `| None` left out; "" for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return annotated(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.BinOp):
        return annotated(node.left) or annotated(node.right)
    return name_of(node)


class Checker:
    """Walks one package."""

    def __init__(self, package: Path) -> None:
        self._package = package
        self._known = Known(package)
        self._surfaces = load_surfaces()
        self._trees = {
            path: ast.parse(path.read_text(encoding="utf-8"))
            for path in sorted(package.rglob("*.py"))
            if path.relative_to(package).as_posix() != TYPES
        }
        self._returns = self._collect_returns()
        self._fields = self._collect_fields()

    def problems(self) -> list[str]:
        """One line for each name that some release lacks."""
        found = [
            self._problem(TYPES, 0, kind, name) for kind, members in self._known.members.items() for name in members
        ]
        for path, tree in self._trees.items():
            where = path.relative_to(self._package).as_posix()
            found += self._imports(where, tree)
            for function in ast.walk(tree):
                if isinstance(function, _FUNCTIONS):
                    found += self._reads(where, function)
        return [line for line in dict.fromkeys(found) if line]

    def _problem(self, where: str, line: int, kind: str, name: str) -> str:
        if name.startswith("__") and name != "__version__":
            return ""
        lacking = [one.name for one in self._surfaces if not one.offers(kind, name)]
        return f"{where}:{line}: {kind}.{name} is missing in {', '.join(lacking)}" if lacking else ""

    def _imports(self, where: str, tree: ast.AST) -> Iterator[str]:
        for node in ast.walk(tree):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.split(".")[0] in ("tensorrt", "tensorrt_rtx") and not where.startswith(HOME):
                    yield f"{where}:{node.lineno}: imports {name}; use nm2trt.tensorrt_api.load_tensorrt"

    def _collect_returns(self) -> dict[str, str]:
        """Functions of the package that return a TensorRT object; `require` returns what it is given."""
        found = {}
        for tree in self._trees.values():
            for node in ast.walk(tree):
                if isinstance(node, _FUNCTIONS) and annotated(node.returns) in self._known.members:
                    found[node.name] = annotated(node.returns)
        return found

    def _collect_fields(self) -> dict[str, str]:
        """Attributes of the package's own classes that hold a TensorRT object, by their name."""
        found = {}
        for tree in self._trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, (ast.Attribute, ast.Name)):
                    kind = annotated(node.annotation)
                    if kind in self._known.members and isinstance(node.target, ast.Attribute):
                        found[node.target.attr] = kind
        return found

    def _reads(self, where: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
        scope = {
            one.arg: annotated(one.annotation)
            for one in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        }
        for node in ast.walk(function):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                scope[node.target.id] = annotated(node.annotation)
            elif isinstance(node, ast.Assign):
                self._assign(node, scope)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute):
                kind = self._kind(node.value, scope)
                if kind in self._known.members:
                    yield self._problem(where, node.lineno, kind, node.attr)

    def _assign(self, node: ast.Assign, scope: dict[str, str]) -> None:
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                kind = self._kind(value, scope)
                if isinstance(name, ast.Name) and kind:
                    scope[name.id] = kind

    def _kind(self, node: ast.expr, scope: dict[str, str]) -> str:
        """The TensorRT class of an expression; "" where it is none or unknown."""
        kind = self._inferred(node, scope)
        return kind if kind in self._known.members else ""

    def _inferred(self, node: ast.expr, scope: dict[str, str]) -> str:
        if isinstance(node, ast.Name):
            return scope.get(node.id, "")
        if isinstance(node, ast.Attribute):
            owner = self._kind(node.value, scope)
            return self._known.members[owner].get(node.attr, "") if owner else self._fields.get(node.attr, "")
        if isinstance(node, ast.Call):
            if name_of(node.func) == "require" and node.args:
                return self._kind(node.args[0], scope)
            if isinstance(node.func, ast.Attribute):
                owner = self._kind(node.func.value, scope)
                return self._known.members[owner].get(node.func.attr, "") if owner else ""
            return self._returns.get(name_of(node.func), "")
        return ""


def main(arguments: list[str]) -> int:
    """Check a package; 1 where a name is missing."""
    problems = Checker(Path(arguments[0])).problems()
    for line in problems:
        print(line)
    releases = ", ".join(one.name for one in load_surfaces())
    print(f"{len(problems)} names that not every release has (checked against {releases})")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
