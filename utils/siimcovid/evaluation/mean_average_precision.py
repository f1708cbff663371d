"""The competition's metric: the mean over six classes of PASCAL VOC 2010's average precision at IoU > 0.5.

In:  a submission (id, PredictionString) and the truth as the competition's own two tables, train_image_level.csv (id,
     label) and train_study_level.csv (id and a 0/1 column for each study label).
Out: {class: average precision, "mean": their mean}.

Every row of the submission, study or image, is an "image" in VOC's sense. The rules are those of the VOC development
kit's `VOCevaldet.m` and `VOCap.m`:

- A class's predictions are ranked over all rows by confidence, highest first. MATLAB's sort is stable, so ties stay in
  the order of the file.
- A prediction belongs to the true box with which its IoU is highest (the first one among equals). If that IoU is not
  above 0.5, or if a better-ranked prediction has already claimed that box, it is a false positive. COCO differs: there
  the prediction falls back on the best box that is still free.
- Average precision is the area under the whole precision-recall curve, precision made monotone from the right.

Two departures, both the competition's: the threshold is strict (the kit's is >=), and coordinates are continuous, so
that a width is xmax - xmin (the kit adds 1; with that the dummy box 0 0 1 1 would have an area of 4, at no effect).
For `none` and the study labels all boxes are that dummy, and average precision is one of ranking.

A class of which the truth has no box has no average precision: it is nan and left out of the mean.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.labels import CLASSES, STUDY_COLUMNS, STUDY_LABELS
from siimcovid.evaluation.submission_csv import Predictions, parse_predictions

IOU_THRESHOLD = 0.5


class Comparison(NamedTuple):
    """A submission beside the truth: `predictions.row` and `truth.row` count the same `ids`."""

    ids: np.ndarray
    predictions: Predictions
    truth: Predictions


class Matches(NamedTuple):
    """The ranked predictions of one class."""

    confidence: np.ndarray  # (n,) descending
    hit: np.ndarray  # (n,) bool: true positive
    truths: int  # number of true boxes


def score(submission: pd.DataFrame, images: pd.DataFrame, studies: pd.DataFrame, subset: bool = False) -> dict:
    """Average precision of each of CLASSES, and their "mean" (classes without a true box are nan and left out of it).

    submission: id, PredictionString. images: id, label. studies: id and STUDY_COLUMNS. With `subset` only the ids
    submitted are scored. Raises InputError where ids are repeated, unknown or (without `subset`) missing.
    """
    return average_precisions(match_classes(compare(submission, images, studies, subset)))


def compare(submission: pd.DataFrame, images: pd.DataFrame, studies: pd.DataFrame, subset: bool = False) -> Comparison:
    """Parse a submission and its truth into arrays over the same ids; arguments and errors as in `score`."""
    study_label = studies[list(STUDY_COLUMNS)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    if (np.sort(study_label, axis=1) != [0, 0, 0, 1]).any():
        raise InputError("the truth's studies must have exactly one study label set to 1 in each row")
    labels = np.array([f"{name} 1 0 0 1 1" for name in STUDY_LABELS], dtype=object)[study_label.argmax(axis=1)]
    ids = pd.Index(np.concatenate([studies["id"], images["id"]]))
    strings = np.concatenate([labels, images["label"].fillna("")])

    submitted = pd.Index(submission["id"])
    for name, index in (("truth", ids), ("submission", submitted)):
        _refuse(f"repeated in the {name}", index[index.duplicated()])
    _refuse("submitted but not in the truth", submitted.difference(ids))
    if subset:
        keep = ids.isin(submitted)
        ids, strings = ids[keep], strings[keep]
    _refuse("missing from the submission (--subset scores only the ids submitted)", ids.difference(submitted))
    if ids.empty:
        raise InputError("the submission has no rows to score")

    predictions = parse_predictions(submission["id"], submission["PredictionString"].fillna(""))
    predictions = predictions._replace(row=ids.get_indexer(submitted)[predictions.row])
    return Comparison(ids.to_numpy(), predictions, parse_predictions(ids, strings))


def _refuse(reason: str, ids: pd.Index) -> None:
    if len(ids):
        raise InputError(f"{len(ids)} ids are {reason}, the first is {ids[0]}")


def match_classes(comparison: Comparison) -> dict[str, Matches]:
    """The ranked predictions of each of CLASSES, and which of them are true."""
    parts = {name: (comparison.predictions.of(name), comparison.truth.of(name)) for name in CLASSES}
    return {
        name: match(found.row, found.confidence, found.xyxy, true.row, true.xyxy)
        for name, (found, true) in parts.items()
    }


def average_precisions(matches: dict[str, Matches]) -> dict:
    """{class: average precision, "mean": their mean}; nan for a class without truth, which the mean leaves out."""
    scores = {name: area_under_curve(matches[name]) for name in CLASSES}
    return {**scores, "mean": mean_of_known(scores)}


def mean_of_known(scores: dict[str, float]) -> float:
    """Mean of the average precisions that are not nan; nan where all are."""
    known = [value for value in scores.values() if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def study_precisions(study_probs: pd.DataFrame, truth: pd.Series) -> dict[str, float]:
    """Average precision of each of STUDY_LABELS and their "mean", over the studies of `study_probs` (study_id and
    STUDY_LABELS).

    truth: study_id -> study label. A study label that no study has is nan and left out of the mean.
    """
    true_labels, scores = truth.reindex(study_probs["study_id"]).to_numpy(), {}
    for name in STUDY_LABELS:
        order = descending_order(study_probs[name].to_numpy())
        hit = (true_labels == name)[order]
        scores[name] = area_under_curve(Matches(study_probs[name].to_numpy()[order], hit, int(hit.sum())))
    return scores | {"mean": mean_of_known(scores)}


def average_precision(
    rows: np.ndarray, confidence: np.ndarray, boxes: np.ndarray, truth_rows: np.ndarray, truth_boxes: np.ndarray
) -> float:
    """VOC 2010's average precision of one class; arguments as in `match`. nan without a true box."""
    return area_under_curve(match(rows, confidence, boxes, truth_rows, truth_boxes))


def match(
    rows: np.ndarray, confidence: np.ndarray, boxes: np.ndarray, truth_rows: np.ndarray, truth_boxes: np.ndarray
) -> Matches:
    """Rank predictions and mark the true positives by VOC's rules (see the module's docstring).

    rows (n,), truth_rows (m,): the image of each box, integers >= 0. confidence (n,). boxes (n, 4), truth_boxes (m, 4):
    xyxy in one unit. Time is linear in n but for one sort; which box a prediction belongs to does not depend on the
    other predictions, so it is found for all at once, and only then the first claim on each box.
    """
    by_row = np.argsort(truth_rows, kind="stable")
    truth_boxes = truth_boxes[by_row]
    count_of = np.bincount(truth_rows, minlength=int(rows.max(initial=-1)) + 1)
    first_of = np.cumsum(count_of) - count_of

    highest, claim = np.full(len(rows), IOU_THRESHOLD), np.full(len(rows), -1)
    some = np.arange(len(rows))
    for nth in range(count_of.max(initial=0)):  # the nth true box of each image; few images have a third
        some = some[count_of[rows[some]] > nth]
        truth = first_of[rows[some]] + nth
        overlap = paired_iou(boxes[some], truth_boxes[truth])
        higher = np.flatnonzero(overlap > highest[some])
        highest[some[higher]], claim[some[higher]] = overlap[higher], truth[higher]

    ranking = descending_order(confidence)
    claimed = claim[ranking]
    claimants = np.flatnonzero(claimed >= 0)
    _, first_claim = np.unique(claimed[claimants], return_index=True)
    hit = np.zeros(len(rows), dtype=bool)
    hit[claimants[first_claim]] = True
    return Matches(confidence[ranking], hit, len(truth_rows))


def descending_order(values: np.ndarray) -> np.ndarray:
    """Indices that sort (n,) values from high to low, equal ones in the order given.

    A stable argsort in half its time: numpy's unstable argsort and its sort of integers use the processor's vector
    units, so values are ranked first, and then rank and index sorted as one number.
    """
    order = np.argsort(-values)
    ranked = values[order]
    rank = np.cumsum(ranked[1:] != ranked[:-1])
    order[1:] += rank * len(values)
    return np.sort(order) % max(len(values), 1)


def paired_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of boxes (n, 4) with others (n, 4), pair by pair, both xyxy; 0 where the union has no area."""
    x1, y1, x2, y2 = boxes.T
    u1, v1, u2, v2 = others.T
    width = np.minimum(x2, u2) - np.maximum(x1, u1)
    height = np.minimum(y2, v2) - np.maximum(y1, v1)
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def area_under_curve(matches: Matches) -> float:
    """Area under the interpolated precision-recall curve, all points; nan without a true box, 0 without predictions."""
    if matches.truths == 0:
        return float("nan")
    precision = np.cumsum(matches.hit) / np.arange(1, len(matches.hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[matches.hit].sum() / matches.truths)  # recall rises by 1 / truths at each hit
