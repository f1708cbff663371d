"""What all figures share: colours, names of the models, and axes without clutter."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

TRUTH = "truth"

#: Boxes on images, which are dark.
COLOURS = {TRUTH: "#3ddc84", "rcnn": "#4cc9f0", "yolo": "#f7b801", "retinanet": "#c77dff", "ensemble": "#ff4d6d"}

#: The same hues for lines on white, each at a contrast of 3 to 1 or more. The report page maps them, INK, FAINT and
#: ACCENT to the colours of its light or dark theme.
LINES = {TRUTH: "#16803f", "rcnn": "#1673a8", "yolo": "#a86f00", "retinanet": "#7b3fb5", "ensemble": "#d11f4a"}
INK, FAINT, ACCENT = "#1f2a37", "#d3dae3", "#33548c"

#: Lines that differ without colour too.
DASHES = {"rcnn": (0, (5, 2)), "yolo": (0, (1.5, 1.5)), "retinanet": (0, (6, 2, 1, 2)), "ensemble": "solid"}

MODEL_NAMES = {
    TRUTH: "truth",
    "rcnn": "Faster R-CNN",
    "yolo": "YOLO",
    "retinanet": "RetinaNet",
    "ensemble": "ensemble",
}

#: Colours of whatever else is compared.
OTHERS = ("#6b4fa0", "#0f766e", "#b4531b", "#4d5b70")

SIZE = (4.4, 3.0)  # inches of one picture; its letters stay legible on a phone
LETTERS = 9  # points


def line_style(name: str, place: int) -> dict:
    """Colour and dashes of a model's line; models that are not this project's take OTHERS by their place."""
    return {"color": LINES.get(name, OTHERS[place % len(OTHERS)]), "linestyle": DASHES.get(name, "solid"), "lw": 1.8}


def grid(count: int, columns: int = 3, size: tuple[float, float] = SIZE) -> tuple[Figure, list[Axes]]:
    """A Figure with `count` pictures in at most so many columns, and their axes."""
    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def finish(axis: Axes, title: str, xlabel: str = "", ylabel: str = "", lines: str = "y") -> None:
    """Title, labels and faint lines across ("x", "y", "both" or "")."""
    axis.set_title(title, fontsize=LETTERS + 1, color=INK, loc="left", fontweight="bold")
    axis.set_xlabel(xlabel, fontsize=LETTERS, color=INK)
    axis.set_ylabel(ylabel, fontsize=LETTERS, color=INK)
    axis.tick_params(labelsize=LETTERS, colors=INK, length=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    axis.patch.set_visible(False)
    axis.set_axisbelow(True)
    if lines:
        axis.grid(axis=lines, color=FAINT, lw=0.7)


def legend(axis: Axes) -> None:
    """The legend of what was drawn with a label, below the picture, where it hides nothing."""
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        axis.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=(-0.13, -0.17),
            ncols=3,
            frameon=False,
            fontsize=LETTERS - 1,
            labelcolor=INK,
            columnspacing=1.0,
            handlelength=1.6,
            handletextpad=0.5,
        )


def empty_axis(axis: Axes, text: str) -> None:
    """Write the reason in the middle of an axis that has nothing to draw."""
    axis.text(0.5, 0.5, text, ha="center", va="center", color=INK, fontsize=LETTERS, transform=axis.transAxes)


def bars(axis: Axes, names: Sequence, values: Sequence[float], texts: Sequence[str], across: bool = False) -> None:
    """Bars with their values written at the ends, upright or `across` (the first on top)."""
    places = range(len(names))
    if across:
        axis.barh(places, values, color=ACCENT, height=0.7)
        axis.set_yticks(places, [str(name) for name in names])
        axis.invert_yaxis()
    else:
        axis.bar(places, values, color=ACCENT, width=0.7)
        axis.set_xticks(places, [str(name) for name in names])
    for place, value, text in zip(places, values, texts, strict=True):
        at, shift = ((value, place), (3, 0)) if across else ((place, value), (0, 2))
        side = {"ha": "left", "va": "center"} if across else {"ha": "center", "va": "bottom"}
        axis.annotate(
            text, at, shift, textcoords="offset points", color=INK, fontsize=LETTERS - 1, annotation_clip=False, **side
        )
    axis.margins(**{"x" if across else "y": 0.14})
    (axis.xaxis if across else axis.yaxis).set_major_formatter(StrMethodFormatter("{x:,.0f}"))
