"""Hooks of mkdocs: README.md becomes the first page, and links to files outside of docs/ become plain names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:]+)(#[^)]*)?\)")


def on_startup(**_: Any) -> None:
    """Lay the package out as a wheel holds it, because the API's reader cannot follow setuptools' package-dir."""
    site = _ROOT / "build" / "docs" / "nm2trt"
    shutil.rmtree(site, ignore_errors=True)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(_ROOT / "nm2trt", site, ignore=skip)
    for name in ("training", "calibration"):
        shutil.copytree(_ROOT / name, site / name, ignore=skip)


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add README.md as index.md; its links start at the repository's root."""
    text = (_ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn a link to a file that is no page of the site into its name: the site does not hold the source."""
    folder = Path(config["docs_dir"]) / Path(page.file.src_uri).parent

    def replace(found: re.Match[str]) -> str:
        target = (folder / found[2]).resolve()
        inside = target.is_relative_to(config["docs_dir"]) and (target.exists() or found[2] == "index.md")
        return found[0] if inside else found[1]

    return _LINK.sub(replace, markdown)
