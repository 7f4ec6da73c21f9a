"""Options of trtexec as its log and its command line spell them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

_TOGGLES = {"Data transfers": "transfers", "CUDA Graph": "graph", "Spin-wait": "spin"}
_PRECISIONS = {"--fp16": "FP16", "--bf16": "BF16", "--fp8": "FP8", "--int8": "INT8", "--int4": "INT4"}
_TYPES = re.compile(r"\b(?:FP|BF|TF|INT)\d", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Toggles:
    """What a time covers; None where neither log nor version tells."""

    transfers: bool | None = None
    graph: bool | None = None
    spin: bool | None = None

    def words(self) -> str:
        """All three in words."""
        states = {True: "on", False: "off", None: "not known"}
        return (
            f"data transfers {states[self.transfers]}, CUDA graph {states[self.graph]}, spin wait {states[self.spin]}"
        )


def read_toggles(options: Mapping[str, str]) -> Toggles:
    """What the options of a run say of its times."""
    found = {
        name: options[key].startswith("Enabled")
        for key, name in _TOGGLES.items()
        if options.get(key, "").startswith(("Enabled", "Disabled"))
    }
    return Toggles(**found)


def read_command_toggles(command: str, version: str) -> Toggles:
    """What a command line and the defaults of its release say of its times; nothing where one of them is missing."""
    if not command or not version:
        return Toggles()
    flags = set(_words(command))
    if int(version.partition(".")[0]) < 11:
        return Toggles("--noDataTransfers" not in flags, "--useCudaGraph" in flags, "--useSpinWait" in flags)
    return Toggles("--includeDataTransfers" in flags, "--noCudaGraph" not in flags, "--noSpinWait" not in flags)


def read_asked_precision(printed: str, command: str) -> str:
    """Types that the builder was allowed, as "FP32+FP16"; empty where the network alone decides ("Strongly Typed").

    Args:
        printed: As the list of options has it; empty where there is no list.
        command: The command line, which decides then.
    """
    if printed:
        return printed if _TYPES.search(printed) is not None else ""
    flags = set(_words(command))
    found = [word for flag, word in _PRECISIONS.items() if flag in flags]
    return "+".join(("FP32", *found)) if found and "--stronglyTyped" not in flags else ""


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def read_sizes(text: str) -> tuple[int, ...]:
    """(32, 3, 224, 224) of 32x3x224x224."""
    return tuple(int(size) for size in text.split("x") if size.isdigit() and len(size) < 12)


def read_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Shapes as trtexec's options spell them, `x:32x3x224x224,y:1x2`, or its log, `x=32x3`."""
    found = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*'?\"?(?P<name>.+?)['\"]*[:=](?P<sizes>\d+(?:x\d+)*)'?\"?\s*", part)
        if match is not None:
            found[match["name"]] = read_sizes(match["sizes"])
    return found


def read_command_shapes(command: str) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Shapes and implicit batch that a command line asks for; with --optShapes alone, trtexec times those."""
    options = {key: value for word in _words(command) for key, equals, value in [word.partition("=")] if equals}
    shapes = read_shapes(options.get("--shapes") or options.get("--optShapes") or "")
    batch = options.get("--batch", "")
    return shapes, int(batch) if batch.isdigit() and 0 < len(batch) < 9 else None


def read_version(digits: str) -> str:
    """8503 is 8.5.3, 101601 is 10.16.1."""
    number = int(digits[:9])
    scale = 1000 if number < 10_000 else 10_000
    minor = number % scale // 100
    return f"{number // scale}.{minor}.{number % 100}"


def parse_version(text: str) -> str:
    """8.5.3 of what follows "TensorRT version:"; empty where it is none."""
    if re.fullmatch(r"\d{4,6}", text):
        return read_version(text)
    match = re.match(r"\d+\.\d+(?:\.\d+)?", text)
    return match[0] if match is not None else ""
