"""Pseudo-labels: test images with a confident prediction become training images of the detectors.

In: the ensemble's prediction for the test images. Out: rows of the index with the predicted boxes as their truth, and
the preset and images for fine-tuning on them together with the train images. The study model is not fine-tuned: it
would learn its own output. A held-out fold never holds a test image.
"""

import pandas as pd

from siimcovid.core.configuration import Preset, PseudoLabelConfig
from siimcovid.core.overrides import override
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction

CORNERS = ["x1", "y1", "x2", "y2"]


def label(prediction: EnsemblePrediction, test: pd.DataFrame, config: PseudoLabelConfig) -> pd.DataFrame:
    """The test images with a confident prediction, as train images with that prediction for their truth.

    test: rows of the index. An image with confidence `config.none` or more in `none` is empty; one with 1 - config.none
    or less has the boxes of score `config.score` or more, if there are any; the rest are left out.
    """
    none = prediction.none.reindex(test["image_id"]).to_numpy(dtype=float)
    sure = prediction.detections[prediction.detections["score"] >= config.score]
    boxes = {name: part[CORNERS].to_numpy().tolist() for name, part in sure.groupby("image_id", sort=False)}
    empty = none >= config.none
    found = [[] if clear else boxes.get(name, []) for clear, name in zip(empty, test["image_id"], strict=True)]
    full = (none <= 1 - config.none) & pd.Series(found, dtype=object).map(len).to_numpy(dtype=bool)
    taken = test.assign(boxes=pd.Series(found, index=test.index, dtype=object), split="train", study_label=None)
    return taken.assign(annotated=True)[empty | full]


def further(stage: str, preset: Preset, images: pd.DataFrame, labelled: pd.DataFrame) -> tuple[Preset, pd.DataFrame]:
    """The preset and the images to fine-tune a detector with: its train images in `images`, and those of `label`.

    Training is to start from the detector's trained weights (train_stage.fit's `start`); its last epoch is kept.
    """
    training, config = getattr(preset, stage).training, preset.pseudo
    changes = {
        "epochs": config.epochs,
        "learning_rate": training.learning_rate * config.learning_rate,
        "validate": False,
        "patience": 0,
    }
    changed = override(
        preset, {f"{stage}.training.{key}": value for key, value in changes.items()} | {"hold_out": False}
    )
    return changed, pd.concat([images[images["split"] == "train"], labelled], ignore_index=True)
