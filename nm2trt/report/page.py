"""One self-contained HTML page, made of sections, made of blocks. The template owns how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from nm2trt._version import __version__
from nm2trt.artifacts import Facts

Tone = Literal["good", "bad", "unknown", "plain"]

_FACTS = {
    "legal": "Legal pattern",
    "eligible": "Eligible in TensorRT",
    "chosen": "Sparse kernel chosen",
    "faster": "Faster",
}
_TONES: dict[str, Tone] = {"proved": "good", "disproved": "bad", "unknown": "unknown"}


@dataclass(frozen=True, slots=True)
class Badge:
    """A short state in a pill; usable as a table cell."""

    text: str
    tone: Tone = "plain"


Cell = str | Badge


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph."""

    kind: ClassVar[str] = "prose"
    text: str
    quiet: bool = False
    """Set small and gray: a note, not the message."""


@dataclass(frozen=True, slots=True)
class Callout:
    """The one sentence that must not be missed."""

    kind: ClassVar[str] = "callout"
    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """One number with what it counts."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class KeyFigures:
    """A strip of numbers."""

    kind: ClassVar[str] = "key_figures"
    figures: tuple[KeyFigure, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; columns named in `numeric` are set flush right."""

    kind: ClassVar[str] = "table"
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int] = frozenset()
    """Indices of the columns that hold numbers."""
    code: frozenset[int] = frozenset()
    """Indices of the columns that hold names as they stand in files."""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """SVG from `figure.svg_markup` or `curves.curves_svg`: the only markup that is not escaped."""

    kind: ClassVar[str] = "drawing"
    markup: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class FactList:
    """The four facts, each with its state and evidence."""

    kind: ClassVar[str] = "facts"
    facts: Facts

    def rows(self) -> list[tuple[str, Badge, str]]:
        """(title, state, evidence)."""
        return [(_FACTS[name], Badge(state, _TONES[state]), evidence) for name, state, evidence in self.facts.rows()]


@dataclass(frozen=True, slots=True)
class Commands:
    """Lines to type."""

    kind: ClassVar[str] = "commands"
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Properties:
    """Names with values."""

    kind: ClassVar[str] = "properties"
    items: tuple[tuple[str, str], ...]


Block = Prose | Callout | KeyFigures | Table | Drawing | FactList | Commands | Properties


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with blocks below it."""

    title: str
    blocks: tuple[Block, ...]
    lead: str = ""
    """One sentence under the heading."""
    folded: bool = field(default=False)
    """Shown closed: reference matter, such as the environment."""


def render_page(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    *,
    headline: str = "",
    key_figures: Sequence[KeyFigure] = (),
    created_utc: str = "",
) -> str:
    """Render a page that opens offline: no script, no font, no picture from elsewhere.

    Args:
        title: Of the page and its first heading.
        subtitle: Network, data, pattern in one line.
        sections: In their order; with more than two, they are listed on top.
        headline: The verdict in words, set large.
        key_figures: The numbers that a reader came for, at most about six.
        created_utc: ISO time of the measurement, for the footer.

    Returns:
        HTML. All text is escaped, except the SVG of `Drawing`.
    """
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            subtitle=subtitle,
            sections=sections,
            headline=headline,
            key_figures=key_figures,
            created_utc=created_utc,
            version=__version__,
            is_badge=lambda cell: isinstance(cell, Badge),
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("nm2trt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
