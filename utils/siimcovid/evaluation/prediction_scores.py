"""The competition's metric for predictions in memory, without writing a submission.

In: an `EnsemblePrediction` or its boxes, and the index's rows of the images predicted, with their true boxes and study
labels. Out: average precisions, equal to those of the submission file (mean_average_precision.py).
"""

import numpy as np
import pandas as pd

from siimcovid.core.labels import CLASSES
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.evaluation.mean_average_precision import (
    Matches,
    area_under_curve,
    average_precision,
    descending_order,
    mean_of_known,
    study_precisions,
)

CORNERS = ["x1", "y1", "x2", "y2"]


def class_scores(prediction: EnsemblePrediction, images: pd.DataFrame) -> dict[str, float]:
    """Average precision of each of CLASSES, nan for a class without truth, and the "mean" of the others.

    images: the index's rows of the images predicted: image_id, study_id, boxes, study_label.
    """
    scores = study_precisions(prediction.study_probs, true_study_labels(images))
    none = prediction.none.to_numpy()
    empty = (images.set_index("image_id")["boxes"].map(len).reindex(prediction.none.index) == 0).to_numpy()
    order = descending_order(none)
    scores["none"] = area_under_curve(Matches(none[order], empty[order], int(empty.sum())))
    scores["opacity"] = opacity_score(prediction.detections, images)
    scores = {name: scores[name] for name in CLASSES}
    return {**scores, "mean": mean_of_known(scores)}


def true_study_labels(images: pd.DataFrame) -> pd.Series:
    """study_id -> study label, of an index."""
    return images.drop_duplicates("study_id").set_index("study_id")["study_label"]


def opacity_score(boxes: pd.DataFrame, images: pd.DataFrame) -> float:
    """Average precision of boxes on images of the index; false positives on images without a true box count."""
    return average_precision(*match_arguments(boxes, images))


def match_arguments(boxes: pd.DataFrame, images: pd.DataFrame) -> tuple[np.ndarray, ...]:
    """The arguments of `mean_average_precision.match`: rows (n,), confidence (n,), boxes (n, 4), truth_rows (m,) and
    truth_boxes (m, 4), where a row is the image's place in `images`. Boxes of other images are left out."""
    number = {name: k for k, name in enumerate(images["image_id"])}
    true = [np.asarray(b, float).reshape(-1, 4) for b in images["boxes"]]
    truth_rows = np.repeat(np.arange(len(images)), [len(b) for b in true])
    rows = boxes["image_id"].map(number).to_numpy(dtype=float)
    boxes, rows = boxes[~np.isnan(rows)], rows[~np.isnan(rows)].astype(int)
    confidence, corners = boxes["score"].to_numpy(float), boxes[CORNERS].to_numpy(float)
    return rows, confidence, corners, truth_rows, np.concatenate([*true, np.empty((0, 4))])
