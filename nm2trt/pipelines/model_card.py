"""A Hugging Face model card with what verify found: a section of README.md, and its front matter.

A file can prove two of the four facts about sparsity, legal and eligible; the card says so of the other two.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nm2trt._version import __version__
from nm2trt.artifacts.files import sha256_of, write_atomic
from nm2trt.errors import ConfigError
from nm2trt.layers import source_files
from nm2trt.layers.config_json import CONFIG, read_model_type
from nm2trt.pipelines.readme_section import read_readme, update_text
from nm2trt.pipelines.verify import VerifyConfig, printable
from nm2trt.verify import UNREAD_VERDICTS, CheckResult, LayerVerdict
from nm2trt.verify.hints import BLIND

FILE = "README.md"
_TAGS = ["nm2trt", "n-m-sparsity"]

Progress = Callable[[str], None]


def card_path(source: Path, asked: Path | None) -> Path:
    """Settle where the card of a source is, and refuse it before any work is done.

    Args:
        source: What is verified.
        asked: A .md file, or a folder; None takes README.md in `source`, which must be a folder then.

    Raises:
        ConfigError: There is no such place for it.
        InputError: The file that is there cannot take the section; see `read_readme`.
    """
    where = f"--model-card {asked or ''}".strip()
    if asked is None and source.is_file():
        raise ConfigError("a file has no card of its own", where=where, hint="name the card: --model-card PATH.md")
    if asked is None:
        target = source / FILE
        # That there is no such folder is for verify to say.
        if not source.exists():
            return target
    else:
        target = asked / FILE if asked.is_dir() else asked
    if target.is_dir() or target.suffix.lower() != ".md":
        raise ConfigError("is no .md file", where=where, hint="name a .md file, or a folder for its README.md")
    if not target.parent.is_dir():
        raise ConfigError("parent directory does not exist", where=where, hint="name a file in an existing folder")
    read_readme(target)
    return target


def write_model_card(
    source: Path | str,
    result: CheckResult,
    config: VerifyConfig | None = None,
    *,
    card: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write what a check found into a model card: nm2trt's own section, and keys that the front matter lacks.

    Everything else in the file stays byte for byte.

    Args:
        source: What was verified.
        result: What `verify_file` found in it.
        config: What it was checked against, for the line that checks it again.
        card: A .md file, or a folder for its README.md; None takes README.md in `source`, which must be a folder then.
        progress: Told what is being done.

    Returns:
        The file that was written.

    Raises:
        ConfigError: There is no such place for the card.
        InputError: The file that is there cannot take the section; it is left as it was.

    Example:
        >>> from nm2trt import verify_file
        >>> card = write_model_card("model.onnx", verify_file("model.onnx"), card=Path("card.md"))
        >>> "2:4" in card.read_text()
        True
    """
    source = Path(source)
    target = card_path(source, card)
    name = _name_for(source, target)
    files = []
    for file in source_files(source):
        if progress is not None:
            progress(f"hashing {file.name}")
        files.append((_name_inside(file, source), file.stat().st_size, sha256_of(file)))
    section = "\n".join(_section_lines(_for_card(result, name), files, _command(name, config or VerifyConfig())))
    text = read_readme(target)
    updated = update_text(text, section, title=_inline(target.resolve().parent.name), metadata=_metadata(source))
    if updated != text:
        write_atomic(target, updated)
    return target


def _metadata(source: Path) -> dict[str, str | list[str]]:
    folder = source if source.is_dir() else source.parent
    library: dict[str, str | list[str]] = {}
    # What transformers' from_pretrained finds the network's class by.
    if read_model_type(folder / CONFIG):
        library = {"library_name": "transformers"}
    return {**library, "tags": _TAGS}


def _name_for(source: Path, target: Path) -> str:
    """The source as seen from the card's folder; never a path of this machine."""
    if source.resolve() == target.parent.resolve():
        return "."
    return source.resolve().name


def _name_inside(file: Path, source: Path) -> str:
    return file.relative_to(source if source.is_dir() else source.parent).as_posix()


def _for_card(result: CheckResult, name: str) -> CheckResult:
    """The result with `name` in the place of the path that was given, and without guesses of what is chosen."""

    def renamed(lines: list[str]) -> list[str]:
        # A name without a folder is no path of this machine, and may be part of any word.
        return [line.replace(result.source, name) for line in lines] if "/" in result.source else lines

    return replace(
        result,
        source=name,
        problems=renamed(result.problems),
        notes=renamed([note for note in result.notes if note != BLIND]),
        layers=[replace(layer, hint="") for layer in result.layers],
    )


def _command(name: str, config: VerifyConfig) -> str:
    words = ["nm2trt", "verify", name if not name.startswith("-") else f"./{name}"]
    words += ["--pattern", str(config.pattern)] if config.pattern else []
    for glob, pattern in config.layer_patterns.items():
        words += ["--layer", f"{glob}={pattern}"]
    for option, globs in (("--exclude", config.exclude), ("--require", config.require)):
        for glob in globs:
            words += [option, glob]
    return shlex.join([*words, *(["--strict"] if config.strict else [])])


def _section_lines(result: CheckResult, files: Sequence[tuple[str, int, str]], command: str) -> list[str]:
    checked = [layer for layer in result.layers if layer.verdict not in UNREAD_VERDICTS]
    return [
        "## N:M sparsity",
        "",
        f"Checked by nm2trt {__version__}: **{result.verdict}**. To check it again, in this folder:",
        "",
        "    pip install nm2trt",
        f"    {printable(command)}",
        "",
        *_fact_lines(result),
        "",
        *[f"- {_plain_words(line)}" for line in (*result.problems, *result.notes)],
        *([""] if result.problems or result.notes else []),
        "| file | bytes | sha256 |",
        "|---|---|---|",
        *[f"| {_inline(name)} | {size:,} | `{digest}` |" for name, size, digest in files],
        "",
        "<details><summary>Layer by layer</summary>",
        "",
        "| layer | shape | N:M | verdict | density | TensorRT |",
        "|---|---|---|---|---|---|",
        *[_layer_line(layer) for layer in checked],
        "",
        "</details>",
        "",
        "<details><summary>The verify document</summary>",
        "",
        "```json",
        *_document_lines(result),
        "```",
        "",
        "</details>",
    ]


def _fact_lines(result: CheckResult) -> list[str]:
    totals = result.totals
    held = Counter(layer.pattern for layer in result.layers if layer.verdict == "conforms")
    patterns = ", ".join(f"{count} hold {pattern}" for pattern, count in held.most_common()) or "none holds a pattern"
    share = f", {totals.weights_in_conforming / totals.weights:.1%} of their weights" if totals.weights else ""
    unchecked = f"; {totals.not_checked} tensors that may be weights were not checked" if totals.not_checked else ""
    return [
        "| fact | what is known |",
        "|---|---|",
        f"| legal pattern | of {totals.prunable} prunable layers {patterns}{share}{unchecked} |",
        f"| eligible | {totals.eligible} layers: TensorRT's documented rules allow a sparse kernel, in FP16 or INT8 |",
        "| sparse kernel chosen | not known from a file: a build on a GPU tells (`nm2trt export`, `nm2trt inspect`) |",
        "| faster | not known from a file: a measurement tells (`nm2trt profile`) |",
    ]


def _layer_line(layer: LayerVerdict) -> str:
    cells = (
        _inline(layer.name),
        "x".join(map(str, layer.shape)),
        layer.pattern,
        layer.verdict,
        "" if layer.density is None else f"{layer.density:.3f}",
        _plain_words(layer.tensorrt),
    )
    return f"| {' | '.join(cells)} |"


def _document_lines(result: CheckResult) -> list[str]:
    """The document, a line a layer; without its time, so that the same finding is the same text."""
    # Only here: the table of a verdict needs no pydantic.
    from nm2trt.verify.verify_schema import document_of

    document = document_of(result).model_dump(mode="json", by_alias=True, exclude={"created_utc"})
    layers = document.pop("layers")
    lines = [f"{_json(key)}: {_json(value)}," for key, value in document.items()]
    rows = [f"{_json(layer)}{',' if index < len(layers) else ''}" for index, layer in enumerate(layers, 1)]
    return ["{", *lines, '"layers": [', *rows, "]", "}"]


def _json(value: object) -> str:
    # A name in it must not look like the section's own marks.
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c")


def _inline(text: str) -> str:
    """A name as code, in a table as well."""
    code = re.sub(r"[`|<]", lambda found: rf"\x{ord(found[0]):02x}", printable(text))
    return f"`{code}`"


def _plain_words(text: str) -> str:
    """A sentence in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", printable(text))
