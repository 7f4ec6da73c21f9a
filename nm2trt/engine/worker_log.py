"""Finds the reason of a failure in the log of a build or refit."""

from __future__ import annotations

import re

_PARSER_ERROR = re.compile(r"^.*?In node (\d+) with name: (.*?) and operator: (\S+) \(\w+\): (.*)$", re.MULTILINE)
_ERROR_LINE = re.compile(r"^(?:\[[^\]\n]*\] )*?\[[EF!]\] (.*)$", re.MULTILINE)
"""Polygraphy's, ours ("[E] ...") and TensorRT's own ("[11/26/2026-10:00:00] [TRT] [E] ...")."""
_HARMLESS = re.compile(
    # Polygraphy's lazy importer asks for plain TensorRT before it looks at its own RTX switch.
    r"Module: 'tensorrt' is required"
    # The parser's multi-line report of what the one-line form says again.
    r"|ModelImporter\.cpp"
    # RTX looks for a GPU in passing; it builds without one.
    r"|cudaError 35"
)


def refused_nodes(log: str) -> list[str]:
    """Every node that the ONNX parser refused, in words; empty where it refused none.

    Args:
        log: The whole log.
    """
    return list(
        dict.fromkeys(
            f"node {index} {name or '(no name)'} ({operator}): {reason.strip()}"
            for index, name, operator, reason in _PARSER_ERROR.findall(log)
        )
    )


def explain(log: str, fallback: str) -> str:
    """Find the errors in a builder's log: every node that the parser refused, else the first error lines.

    Args:
        log: The whole log.
        fallback: What to say when the log holds no error.
    """
    if refused := refused_nodes(log):
        return "the ONNX parser refused " + "; ".join(refused)
    lines = dict.fromkeys(line.strip() for line in _ERROR_LINE.findall(log) if not _HARMLESS.search(line))
    return "; ".join([*lines][:3]) or fallback
