"""What nm2trt/cli may look like: short functions, and no stage but through `nm2trt.pipelines`."""

import ast

from helpers import REPOSITORY

CLI = REPOSITORY / "nm2trt" / "cli"
LONGEST = 40
BASE = {"_version", "artifacts", "cli", "errors", "extras", "pattern", "pipelines", "selectors", "threads"}
"""Children of nm2trt that the command line may import."""


def long_functions(source, longest=LONGEST):
    """Names of functions whose text, without decorators, has more lines."""
    return {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno + 1 > longest
    }


def imported_children(source):
    """Children of nm2trt that a file imports anywhere, also inside functions and for types only."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("nm2trt.")}


def sources():
    found = {path.relative_to(CLI).as_posix(): path.read_text(encoding="utf-8") for path in CLI.rglob("*.py")}
    assert len(found) > 30
    return found


def test_no_function_is_longer_than_forty_lines():
    found = {name: long_functions(text) for name, text in sources().items()}
    assert {name: long for name, long in found.items() if long} == {}


def test_stages_are_imported_through_pipelines_only():
    found = {name: imported_children(text) - BASE for name, text in sources().items()}
    assert {name for name, children in found.items() if children} == set()


def test_the_measure_itself():
    body = "\n".join("    x = 1" for _ in range(LONGEST - 1))
    assert long_functions(f"@d(\n1,\n)\ndef f():\n{body}\n") == set()
    assert long_functions(f"class C:\n  def f():\n{body}\n    x = 1\n") == {"f"}
    code = "def f():\n    from nm2trt.serve.check import a\n    import nm2trt.verify\nfrom nm2trt import ort, pattern\n"
    assert imported_children(code) == {"serve", "verify", "ort", "pattern"}
