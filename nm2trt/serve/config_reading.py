"""What a config.pbtxt says, read without protobuf: who wrote it, its backend, the versions that it has loaded."""

from __future__ import annotations

import hashlib
import re

_SIGNED = re.compile(r"# nm2trt package wrote this file; sha256 of all below this line: ([0-9a-f]{64})\n")


def sign(config: str) -> str:
    """Put a line on top of a config.pbtxt by which an edit by hand is told later."""
    digest = hashlib.sha256(config.encode()).hexdigest()
    return f"# nm2trt package wrote this file; sha256 of all below this line: {digest}\n{config}"


def is_edited(config: str) -> bool:
    """Whether somebody changed a config.pbtxt, or wrote it himself."""
    found = _SIGNED.match(config)
    return found is None or hashlib.sha256(config[found.end() :].encode()).hexdigest() != found.group(1)


def named_versions(config: str) -> set[int]:
    """Versions that a config.pbtxt asks for by number; none where it takes the latest."""
    found = re.search(r"\bspecific\b\s*:?\s*\{\s*versions\s*:\s*\[([\d,\s]*)\]", config)
    return {int(one) for one in found.group(1).split(",") if one.strip()} if found else set()


def loaded_versions(config: str, there: list[int]) -> list[int]:
    """Versions that Triton loads of those that are there, as config.pbtxt's version_policy has it."""
    named = named_versions(config)
    if named:
        return [number for number in there if number in named]
    if re.search(r"\bversion_policy\b\s*:?\s*\{\s*all\b", config):
        return there
    found = re.search(r"\bnum_versions\s*:\s*(\d+)", config)
    return there[-(int(found.group(1)) if found else 1) :]


def backend_of(config: str) -> str:
    """Backend that a config.pbtxt names, by `backend` or by the older `platform`; empty where it names none."""
    found = re.search(r'^\s*backend:\s*"([^"]+)"', config, re.MULTILINE)
    if found:
        return found.group(1)
    platform = re.search(r'^\s*platform:\s*"([^"]+)"', config, re.MULTILINE)
    return platform.group(1).partition("_")[0] if platform else ""
