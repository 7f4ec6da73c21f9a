"""Which tests `make quick` runs: those that start no process, train nothing and build no engine.

Decided from what a test can reach, not from a list of tests: the names that its code uses, those of its fixtures, and
those of every function of the tests' own files that it calls.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

HEAVY_NAMES = frozenset({
    "subprocess", "Popen", "multiprocessing", "spawn", "mp_spawn",  # processes
    "nm2trt", "nm2trt_on_double", "forked_python", "runpy",  # commands
    "train", "finetune",  # training
    "build_engines", "build_engine", "start_builder", "requires_rtx", "export_run", "export_network",
    "build_variants", "build_plan", "export_torch", "float32_model", "export_source", "exported", "TensorrtRtxBuilder",
    "onnx_from_module",
    "profile_build", "run_demo", "Worker", "fit_constants", "renew_engine_cache",
})  # fmt: skip
"""Names whose use makes a test long. A name too many here costs a test in `make quick`, never one in `make test`."""

SLOW_MARKS = frozenset({"slow", "not_quick", "gpu", "tensorrt"})


def is_quick(item) -> bool:
    """Whether a collected test starts no process, trains nothing and builds no engine."""
    if any(mark.name in SLOW_MARKS for mark in item.iter_markers()):
        return False
    functions = [(getattr(item.function, "hypothesis", None) and item.function.hypothesis.inner_test) or item.function]
    for name in item.fixturenames:
        functions += [fixture.func for fixture in item._fixtureinfo.name2fixturedefs.get(name, ())]
    seen: set[types.CodeType] = set()
    return not any(_reaches_heavy(function, seen) for function in functions)


def _reaches_heavy(function, seen: set[types.CodeType]) -> bool:
    function = getattr(function, "__wrapped__", function)
    code = getattr(function, "__code__", None)
    if code is None or code in seen or not _is_of_the_tests(code):
        return False
    seen.add(code)
    for name in _names(code):
        if name in HEAVY_NAMES:
            return True
        value = function.__globals__.get(name)
        if isinstance(value, type):
            # A class of the tests: any of its methods may be called.
            if any(_reaches_heavy(method, seen) for method in vars(value).values() if callable(method)):
                return True
        elif callable(value) and _reaches_heavy(value, seen):
            return True
    return False


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_of_the_tests(code: types.CodeType) -> bool:
    return Path(code.co_filename).is_relative_to(TESTS)
