"""What is fused: the tables that `predictor` makes with each model, together with the images they were made for."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pandas as pd

from siimcovid.core.labels import STUDY_LABELS


def _no_study_probs() -> pd.DataFrame:
    return pd.DataFrame(columns=["image_id", "study_id", *STUDY_LABELS])


@dataclass(frozen=True)
class ModelOutputs:
    """The outputs of several models for the same images, each model's by itself.

    Attributes:
        images: image_id and study_id of every image that is to get a prediction.
        detections: the detections table of all models: image_id, model, score, x1, y1, x2, y2 (fractions).
        predicted_ids: model name -> ids of the images that it predicted, those without any box included.
        study_probs: a row per image: image_id, study_id, STUDY_LABELS and, from some study models, `none`.
    """

    images: pd.DataFrame
    detections: pd.DataFrame
    predicted_ids: Mapping[str, Collection[str]]
    study_probs: pd.DataFrame = field(default_factory=_no_study_probs)

    def of_images(self, image_ids: Collection[str]) -> "ModelOutputs":
        """The outputs for some of the images."""
        image_ids = set(image_ids)
        images, detections, study_probs = (
            table[table["image_id"].isin(image_ids)] for table in (self.images, self.detections, self.study_probs)
        )
        predicted = {
            name: [image for image in images if image in image_ids] for name, images in self.predicted_ids.items()
        }
        return ModelOutputs(images, detections, predicted, study_probs)
