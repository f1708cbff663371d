"""The images that a prediction gets most wrong, and what is wrong with each.

In: one model's detections and the true boxes, study probabilities and true study labels. Out: a row per image, the
worst first:

    missed box         counts 1 - the confidence of the box that finds it, 1 where none does
    false box          the most confident box that finds none counts its confidence
    wrong study label  counts the probability of the label that was predicted, less that of the true one

An image's badness is their sum: how much confidence would have to move for the image to be right.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from siimcovid.core.labels import STUDY_LABELS
from siimcovid.evaluation.mean_average_precision import match

COLUMNS = ["image_id", "badness", "errors"]


def worst_errors(
    detections: pd.DataFrame,
    boxes: Mapping[str, Sequence[Sequence[float]]],
    study_probs: pd.DataFrame,
    study_labels: Mapping[str, str],
    study_of: Mapping[str, str],
    count: int = 10,
    least: float = 0.1,
) -> pd.DataFrame:
    """The `count` images with the highest badness, in COLUMNS; `errors` is a text.

    Args:
        detections: of one model: image_id, score, x1, y1, x2, y2 as fractions.
        boxes: image_id -> true boxes as fractions, [] for none; the images that are judged.
        study_probs: study_id and STUDY_LABELS. study_labels: study_id -> the true one. study_of: image_id -> study_id.
        least: an error that counts less is not named and not counted.
    """
    by_image = dict(iter(detections.groupby("image_id")))
    probabilities = study_probs.set_index("study_id")[list(STUDY_LABELS)]
    rows = []
    for name, true in boxes.items():
        errors = _box_errors(by_image.get(name, detections[:0]), true)
        study = study_of.get(name)
        if study in probabilities.index and study in study_labels:
            errors += _label_error(probabilities.loc[study], study_labels[study])
        errors = [(value, text) for value, text in errors if value >= least]
        if errors:
            rows.append((name, sum(value for value, _ in errors), "; ".join(text for _, text in errors)))
    rows.sort(key=lambda row: (-round(row[1], 9), row[0]))
    return pd.DataFrame(rows[:count], columns=COLUMNS)


def _box_errors(found: pd.DataFrame, true: Sequence[Sequence[float]]) -> list[tuple[float, str]]:
    """Missed boxes, and the most confident false one, of an image."""
    truth = np.array(true, dtype=float).reshape(-1, 4)
    corners = found[["x1", "y1", "x2", "y2"]].to_numpy(dtype=float)
    rows, truth_rows = np.zeros(len(found), dtype=int), np.zeros(len(truth), dtype=int)
    confidence, hit, _ = match(rows, found["score"].to_numpy(dtype=float), corners, truth_rows, truth)
    hits = confidence[hit]
    missed = len(truth) - len(hits)
    errors = [(float(missed), f"{missed} of {len(truth)} boxes missed")] if missed else []
    errors += [(1 - float(value), f"box found at {value:.2f} only") for value in hits]
    if len(alarms := confidence[~hit]):
        errors.append((float(alarms[0]), f"false box at {alarms[0]:.2f}"))
    return errors


def _label_error(probabilities: pd.Series, true: str) -> list[tuple[float, str]]:
    """The study label that was predicted, where it is not the true one."""
    said = str(probabilities.astype(float).idxmax())
    if said == true:
        return []
    text = f"{said} at {probabilities[said]:.2f} where {true} ({probabilities[true]:.2f}) is true"
    return [(float(probabilities[said] - probabilities[true]), text)]
