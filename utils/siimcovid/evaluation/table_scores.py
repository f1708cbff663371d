"""The competition's metric (metric.py) on tables in place of files, for what is searched and measured in memory.

In: boxes and study labels as predict.py and combine.py make them, and the index's rows of the images answered, with
their true boxes and study labels. Out: average precisions.
"""

import numpy as np
import pandas as pd

from siimcovid.core.labels import CLASSES
from siimcovid.evaluation.mean_average_precision import Matches, area, average_precision, falling, study_precisions
from siimcovid.inference.ensemble import EnsemblePrediction

CORNERS = ["x1", "y1", "x2", "y2"]


def class_scores(prediction: EnsemblePrediction, images: pd.DataFrame) -> dict[str, float]:
    """Average precision of each of CLASSES, nan for a class without truth, and the "mean" of the others.

    images: the index's rows of the images answered, with their true boxes and study labels. The competition's metric
    (metric.py), on tables in place of files.
    """
    scores = study_precisions(prediction.study_probs, true_study_labels(images))
    none = images.set_index("image_id")["boxes"].map(len).reindex(prediction.none.index) == 0
    order = falling(prediction.none.to_numpy())
    scores["none"] = area(Matches(prediction.none.to_numpy()[order], none.to_numpy()[order], int(none.sum())))
    scores["opacity"] = opacity_score(prediction.detections, images)
    scores = {name: scores[name] for name in CLASSES}
    known = [value for value in scores.values() if not np.isnan(value)]
    return {**scores, "mean": float(np.mean(known)) if known else float("nan")}


def true_study_labels(images: pd.DataFrame) -> pd.Series:
    """study_id -> study label, of an index."""
    return images.drop_duplicates("study_id").set_index("study_id")["study_label"]


def opacity_score(boxes: pd.DataFrame, images: pd.DataFrame) -> float:
    """Average precision of boxes on images of the index; false positives on clear images count."""
    return average_precision(*against(boxes, images))


def against(boxes: pd.DataFrame, images: pd.DataFrame) -> tuple[np.ndarray, ...]:
    """The arguments of metric.match: images' numbers, scores and corners, and those of the truth."""
    number = {name: k for k, name in enumerate(images["image_id"])}
    true = [np.asarray(b, float).reshape(-1, 4) for b in images["boxes"]]
    rows = np.repeat(np.arange(len(images)), [len(b) for b in true])
    found = boxes["image_id"].map(number).to_numpy(dtype=float)
    found, boxes = found[~np.isnan(found)].astype(int), boxes[~np.isnan(found)]
    return (
        found,
        boxes["score"].to_numpy(float),
        boxes[CORNERS].to_numpy(float),
        rows,
        np.concatenate([*true, np.empty((0, 4))]),
    )
