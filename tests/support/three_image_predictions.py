"""Two studies of two and one images, and what two detectors and a study model predict for them."""

import pandas as pd

from siimcovid.apps.ablation.trained_variants import PLAIN
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.presets import load_preset
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.weighted_boxes_fusion import COLUMNS

LEFT, RIGHT = (0.1, 0.2, 0.4, 0.7), (0.6, 0.2, 0.9, 0.7)


def preset(**changes):
    return load_preset("demo", PLAIN | {key.replace("__", "."): value for key, value in changes.items()})


def boxes(*rows):
    """Rows (image, model_name, score, box)."""
    return pd.DataFrame([(image, model_name, score, *box) for image, model_name, score, box in rows], columns=COLUMNS)


def three_images() -> ModelOutputs:
    """Two studies of two and one images: "a" has a box, "b" and "c" look clear; the study model says nothing of "c"."""
    images = pd.DataFrame({"image_id": ["a", "b", "c"], "study_id": ["s", "s", "t"]})
    found = boxes(
        ("a", "rcnn", 0.8, LEFT), ("a", "yolo", 0.6, LEFT), ("b", "rcnn", 0.2, RIGHT), ("c", "yolo", 0.1, RIGHT)
    )  # fmt: skip
    study_probs = pd.DataFrame([["a", "s", 0.2, 0.5, 0.2, 0.1, 0.3], ["b", "s", 0.4, 0.3, 0.2, 0.1, 0.7]])
    study_probs.columns = ["image_id", "study_id", *STUDY_LABELS, "none"]
    return ModelOutputs(images, found, {"rcnn": ["a", "b", "c"], "yolo": ["a", "b", "c"]}, study_probs)
