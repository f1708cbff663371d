"""What is scored and submitted: the ensemble's boxes, `none` confidences and study probabilities of a set of images."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class EnsemblePrediction:
    """One prediction for a set of images.

    Attributes:
        detections: image_id, model ("ensemble"), score in [0, 1], x1, y1, x2, y2 as fractions of the original image.
        none: image_id -> confidence in [0, 1] that there is no opacity, of the images that a detector predicted.
        study_probs: study_id and STUDY_LABELS, which add up to 1 in each row.
    """

    detections: pd.DataFrame
    none: pd.Series
    study_probs: pd.DataFrame
