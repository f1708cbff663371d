"""Figures of evaluations (evaluation/report_tables.py): precision-recall, F1, confusion, calibration; a colour a model.

In: an Evaluation of each model, the ensemble last. Out: matplotlib Figures.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from siimcovid.core.labels import CLASSES, STUDY_LABELS
from siimcovid.evaluation.report_tables import Evaluation, f1_by_threshold
from siimcovid.evaluation.report_tables import precision_recall as recall_and_precision
from siimcovid.reporting.figures.figure_style import (
    ACCENT,
    FAINT,
    INK,
    LETTERS,
    MODEL_NAMES,
    empty_axis,
    finish,
    grid,
    legend,
    line_style,
)

#: Corners of a curve beyond which it is thinned; more cannot be seen.
CORNERS = 400


def precision_recall(evaluations: Sequence[Evaluation], classes: Sequence[str] = CLASSES) -> Figure:
    """The interpolated precision-recall curve of each class, a line per model and its average precision."""
    figure, axes = grid(len(classes))
    for axis, label in zip(axes, classes, strict=True):
        finish(axis, label, "recall", "precision", lines="both")
        axis.set(xlim=(0, 1.01), ylim=(0, 1.03))
        if evaluations and evaluations[0].matches[label].truths == 0:
            empty_axis(axis, f"the ground truth has no {label}")
            continue
        for name, style, evaluation in _lines(evaluations, label):
            recall, precision = _thinned(*recall_and_precision(evaluation.matches[label]))
            # from the first hit's precision at recall 0; precision holds back to the hit before
            axis.step(
                np.append(0, recall),
                np.append(precision[:1], precision) if len(precision) else [0],
                where="pre",
                label=f"{name} {evaluation.scores[label]:.3f}",
                **style,
            )
        legend(axis)
    return figure


def _lines(evaluations: Sequence[Evaluation], label: str) -> list[tuple[str, dict, Evaluation]]:
    """Name, style and evaluation of each line; one line where all models predict the same: the detectors of a run share
    their study model."""
    first = evaluations[0].matches[label] if evaluations else None
    same = all(
        np.array_equal(e.matches[label].confidence, first.confidence)
        and np.array_equal(e.matches[label].hit, first.hit)
        for e in evaluations
    )
    if len(evaluations) > 1 and same and label in STUDY_LABELS:
        return [("study model", {"color": ACCENT, "lw": 1.8}, evaluations[0])]
    return [(MODEL_NAMES.get(e.name, e.name), line_style(e.name, i), e) for i, e in enumerate(evaluations)]


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve with at most about CORNERS points, its ends among them."""
    if len(x) <= CORNERS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, CORNERS).round().astype(int))
    return x[kept], y[kept]


def f1_curves(evaluations: Sequence[Evaluation]) -> Figure:
    """F1 of the opacity boxes over the confidence from which they count, and the threshold of Table 1."""
    figure, (axis,) = grid(1)
    for place, evaluation in enumerate(evaluations):
        confidence, f1 = _thinned(*f1_by_threshold(evaluation.matches["opacity"]))
        name = MODEL_NAMES.get(evaluation.name, evaluation.name)
        axis.plot(confidence, f1, label=name, **line_style(evaluation.name, place))
    if evaluations:
        axis.axvline(evaluations[0].threshold, color=INK, lw=1)
        at = (evaluations[0].threshold, 1.0)
        axis.annotate(
            "Table 1",
            at,
            (4, -4),
            textcoords="offset points",
            color=INK,
            fontsize=LETTERS - 1,
            va="top",
            xycoords=("data", "axes fraction"),
        )
    axis.set(xlim=(0, 1), ylim=(0, None))
    finish(axis, "F1 of the boxes", "boxes count from confidence", "F1", lines="both")
    legend(axis)
    return figure


def confusion(matrix: Sequence[Sequence[int]], title: str = "Study labels: ground truth and prediction") -> Figure:
    """The report's Figure 18: studies by true study label (down) and most confident study label (across), and their
    row's share."""
    counts = np.asarray(matrix, dtype=int)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure, (axis,) = grid(1, size=(4.4, 3.6))
    finish(axis, title, "predicted", "true", lines="")
    for row in range(len(STUDY_LABELS)):
        for column in range(len(STUDY_LABELS)):
            share = shares[row, column]
            axis.add_patch(Rectangle((column, row), 1, 1, fc=ACCENT, alpha=0.6 * share, lw=0))
            axis.add_patch(Rectangle((column, row), 1, 1, fill=False, ec=FAINT, lw=0.8))
            text = f"{counts[row, column]:,}\n{share:.0%}"
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=INK, fontsize=LETTERS)
    places = np.arange(len(STUDY_LABELS)) + 0.5
    axis.set(xlim=(0, len(STUDY_LABELS)), ylim=(len(STUDY_LABELS), 0))
    axis.set_xticks(places, STUDY_LABELS)
    axis.set_yticks(places, STUDY_LABELS)
    axis.tick_params(labelsize=LETTERS - 1)
    axis.spines[:].set_visible(False)
    return figure


def scores_by_images(table: pd.DataFrame) -> Figure:
    """Scores over the number of train images, on a logarithmic axis; table: "images", and a column for each line."""
    figure, (axis,) = grid(1)
    for place, name in enumerate(column for column in table if column != "images"):
        axis.plot(table["images"], table[name], marker="o", ms=4, label=name, **line_style(name, place))
    axis.set_xscale("log")
    axis.set(ylim=(0, 1))
    finish(axis, "Learning curve", "annotated train images", "average precision", lines="both")
    legend(axis)
    return figure


def calibration(evaluations: Sequence[Evaluation], classes: Sequence[str] = CLASSES) -> Figure:
    """The reliability diagram of each class: how often predictions of a confidence are right, and its ECE.

    The dot's area is the number of predictions in its bin. Opacity counts boxes from Table 1's threshold up.
    """
    figure, axes = grid(len(classes))
    for axis, label in zip(axes, classes, strict=True):
        finish(axis, f"{label}, with ECE", "confidence", "share that is right", lines="both")
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.05))
        axis.plot([0, 1], [0, 1], color=INK, lw=0.8, linestyle=(0, (1, 3)))
        for name, style, evaluation in _lines(evaluations, label):
            _reliability(axis, name, style, evaluation, label)
        legend(axis)
    return figure


def _reliability(axis: Axes, name: str, style: dict, evaluation: Evaluation, label: str) -> None:
    found = evaluation.calibration[label]
    some = found.count > 0
    if not some.any():
        axis.plot([], [], label=f"{name}: none", **style)
        return
    confidence, frequency = found.confidence[some], found.frequency[some]
    axis.plot(confidence, frequency, label=f"{name} {found.error:.3f}", **style)
    sizes = 6 + 90 * found.count[some] / found.count.max()
    axis.scatter(confidence, frequency, s=sizes, color=style["color"], alpha=0.45, lw=0)
