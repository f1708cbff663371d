"""The report's own figures, beside the competition's: boxes at a threshold (Table 1) and levels by argmax (Table 2).

In:  a `metric.Comparison` and the `metric.Matches` of its classes.
Out: plain dicts of numbers, and `as_text`, which lays all figures out for a terminal.

The report scored boxes on images that have some, and levels turned into one-hot; here all images count, false positives
on clear ones too, and average precision ranks the probabilities, as the competition does.
"""

import numpy as np

from siimcovid import CLASSES, LEVELS
from siimcovid.errors import InputError
from siimcovid.metric import Comparison, Matches, area
from siimcovid.submission import CODES


def box_figures(matches: Matches, threshold: float) -> dict:
    """The report's Table 1 for `opacity`: mAP@.50, and precision, recall and F1 of the boxes from `threshold` up.

    Pooled over all boxes of all images; a figure that would divide by nothing is 0 (mAP@.50: nan without a true box).
    """
    kept = int((matches.confidence >= threshold).sum())  # a prefix of the ranking, so its matches are the same
    hits = int(matches.hit[:kept].sum())
    return {
        "mAP@.50": area(matches),
        "F1": _ratio(2 * hits, kept + matches.truths),
        "recall": _ratio(hits, matches.truths),
        "precision": _ratio(hits, kept),
    }


def level_figures(comparison: Comparison, matches: dict[str, Matches]) -> dict:
    """The report's Table 2: accuracy, mean recall, mean precision and F1 over LEVELS, mAP, and the confusion matrix.

    A study's level is the one of highest confidence. The means are over the levels that the truth or the predictions
    have (scikit-learn's macro averages). "confusion" is a list of rows in the order of LEVELS, truth down, prediction
    across.
    Without a study all are nan. Raises InputError for a study row without a level.
    """
    confidence = np.full((len(comparison.ids), len(CLASSES)), -np.inf)
    np.maximum.at(
        confidence, (comparison.predictions.row, comparison.predictions.label), comparison.predictions.confidence
    )
    study = comparison.truth.label < CODES["none"]  # a study's truth is one tuple, its level
    true, confidence = comparison.truth.label[study], confidence[comparison.truth.row[study], : len(LEVELS)]
    unanswered = np.isneginf(confidence).all(axis=1)
    if unanswered.any():
        name = comparison.ids[comparison.truth.row[study][unanswered][0]]
        raise InputError(f"{name} has none of the levels {', '.join(LEVELS)}; see `siimcovid validate`")

    # scikit-learn has all of this, at a second and a half of import; the tests compare.
    confusion = np.zeros((len(LEVELS), len(LEVELS)), dtype=int)
    np.add.at(confusion, (true, confidence.argmax(axis=1)), 1)
    right, truths, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    seen = truths + predicted > 0
    precisions = [area(matches[name]) for name in LEVELS]
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


def as_text(scores: dict, boxes: dict, levels: dict, threshold: float) -> str:
    """All figures as lines of text; classes without truth are named in a note."""
    lines = [f"{'class':<14}{'AP':>8}"] + [f"{name:<14}{value:>8.4f}" for name, value in scores.items()]
    unknown = [name for name in CLASSES if np.isnan(scores[name])]
    if unknown:
        lines.append(f"(the truth has no {', '.join(unknown)}: left out of the mean)")
    lines += ["", f"opacity boxes of confidence {threshold:g} and above: {_listed(boxes)}"]
    lines += ["", f"studies by their most confident level: {_listed(levels)}"]
    lines += ["confusion (truth down, prediction across):", " " * 15 + "".join(f"{name:>14}" for name in LEVELS)]
    for name, row in zip(LEVELS, levels["confusion"], strict=True):
        lines.append(f"  {name:<13}" + "".join(f"{count:>14}" for count in row))
    return "\n".join(lines)


def _listed(figures: dict) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if name != "confusion")
