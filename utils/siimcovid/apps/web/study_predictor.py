"""All models on the images of one study: the result that the page shows and the JSON endpoint sends.

In: uint8 images of any size. Out: a dict that is JSON as it stands; `predict_study` describes it.
tests/apps/test_web.py compares its numbers with the kernel's.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from siimcovid import __version__
from siimcovid.apps.web import grad_cam
from siimcovid.apps.web.image_predictor import ImagePrediction, predict_image
from siimcovid.apps.web.loaded_models import STUDY, LoadedModels
from siimcovid.apps.web.page_pictures import data_url, preview_jpeg
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.evaluation.submission_csv import to_pixels
from siimcovid.inference.ensemble import combine
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.weighted_boxes_fusion import COLUMNS, ENSEMBLE, none_confidence

NOTICE = "Research software, not for diagnosis."
BOX_KEYS = ("score", "left", "top", "right", "bottom")


def predict_study(models: LoadedModels, images: Iterable[np.ndarray], pictures: bool = False) -> dict[str, Any]:
    """Predict the images of one study.

    images: uint8 (rows, columns); each is let go before the next is taken, so a generator needs memory for one.
    pictures: with a small JPEG of each image and a heat map, as data: addresses.

    Returns:
        version, notice; models: the names of what offers boxes; study_probabilities: probability of each study label,
        or None without a study model; highest: the likeliest study label, or None; images: for each rows, columns (of
        the original); study_probabilities, the study model's of this image alone; none: model -> confidence that there
        is no opacity; boxes: model -> [{score, left, top, right, bottom}] in original pixels, the highest score first;
        and with pictures `preview` and `heatmap`.
    """
    predictions, previews = [], []
    for image in images:
        previews.append(data_url("image/jpeg", preview_jpeg(image)) if pictures else "")
        predictions.append(predict_image(models, image))
    detections, combined = combine_images(models, predictions)
    mean = combined.study_probs[list(STUDY_LABELS)].to_numpy()[0] if len(combined.study_probs) else None
    highest = None if mean is None else int(mean.argmax())
    entries = [_image_entry(models, number, image, detections, combined) for number, image in enumerate(predictions)]
    if pictures:
        for entry, image, preview in zip(entries, predictions, previews, strict=True):
            entry["preview"] = preview
            entry["heatmap"] = None if highest is None else _heat_map(models, image, highest)
    return {
        "version": __version__,
        "notice": NOTICE,
        "models": models.box_models,
        "study_probabilities": _by_label(mean),
        "highest": None if highest is None else STUDY_LABELS[highest],
        "images": entries,
    }


def combine_images(models: LoadedModels, predictions: list[ImagePrediction]) -> tuple[pd.DataFrame, EnsemblePrediction]:
    """Combine what the models predict on one study's images.

    Returns the detections table of every model, with the ensemble's boxes where there is an ensemble, its image_id an
    image's place in `predictions`; and the ensemble's prediction.
    """
    numbers = list(range(len(predictions)))
    outputs = {
        "images": pd.DataFrame({"image_id": numbers, "study_id": ""}),
        "detections": _detections_table(predictions),
        "predicted_ids": dict.fromkeys(models.ensemble_members, numbers),
    }
    if STUDY in models.stages:
        outputs["study_probs"] = _study_table(predictions)
    combined = combine(ModelOutputs(**outputs), models.preset)
    detections = outputs["detections"]
    if ENSEMBLE in models.box_models:
        detections = pd.concat([detections, combined.detections], ignore_index=True)
    return detections, combined


def _detections_table(predictions: list[ImagePrediction]) -> pd.DataFrame:
    """image_id, model, score and xyxy fractions of all boxes."""
    parts = []
    for number, image in enumerate(predictions):
        for member, boxes in image.boxes.items():
            part = pd.DataFrame(boxes, columns=COLUMNS[2:])
            part.insert(0, "model", member)
            part.insert(0, "image_id", number)
            parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def _study_table(predictions: list[ImagePrediction]) -> pd.DataFrame:
    """image_id, study_id, a probability for each of STUDY_LABELS and, from some models, `none`; a row an image."""
    columns = (*STUDY_LABELS, "none")
    rows = [dict(zip(columns, image.study_probs, strict=False)) for image in predictions]
    table = pd.DataFrame(rows)
    table.insert(0, "study_id", "")
    table.insert(0, "image_id", range(len(predictions)))
    return table


def _image_entry(
    models: LoadedModels,
    number: int,
    image: ImagePrediction,
    detections: pd.DataFrame,
    combined: EnsemblePrediction,
) -> dict[str, Any]:
    """An image's part of the result."""
    alone = None if image.study_probs is None else image.study_probs[: len(STUDY_LABELS)]
    entry = {
        "rows": image.rows,
        "columns": image.columns,
        "study_probabilities": _by_label(alone),
        "none": {},
        "boxes": {},
    }
    found = detections[detections["image_id"] == number]
    for name in models.box_models:
        table = found[found["model"] == name]
        none = combined.none if name == ENSEMBLE else none_confidence(table, [number])
        entry["none"][name] = round(float(none[number]), 4)
        values = to_pixels(table[COLUMNS[2:]].to_numpy(), (image.rows, image.columns)).round(4)
        entry["boxes"][name] = [dict(zip(BOX_KEYS, row, strict=True)) for row in values.tolist()]
    return entry


def _heat_map(models: LoadedModels, image: ImagePrediction, study_label: int) -> str:
    """Grad-CAM of a study label (its place in STUDY_LABELS) as a data: address of a PNG."""
    stage = models.stages[STUDY]
    crop = stage.config.augment.crop
    share = crop / stage.config.infer_size if crop else 1.0
    heat = grad_cam.grad_cam(stage.model.head, image.feature_maps.float(), study_label)
    return data_url("image/png", grad_cam.as_picture(heat, share))


def _by_label(probabilities: np.ndarray | None) -> dict[str, float] | None:
    """Study label -> probability, to four decimals."""
    if probabilities is None:
        return None
    return {name: round(float(value), 4) for name, value in zip(STUDY_LABELS, probabilities, strict=True)}
