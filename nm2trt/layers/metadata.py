"""What nm2trt writes about sparsity into its own files, and how it is read back.

Safetensors metadata and ONNX metadata_props are maps of strings; both carry the same two keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nm2trt.errors import ConfigError, InputError
from nm2trt.pattern import NMPattern

PATTERNS_KEY = "nm2trt.patterns"
"""JSON object: name of each tensor that was trained sparse -> "N:M"."""
METHOD_KEY = "nm2trt.method"
"""Training method: "sr-ste", "dense", ..."""


def claimed_patterns(metadata: Mapping[str, str], where: Path) -> dict[str, str] | None:
    """Read the patterns that a file claims for its tensors; None where it claims nothing.

    Raises:
        InputError: The value is no JSON object of tensor names to N:M patterns.
    """
    raw = metadata.get(PATTERNS_KEY)
    if raw is None:
        return None
    hint = "write the file again with nm2trt, or remove that key"
    try:
        claims = json.loads(raw)
    except (json.JSONDecodeError, RecursionError):
        raise InputError(f"metadata key {PATTERNS_KEY} is no JSON", where=where, hint=hint) from None
    if not isinstance(claims, dict) or not all(isinstance(value, str) for value in claims.values()):
        raise InputError(f"metadata key {PATTERNS_KEY} is no map of tensor names to N:M", where=where, hint=hint)
    try:
        for value in claims.values():
            NMPattern.parse(value)
    except ConfigError as error:
        raise InputError(f"metadata key {PATTERNS_KEY}: {error.what}", where=where, hint=hint) from None
    return claims
