"""The report's own figures, beside the competition's: boxes at a threshold (Table 1) and study labels by argmax (Table
2).

In:  submissions and the truth as `mean_average_precision.compare` takes them.
Out: an `Evaluation` for each, of plain numbers and of what curves are drawn from; tables of several side by side; and
     `as_text`, which lays one out for a terminal.

The report scored boxes on images that have some, and study labels turned into one-hot; here all images count, false
positives on clear ones too, and average precision ranks the probabilities, as the competition does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.labels import CLASSES, STUDY_LABELS
from siimcovid.evaluation.mean_average_precision import (
    Comparison,
    Matches,
    area_under_curve,
    average_precision,
    average_precisions,
    compare,
    match_classes,
)
from siimcovid.evaluation.submission_csv import CODES

#: Confidence from which boxes count in Table 1: the threshold of the report's own code, fixed before any result is
#: known. The threshold of the best F1 would be fitted to the very truth it is measured on.
THRESHOLD = 0.1

#: The row of Table 1 that is scored as the report's was, on the images with an opacity.
POSITIVES = "mAP@.50, images with opacity"

#: Bins of equal width for calibration; ten are the custom (Guo et al. 2017, arXiv:1706.04599).
BINS = 10


class Reliability(NamedTuple):
    """How often predictions of a confidence are true, in BINS bins over [0, 1]; empty bins are nan."""

    confidence: np.ndarray  # (BINS,) mean confidence
    frequency: np.ndarray  # (BINS,) share that is true
    count: np.ndarray  # (BINS,) int
    error: float  # expected calibration error: mean of |confidence - frequency| over predictions; nan without any


@dataclass(frozen=True)
class Evaluation:
    """One submission beside the truth."""

    name: str  # of the model
    threshold: float
    scores: dict  # mean_average_precision.average_precisions
    boxes: dict  # box_figures
    study_labels: dict  # study_figures
    matches: dict[str, Matches]
    calibration: dict[str, Reliability]  # by class


def evaluate(
    name: str,
    answers: pd.DataFrame,
    images: pd.DataFrame,
    studies: pd.DataFrame,
    threshold: float = THRESHOLD,
    subset: bool = False,
) -> Evaluation:
    """Every figure of one submission; the tables and errors are those of `mean_average_precision.compare`."""
    comparison = compare(answers, images, studies, subset)
    matches = match_classes(comparison)
    return Evaluation(
        name,
        threshold,
        average_precisions(matches),
        box_figures(matches["opacity"], threshold) | {"positives": _on_positives(comparison)},
        study_figures(comparison, matches),
        matches,
        {
            label: reliability(_from_confidence(matches[label], threshold if label == "opacity" else 0.0))
            for label in CLASSES
        },
    )


def score_table(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """The official score: a row per model, average precision of each of CLASSES, and "mean"."""
    return pd.DataFrame([e.scores for e in evaluations], index=_names(evaluations))[[*CLASSES, "mean"]]


def table_1(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """The report's Table 1: mAP@.50, the same on images with opacity, F1-score, mean recall and mean precision of the
    boxes, a column per model.

    There is one class of boxes, so the means are that class's. The last row is the threshold.
    """
    rows = {
        "mAP@.50": "mAP@.50",
        POSITIVES: "positives",
        "F1-score": "F1",
        "mean recall": "recall",
        "mean precision": "precision",
    }
    table = {e.name: {row: e.boxes[key] for row, key in rows.items()} | {"threshold": e.threshold} for e in evaluations}
    return pd.DataFrame(table)


def table_2(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """The report's Table 2: accuracy, mean recall and precision, F1-score and mAP of the study labels, a column per
    model."""
    rows = {"accuracy": "accuracy", "mean recall": "mean recall", "mean precision": "mean precision"}
    rows |= {"F1-score": "F1", "mAP": "mAP"}
    return pd.DataFrame({e.name: {row: e.study_labels[key] for row, key in rows.items()} for e in evaluations})


#: What the report states of its own held-out images: Table 1 (boxes, on images that have some) and Table 2.
REPORT_TABLE_1 = {"rcnn": {"mAP@.50": 0.409}, "yolo": {"mAP@.50": 0.345}, "ensemble": {"mAP@.50": 0.451}}
REPORT_TABLE_2 = {"accuracy": 0.669, "F1-score": 0.482, "mAP": 0.405}


def _names(evaluations: Sequence[Evaluation]) -> pd.Index:
    return pd.Index([e.name for e in evaluations], name="model")


def precision_recall(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """Recall (k,) and interpolated precision (k,) at each of a class's k hits, empty without any.

    Average precision is the sum of these precisions over the number of true boxes, missed ones included.
    """
    precision = np.cumsum(matches.hit) / np.arange(1, len(matches.hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    hits = envelope[matches.hit]
    return np.arange(1, len(hits) + 1) / max(1, matches.truths), hits


def f1_by_threshold(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """Every confidence that occurs, in descending order, and the F1 of the predictions from it up: (k,) and (k,)."""
    ends = np.flatnonzero(np.append(np.diff(matches.confidence) != 0, True)) if len(matches.confidence) else []
    ends = np.asarray(ends, dtype=int)
    f1 = 2 * np.cumsum(matches.hit)[ends] / np.maximum(1, ends + 1 + matches.truths)
    return matches.confidence[ends], f1


def _from_confidence(matches: Matches, lowest: float) -> Matches:
    """The predictions from a confidence up: boxes of nearly 0, a hundred an image, would hide the rest."""
    kept = matches.confidence >= lowest
    return Matches(matches.confidence[kept], matches.hit[kept], matches.truths)


def reliability(matches: Matches) -> Reliability:
    """Calibration of one class's predictions; confidences outside [0, 1] are no probabilities, and have none."""
    confidence, hit = matches.confidence, matches.hit.astype(float)
    empty = np.full(BINS, np.nan)
    if len(confidence) == 0 or confidence.min() < 0 or confidence.max() > 1:
        return Reliability(empty, empty, np.zeros(BINS, dtype=int), float("nan"))
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    predicted, true = (np.bincount(place, weights=values, minlength=BINS) for values in (confidence, hit))
    error = float(np.abs(predicted - true).sum() / len(confidence))
    some = count > 0
    predicted, true = (np.divide(values, count, out=empty.copy(), where=some) for values in (predicted, true))
    return Reliability(predicted, true, count, error)


def box_figures(matches: Matches, threshold: float) -> dict:
    """The report's Table 1 for `opacity`: mAP@.50, and precision, recall and F1 of the boxes from `threshold` up.

    Pooled over all boxes of all images; a figure that would divide by nothing is 0 (mAP@.50: nan without a true box).
    """
    kept = int((matches.confidence >= threshold).sum())  # a prefix of the ranking, so its matches are the same
    hits = int(matches.hit[:kept].sum())
    return {
        "mAP@.50": area_under_curve(matches),
        "F1": _ratio(2 * hits, kept + matches.truths),
        "recall": _ratio(hits, matches.truths),
        "precision": _ratio(hits, kept),
    }


def _on_positives(comparison: Comparison) -> float:
    """mAP@.50 on the images that have an opacity, as the report scored; nan without any."""
    found, true = comparison.predictions.of("opacity"), comparison.truth.of("opacity")
    some = np.isin(found.row, true.row)
    return average_precision(found.row[some], found.confidence[some], found.xyxy[some], true.row, true.xyxy)


def study_figures(comparison: Comparison, matches: dict[str, Matches]) -> dict:
    """The report's Table 2: accuracy, mean recall, mean precision and F1 over STUDY_LABELS, mAP, and the confusion
    matrix.

    A study's label is the one of highest confidence. The means are over the study labels that the truth or the
    predictions have (scikit-learn's macro averages). "confusion" is a list of rows in the order of STUDY_LABELS, truth
    down, prediction across. Without a study all are nan. Raises InputError for a study row without a study label.
    """
    confidence = np.full((len(comparison.ids), len(CLASSES)), -np.inf)
    np.maximum.at(
        confidence, (comparison.predictions.row, comparison.predictions.label), comparison.predictions.confidence
    )
    study = comparison.truth.label < CODES["none"]  # a study's truth is one tuple, its study label
    true, confidence = comparison.truth.label[study], confidence[comparison.truth.row[study], : len(STUDY_LABELS)]
    unanswered = np.isneginf(confidence).all(axis=1)
    if unanswered.any():
        name = comparison.ids[comparison.truth.row[study][unanswered][0]]
        raise InputError(f"{name} has none of the study labels {', '.join(STUDY_LABELS)}; see `siimcovid validate`")

    # scikit-learn has all of this, at a second and a half of import; the tests compare.
    confusion = np.zeros((len(STUDY_LABELS), len(STUDY_LABELS)), dtype=int)
    np.add.at(confusion, (true, confidence.argmax(axis=1)), 1)
    right, truths, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    seen = truths + predicted > 0
    precisions = [area_under_curve(matches[name]) for name in STUDY_LABELS]
    return {
        "accuracy": _ratio(right.sum(), truths.sum(), empty=np.nan),
        "mean recall": _mean_ratio(right, truths, seen),
        "mean precision": _mean_ratio(right, predicted, seen),
        "F1": _mean_ratio(2 * right, truths + predicted, seen),
        "mAP": _mean([value for value in precisions if not np.isnan(value)]),
        "confusion": confusion.tolist(),
    }


def _ratio(part: float, whole: float, empty: float = 0.0) -> float:
    return float(part / whole) if whole else empty


def _mean_ratio(parts: np.ndarray, wholes: np.ndarray, seen: np.ndarray) -> float:
    return _mean([_ratio(part, whole) for part, whole in zip(parts[seen], wholes[seen], strict=True)])


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def as_text(evaluation: Evaluation) -> str:
    """All figures of one submission as lines of text; classes without truth are named in a note."""
    scores, boxes, study_labels = evaluation.scores, evaluation.boxes, evaluation.study_labels
    lines = [f"{'class':<14}{'AP':>8}"] + [f"{name:<14}{value:>8.4f}" for name, value in scores.items()]
    unknown = [name for name in CLASSES if np.isnan(scores[name])]
    if unknown:
        lines.append(f"(the truth has no {', '.join(unknown)}: left out of the mean)")
    lines += ["", f"opacity boxes of confidence {evaluation.threshold:g} and above: {_listed(boxes)}"]
    lines += ["", f"studies by their most confident study label: {_listed(study_labels)}"]
    lines += ["confusion (truth down, prediction across):", " " * 15 + "".join(f"{name:>14}" for name in STUDY_LABELS)]
    for name, row in zip(STUDY_LABELS, study_labels["confusion"], strict=True):
        lines.append(f"  {name:<13}" + "".join(f"{count:>14}" for count in row))
    return "\n".join(lines)


def _listed(figures: dict) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if name != "confusion")


def compared(evaluations: Sequence[Evaluation]) -> str:
    """The three tables of several submissions as text."""
    parts = (
        ("average precision at IoU > 0.5", score_table(evaluations)),
        ("opacity boxes (the report's Table 1)", table_1(evaluations)),
        ("studies by their most confident study label (the report's Table 2)", table_2(evaluations)),
    )
    wide = {"float_format": "{:.4f}".format, "line_width": 1000}
    return "\n\n".join(f"{title}\n{table.rename_axis(None).to_string(**wide)}" for title, table in parts)
