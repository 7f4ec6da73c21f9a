"""The commands in the pages' code blocks, and the mark before each block that says which of them are run.

`<!-- run -->` runs all of a block; `<!-- run; not 2, 5: why -->` all but its second and fifth command;
`<!-- not run: why -->` none.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from helpers import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "examples" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
PROGRAMS = frozenset({"nm2trt", "python", "make", "pip", "torchrun", "accelerate", "sbatch", "sudo", "kubectl"})
_MARK = re.compile(r"<!-- (?:(?P<none>not run: \S.*)|run(?:; not (?P<numbers>\d+(?:, \d+)*): \S.*)?) -->")
_ASSIGNMENT = re.compile(r"[A-Z_0-9]+=\S*")


@dataclass(frozen=True)
class Block:
    """A code block that holds commands."""

    page: Path
    line: int
    commands: tuple[str, ...]
    mark: str | None

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.page.name}:{self.line}"

    @property
    def to_run(self) -> list[str]:
        """The commands that its mark does not leave out."""
        found = _MARK.fullmatch(self.mark or "")
        if found is None or found["none"]:
            return []
        left_out = {int(number) for number in (found["numbers"] or "").split(", ") if number}
        return [command for number, command in enumerate(self.commands, 1) if number not in left_out]

    @property
    def problem(self) -> str:
        """What is wrong with its mark; empty where nothing is."""
        if self.mark is None:
            return "no mark before it says whether its commands are run"
        found = _MARK.fullmatch(self.mark)
        if found is None:
            return f"its mark {self.mark!r} is none of those in tests/support/page_commands.py"
        numbers = [int(number) for number in (found["numbers"] or "").split(", ") if number]
        return "" if all(1 <= number <= len(self.commands) for number in numbers) else "it has fewer commands"


def blocks_of(page: Path) -> list[Block]:
    """Every code block of a page, fenced or indented, that holds a command."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found = []
    for start, code in _code(lines):
        commands = _commands(code)
        if commands:
            found.append(Block(page, start + 1, tuple(commands), _mark_before(lines, start)))
    return found


def _code(lines: list[str]) -> list[tuple[int, list[str]]]:
    """First line's index and text of each block."""
    found: list[tuple[int, list[str]]] = []
    at = 0
    while at < len(lines):
        start = at
        if lines[at].lstrip().startswith("```"):
            at += 1
            while at < len(lines) and not lines[at].lstrip().startswith("```"):
                at += 1
            found.append((start, [line.strip() for line in lines[start + 1 : at]]))
            at += 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            while at < len(lines) and lines[at].startswith("    "):
                at += 1
            found.append((start, [line[4:] for line in lines[start:at]]))
        else:
            at += 1
    return found


def _commands(code: list[str]) -> list[str]:
    """Whole commands; where lines start with a prompt, the others are what was printed."""
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(code)).splitlines()
    prompted = [line[2:] for line in joined if line.startswith("$ ")]
    return [line for line in prompted or joined if program_of(line) in PROGRAMS]


def program_of(line: str) -> str:
    """First word that is no assignment; of a line that changes the folder first, of what comes after."""
    words = line.rpartition("&& ")[2].split() if line.startswith("cd ") else line.split()
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words.pop(0)
    return words[0] if words else ""


def _mark_before(lines: list[str], start: int) -> str | None:
    above = [line for line in lines[max(0, start - 2) : start] if line.strip()]
    return above[-1].strip() if above and above[-1].startswith("<!--") else None


def split_command(command: str) -> list[list[str]]:
    """Arguments of each part of a command that && joins, without comments."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(command, comments=True):
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts
