"""What a section of the page is made of; templates/report.html lays each kind of block out."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
from markupsafe import Markup


@dataclass(frozen=True)
class Note:
    """A paragraph; a `warning` stands out."""

    text: str
    warning: bool = False
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Picture:
    """A figure: inline SVG (see inline_svg.py) with its caption."""

    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Pictures:
    """Figures side by side, as many in a row as the screen has room for."""

    pictures: list[Picture]
    title: str = ""
    kind: ClassVar[str] = "pictures"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its heading, and `best` holds the (row, column) cells to stress."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    best: set[tuple[int, int]] = field(default_factory=set)
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Beside:
    """A table with pictures at its side, or below it where the screen is narrow."""

    table: Table
    pictures: Pictures
    kind: ClassVar[str] = "beside"


@dataclass(frozen=True)
class Details:
    """Lines of text, folded away until they are asked for."""

    title: str
    lines: list[str]
    kind: ClassVar[str] = "details"


@dataclass(frozen=True)
class Panel:
    """An image with the boxes of the ground truth or of one model, in units of the image's symbol."""

    name: str  # truth, rcnn, yolo, ensemble, …: the colour
    title: str
    boxes: list[tuple[float, float, float, float, float]]  # x, y, width, height, opacity
    labels: list[tuple[float, float, str]]  # x, y of the text's lower left end, text
    alt: str


@dataclass(frozen=True)
class Example:
    """An image and its panels; `symbol` is where the page keeps the picture, once for all panels."""

    symbol: str
    jpeg: str  # base64
    width: int
    height: int
    caption: str
    panels: list[Panel]


@dataclass(frozen=True)
class Examples:
    """A group of images."""

    title: str
    lead: str
    examples: list[Example]
    kind: ClassVar[str] = "examples"


@dataclass(frozen=True)
class Section:
    """A heading of the table of contents and what stands below it."""

    name: str  # the link's target
    title: str
    blocks: list
    lead: str = ""


def number_table(title: str, numbers: pd.DataFrame, note: str = "", corner: str = "", best: str = "") -> Table:
    """A table of figures with three decimals, nan as a dash; the highest of each row or column ("best") is stressed."""
    values = numbers.to_numpy(dtype=float)
    rows = [
        [str(name), *("–" if np.isnan(value) else f"{value:.3f}" for value in row)]
        for name, row in zip(numbers.index, values, strict=True)
    ]
    stressed = set()
    for place in range(values.shape[0 if best == "row" else 1] if best else 0):
        line = values[place] if best == "row" else values[:, place]
        shown = np.round(line, 3)
        if np.isnan(shown).all() or np.nanmin(shown) == np.nanmax(shown):
            continue
        for other in np.flatnonzero(shown == np.nanmax(shown)):
            stressed.add((place, int(other) + 1) if best == "row" else (int(other), place + 1))
    return Table(title, [corner, *map(str, numbers.columns)], rows, note, stressed)
