"""Pictures of what a data set holds: the report's Figures 1, 2 and 4 to 6, and the sizes around them.

In: the counts of data/dataset_statistics.py. Out: Figures of one axis each.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from siimcovid.reporting.figures.figure_style import ACCENT, INK, LETTERS, SIZE, bars, empty_axis, finish, grid

#: Side of the map of box positions, in cells.
CELLS = 48


def tally_chart(title: str, counts: Mapping[str, int], unit: str, across: bool = False) -> Figure:
    """Bars of a count per name, with its share of all: the report's Figures 1 and 2 (across) and 4."""
    figure, (axis,) = grid(1, size=(SIZE[0], max(SIZE[1], 0.28 * len(counts) + 0.6)) if across else SIZE)
    total = max(1, sum(counts.values()))
    texts = [f"{n:,} ({n / total:.0%})" for n in counts.values()]
    bars(axis, list(counts), list(counts.values()), texts, across)
    if across:
        axis.margins(x=0.3)
    finish(axis, title, *((unit, "") if across else ("", unit)), lines="x" if across else "y")
    return figure


def box_count_chart(boxes_per_image: Mapping[int, int]) -> Figure:
    """Images by how many boxes they have: the report's Figure 5, whose NaN is our 0."""
    figure, (axis,) = grid(1)
    bars(axis, list(boxes_per_image), list(boxes_per_image.values()), [f"{n:,}" for n in boxes_per_image.values()])
    finish(axis, "Boxes per image", "boxes", "images")
    return figure


def box_size_histogram(boxes: pd.DataFrame) -> Figure:
    """Boxes by the share of the image that they cover, with the median: the report's Figure 6.

    boxes: as dataset_statistics.box_table gives it.
    """
    figure, (axis,) = grid(1)
    finish(axis, "Box sizes", "area, % of the image", "boxes")
    if boxes.empty:
        empty_axis(axis, "no boxes")
        return figure
    area = 100 * boxes["area"].to_numpy()
    axis.hist(area, bins=np.linspace(0, max(1.0, np.quantile(area, 0.995)), 41), color=ACCENT)
    low, median, high = np.quantile(area, (0.05, 0.5, 0.95))
    axis.axvline(median, color=INK, lw=1.2)
    text = f"median {median:.1f} %\n90 % of them in {low:.1f} to {high:.1f} %"
    axis.text(0.98, 0.95, text, transform=axis.transAxes, ha="right", va="top", color=INK, fontsize=LETTERS)
    return figure


def box_position_map(boxes: Sequence[Sequence[Sequence[float]]]) -> Figure:
    """How often each place of the image lies in a box, as a share of the images with boxes; boxes: xyxy fractions."""
    corners = np.array([box for of_image in boxes for box in of_image], dtype=float).reshape(-1, 4)
    figure, (axis,) = grid(1)
    finish(axis, "Where the boxes lie", "left to right of the image", "bottom to top", lines="")
    if len(corners) == 0:
        empty_axis(axis, "no boxes")
        return figure
    centres = (np.arange(CELLS) + 0.5) / CELLS
    x1, y1, x2, y2 = corners.T[:, :, None]
    inside_x, inside_y = (x1 <= centres) & (centres < x2), (y1 <= centres) & (centres < y2)  # (boxes, CELLS)
    covered = np.einsum("by,bx->yx", inside_y.astype(float), inside_x.astype(float))
    share = 100 * covered / max(1, sum(1 for of_image in boxes if len(of_image)))
    picture = axis.imshow(share, cmap="viridis", extent=(0, 1, 1, 0), interpolation="nearest", aspect="equal", vmin=0)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=axis, shrink=0.9)
    bar.set_label("% of images with boxes", color=INK, fontsize=LETTERS)
    bar.ax.tick_params(labelsize=LETTERS, colors=INK, length=0)
    bar.outline.set_visible(False)
    return figure


def image_size_chart(sizes: Sequence[Sequence[int]]) -> Figure:
    """Images by columns and rows, the dot's area their number; sizes: [rows, columns, images] of
    dataset_statistics.describe."""
    figure, (axis,) = grid(1)
    finish(axis, "Image sizes", "columns, pixels", "rows, pixels", lines="both")
    if not len(sizes):
        empty_axis(axis, "no sizes known")
        return figure
    rows, columns, images = np.array(sizes, dtype=float).T
    axis.scatter(columns, rows, s=8 + 400 * images / images.max(), color=ACCENT, alpha=0.35, lw=0)
    axis.margins(0.08)
    return figure
