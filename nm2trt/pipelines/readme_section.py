"""One section of a README.md that belongs to nm2trt; everything else in the file is its owner's and stays as it is.

The file is a Hugging Face card: YAML between two lines `---`, then Markdown. How its front matter is found follows
huggingface_hub's `RepoCard`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from nm2trt.errors import InputError
from nm2trt.library_errors import one_line

BEGIN = "<!-- nm2trt verify: begin. What stands between these two lines is replaced by nm2trt verify --model-card -->"
END = "<!-- nm2trt verify: end -->"

_FRONT_MATTER = re.compile(r"\A\s*---(\r\n|\r|\n)([\s\S]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z)")
_OTHER_PATH = "correct it, or name another file: --model-card PATH"

_LOGGER = logging.getLogger(__name__)


def read_readme(path: Path) -> str | None:
    """Read a README.md that can take the section; None where there is none.

    Raises:
        InputError: It is no UTF-8 text, its front matter cannot be parsed, or its marks are no pair.
        ModuleNotFoundError: It has a front matter, and PyYAML is not installed.
    """
    if not path.exists():
        return None
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"is no UTF-8 text: {one_line(error)}", where=path, hint=_OTHER_PATH) from None
    try:
        _check_text(text)
    except ValueError as error:
        raise InputError(one_line(error), where=path, hint=_OTHER_PATH) from None
    return text


def update_text(text: str | None, section: str, *, title: str, metadata: Mapping[str, str | list[str]]) -> str:
    """Put the section into a README, and what its front matter lacks.

    Args:
        text: The README as it is; None where there is none.
        section: Markdown, with "\\n" between its lines.
        title: Heading of a new README.
        metadata: Keys of the front matter, for a README that does not have them.

    Returns:
        The new text. Without the section and the keys that were added, it is the old one, character for character.

    Raises:
        ValueError: The front matter cannot be parsed, or the section's marks are no pair.
        ModuleNotFoundError: It has a front matter, and PyYAML is not installed.
    """
    if text is None:
        return f"---\n{_yaml_lines(metadata, chr(10))}---\n\n# {title}\n\n{BEGIN}\n{section}\n{END}\n"
    found = _FRONT_MATTER.match(text)
    if found is None:
        newline = "\r\n" if "\r\n" in text else "\n"
        front, body = f"---{newline}{_yaml_lines(metadata, newline)}---{newline}", text
    else:
        front, body = _completed(found, metadata), text[found.end() :]
    return _with_section(front, body, section)


def _check_text(text: str) -> None:
    found = _FRONT_MATTER.match(text)
    if found is not None:
        _yaml_keys(found[2])
    _with_section("", text[found.end() :] if found else text, "")


def _completed(found: re.Match[str], metadata: Mapping[str, str | list[str]]) -> str:
    """The front matter with the keys that it lacks, below its own."""
    newline, own = found[1], found[2]
    keys = _yaml_keys(own)
    missing = {key: value for key, value in metadata.items() if key not in keys}
    if not missing:
        return found[0]
    whole = own + newline + _yaml_lines(missing, newline).removesuffix(newline)
    try:
        fits = _yaml_keys(whole) == keys | missing.keys()
    except ValueError:
        fits = False
    if not fits:
        # In flow style, say, or closed by its own end mark.
        _LOGGER.info("the card's front matter is left as it is: no key can be added below its own")
        return found[0]
    return found[0][: found.end(2) - len(own)] + whole + found[0][found.end(2) :]


def _yaml_keys(text: str) -> set[object]:
    import yaml

    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"its front matter cannot be parsed: {one_line(error, whole=True)}") from None
    if not isinstance(data, dict | None):
        raise ValueError("its front matter is no table of keys")  # noqa: TRY004 -- what is wrong is the file
    return set(data or {})


def _yaml_lines(metadata: Mapping[str, str | list[str]], newline: str) -> str:
    lines = []
    for key, value in metadata.items():
        # A JSON string is one of YAML's, too.
        values = [f"- {json.dumps(one)}" for one in value] if isinstance(value, list) else []
        lines += [f"{key}:", *values] if values else [f"{key}: {json.dumps(value)}"]
    return "".join(line + newline for line in lines)


def _with_section(front: str, body: str, section: str) -> str:
    """Front matter and body with the section in its place, or at the end."""
    begins, ends = _lines_that_are(BEGIN, body), _lines_that_are(END, body)
    if not begins and not ends:
        newline = "\r\n" if "\r\n" in front + body else "\n"
        # Markdown needs an empty line before it, and a front matter the end of its last.
        gap = newline if (front + body).endswith("\n") else 2 * newline
        return front + body + gap + _marked(section, newline) + newline
    if len(begins) != 1 or len(ends) != 1 or begins[0].start() > ends[0].start():
        raise ValueError(f"holds {len(begins)} begin and {len(ends)} end marks of nm2trt's section, not one of each")
    newline = "\r\n" if begins[0][0].endswith("\r") else "\n"
    return front + body[: begins[0].start()] + _marked(section, newline) + body[ends[0].start() + len(END) :]


def _marked(section: str, newline: str) -> str:
    return newline.join([BEGIN, *section.split("\n"), END])


def _lines_that_are(mark: str, body: str) -> list[re.Match[str]]:
    return list(re.finditer(rf"^{re.escape(mark)}[ \t]*\r?$", body, re.MULTILINE))
