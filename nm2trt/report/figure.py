"""One way to draw: a figure is made once, in named colors, and becomes a PNG or an SVG that follows the page's scheme.

The light scheme's colors are the names. A PNG keeps them; in an SVG each becomes a CSS variable, so that the same
figure is legible on a light and on a dark page. matplotlib's object API only: no pyplot, no global state.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1c2126"
MUTED = "#626b75"
GRID = "#dde1e6"
DENSE = "#5b6b7f"
SPARSE = "#0b7a75"
AGAIN = "#6fb3ae"
ACCENT = "#b4541a"

COLORS = {"ink": INK, "muted": MUTED, "grid": GRID, "dense": DENSE, "sparse": SPARSE, "again": AGAIN, "accent": ACCENT}
"""CSS variable (`--fig-NAME`) -> the light scheme's color, which stands for it while drawing."""

_PAPER = "#ffffff"
_PNG_DPI = 144

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    # Names come from users; a dollar sign in one is no formula.
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    # Real text in the SVG: it takes the page's font and stays selectable.
    "svg.fonttype": "none",
    "svg.hashsalt": "nm2trt",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw inside this block: axes read their style when they are made."""
    with mpl.rc_context(_STYLE):
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """Make an empty figure of the given size in inches, with a layout that leaves room for every label."""
    return Figure(figsize=(width_in, height_in), layout="constrained")


def tint(color: str) -> LinearSegmentedColormap:
    """Color map from transparent to `color`: it darkens a light page and lights up a dark one."""
    red, green, blue, _ = to_rgba(color)
    return LinearSegmentedColormap.from_list("tint", [(red, green, blue, 0.0), (red, green, blue, 1.0)])


def legend_below(figure: Figure, axes: Axes, *, columns: int = 2) -> None:
    """Put the legend under the drawing, where it lies on no line."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def note(axes: Axes, text: str) -> None:
    """Say in an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=8.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def png_bytes(figure: Figure) -> bytes:
    """Render on white paper."""
    buffer = io.BytesIO()
    with house_style():
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=_PNG_DPI, facecolor=_PAPER, metadata={"Software": None})
    return buffer.getvalue()


def svg_markup(figure: Figure, *, name: str, label: str) -> str:
    """Render an `<svg>` element to be put inside an HTML page.

    Args:
        figure: Drawn inside `house_style`.
        name: Unique on the page; prefixes the ids that the SVG needs.
        label: What the figure shows, for those who cannot see it.

    Returns:
        Markup without XML declaration, with CSS variables for colors and no fixed size: the page decides its width.
    """
    buffer = io.StringIO()
    with house_style():
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = _prefix_ids(text, name)
    for variable, color in COLORS.items():
        # Only in styles: ids and embedded image data must stay as they are.
        text = re.sub(rf"(?<=: ){color}\b", f"var(--fig-{variable}, {color})", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    # matplotlib before 3.10 writes the `font` shorthand, later ones write its parts; the family is the page's.
    text = re.sub(r"\bfont: ((?:[a-z0-9]+ )*?)([\d.]+px) [^;\"]*", _font_parts, text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    head, _, body = text.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    # HTML needs no namespaces, and a report must name no address outside itself.
    head = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", head).replace('version="1.1"', "")
    body = body.replace("xlink:href=", "href=")
    return f'{head.rstrip()} role="img" aria-label="{_attribute(label)}">{body.strip()}'


def _font_parts(match: re.Match[str]) -> str:
    weight = "; font-weight: 600" if "bold" in match.group(1) or "700" in match.group(1) else ""
    return f"font-size: {match.group(2)}{weight}"


def _prefix_ids(text: str, name: str) -> str:
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))

    def replace(match: re.Match[str]) -> str:
        return f' id="{name}-{match.group(1)}"' if match.group(1) in used else ""

    text = re.sub(r'\s+id="([^"]+)"', replace, text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    return re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
