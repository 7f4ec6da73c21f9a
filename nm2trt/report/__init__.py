"""Reports for people: one HTML file that opens offline, its figures, and training curves."""

from nm2trt.report.page import (
    Badge,
    Callout,
    Commands,
    Drawing,
    FactList,
    KeyFigure,
    KeyFigures,
    Properties,
    Prose,
    Section,
    Table,
    render_page,
)

__all__ = [
    "Badge",
    "Callout",
    "Commands",
    "Drawing",
    "FactList",
    "KeyFigure",
    "KeyFigures",
    "Properties",
    "Prose",
    "Section",
    "Table",
    "render_page",
]
