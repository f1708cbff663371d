"""Figures of how a run went: learning curves of its stages, and the time of its steps.

In: the `<stage>.metrics.csv` that training writes beside the weights, a row per epoch. Out: Figures.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from siimcovid.core.configuration import STAGES
from siimcovid.core.errors import InputError
from siimcovid.reporting.figures.figure_style import ACCENT, INK, LETTERS, OTHERS, SIZE, finish, grid, legend

#: What can be drawn of a stage: name -> title.
CURVES = {"loss": "training loss", "metric": "validation metric", "learning_rate": "learning rate"}


def read_metrics(folder: Path | str) -> dict[str, pd.DataFrame]:
    """Stage -> its table of epochs, for each stage's metrics in `folder`, in the order of STAGES, others by name.

    Raises InputError for a damaged table.
    """
    tables = {}
    for path in Path(folder).glob("*.metrics.csv"):
        try:
            table = pd.read_csv(path)
            tables[path.name.removesuffix(".metrics.csv")] = table.astype(dict.fromkeys(table, float))
        except (ValueError, OSError) as error:
            raise InputError(f"{path} is no table of epochs ({error}); remove it") from None
    known = [stage for stage in STAGES if stage in tables]
    return {stage: tables[stage] for stage in (*known, *sorted(set(tables).difference(known)))}


def curves_of(table: pd.DataFrame) -> list[str]:
    """Which of CURVES a stage's table has numbers for."""
    return [name for name in CURVES if name in table and table[name].notna().any()]


def learning_curves(folder: Path | str) -> Figure:
    """Loss with its parts, validation metric and learning rate of every stage whose metrics lie in `folder`."""
    found = [(stage, table, curve) for stage, table in read_metrics(folder).items() for curve in curves_of(table)]
    columns = max((sum(stage == other for other, _, _ in found) for stage, _, _ in found), default=1)
    figure, axes = grid(max(1, len(found)), columns, (3.4, 2.5))
    if not found:
        finish(axes[0], "no stage was trained")
    for axis, (stage, table, curve) in zip(axes, found, strict=False):
        _draw(axis, stage, table, curve)
    return figure


def stage_curve(stage: str, table: pd.DataFrame, curve: str) -> Figure:
    """One of CURVES of one stage."""
    figure, (axis,) = grid(1)
    _draw(axis, stage, table, curve)
    return figure


def _draw(axis: Axes, stage: str, table: pd.DataFrame, curve: str) -> None:
    marker = "o" if len(table) == 1 else None  # a single epoch is a point, not a line
    axis.plot(table["epoch"], table[curve], color=ACCENT, lw=1.8, marker=marker, label="whole")
    if curve == "loss":
        columns = list(table)
        parts = columns[columns.index("loss") + 1 : columns.index("learning_rate")]
        for place, part in enumerate(parts if len(parts) > 1 else []):
            colour, dashes = OTHERS[place % len(OTHERS)], (0, (3, 1.5))
            name = part.removeprefix("loss_").replace("_", " ")
            axis.plot(table["epoch"], table[part], color=colour, lw=1.2, linestyle=dashes, marker=marker, label=name)
        if len(parts) > 1:
            legend(axis)
        axis.set_ylim(bottom=0)
    elif curve == "metric":
        best = table[curve].idxmax()
        axis.plot(table["epoch"][best], table[curve][best], "o", color=ACCENT)
        axis.annotate(
            f"{table[curve][best]:.3f}",
            (table["epoch"][best], table[curve][best]),
            (0, 5),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=LETTERS - 1,
        )
        axis.margins(y=0.15)
    else:
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        axis.yaxis.get_offset_text().set(color=INK, fontsize=LETTERS - 1)
        axis.set_ylim(bottom=0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    finish(axis, f"{stage}: {CURVES[curve]}", "epoch")


def step_times(seconds: Mapping[str, float], planned: Mapping[str, float] | None = None) -> Figure:
    """Seconds of each step, measured, and as an outline what was planned; a step may be in only one of the two."""
    planned = planned or {}
    steps = [*seconds, *(step for step in planned if step not in seconds)]
    figure, (axis,) = grid(1, size=(SIZE[0], 0.27 * max(1, len(steps)) + 0.9))
    places = range(len(steps))
    measured = [seconds.get(step) for step in steps]
    axis.barh(places, [value or 0 for value in measured], color=ACCENT, height=0.55, label="measured")
    if planned:
        axis.barh(
            places, [planned.get(step, 0) for step in steps], fill=False, ec=INK, lw=1, height=0.8, label="planned"
        )
    for place, step in enumerate(steps):
        longest = max(seconds.get(step) or 0, planned.get(step, 0))
        text = spell_seconds(measured[place])
        axis.annotate(
            text, (longest, place), (4, 0), textcoords="offset points", va="center", color=INK, fontsize=LETTERS - 1
        )
    axis.set_yticks(places, steps)
    axis.invert_yaxis()
    axis.margins(x=0.22)
    finish(axis, "Time of each step", "seconds", lines="x")
    if planned:
        legend(axis)
    return figure


def spell_seconds(seconds: float | None) -> str:
    """Seconds as people write them: 0.4 s, 12 s, 3 min 20 s, 2 h 05 min; "not run" for None."""
    if seconds is None:
        return "not run"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
