"""All models on the images of one study: the result that the page shows and the JSON endpoint sends.

In: uint8 images of any size and the models that `siimcovid.load` loads. Out: a dict that is JSON as it stands;
`predict_study` describes it. tests/apps/test_web.py compares its numbers with the kernel's.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from siimcovid import __version__
from siimcovid.apps.web import grad_cam
from siimcovid.apps.web.page_pictures import data_url, preview_jpeg
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.stage_names import stage_of
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.evaluation.submission_csv import to_pixels
from siimcovid.inference.ensemble import combine
from siimcovid.inference.predictor import unlike_images
from siimcovid.inference.trained_model import TrainedModel
from siimcovid.inference.weighted_boxes_fusion import COLUMNS, ENSEMBLE, none_confidence
from siimcovid.models.onnx_engine import in_pytorch
from siimcovid.models.out_of_distribution import SENTENCE

BOX_KEYS = ("score", "left", "top", "right", "bottom")


def box_models(model: TrainedModel) -> list[str]:
    """What boxes are offered of: each detector and, where several predictions are fused, the ensemble.

    All members of a fold ensemble are detectors of their own ("rcnn", "rcnn.1"); one alone that predicts the mirrored
    image too (`hflip_tta`) is fused with that.
    """
    detectors = [name for stage in model.preset.fusion.detectors for name in model.models if stage_of(name) == stage]
    fused = len(detectors) * (2 if model.preset.fusion.hflip_tta else 1)
    return [*detectors, ENSEMBLE] if fused > 1 else detectors


def predict_study(model: TrainedModel, images: Iterable[np.ndarray], pictures: bool = False) -> dict[str, Any]:
    """Predict the images of one study.

    images: uint8 (rows, columns); each is let go before the next is taken, so a generator needs memory for one.
    pictures: with a small JPEG of each image and a heat map, as data: addresses.

    Returns:
        version; notice: what must be known of the weights; models: the names of what offers boxes;
        study_probabilities: probability of each study label, or None without a study model; highest: the likeliest
        study label, or None; images: for each rows, columns (of the original); study_probabilities, the study models'
        of this image alone; notice: a sentence where the image is unlike those that the study model learnt from, else
        ""; none: model -> confidence that there is no opacity; boxes: model -> [{score, left, top,
        right, bottom}] in original pixels, the highest score first; and with pictures `preview` and `heatmap`.
    """
    previews = []

    def with_previews() -> Iterator[np.ndarray]:
        for image in images:
            previews.append(data_url("image/jpeg", preview_jpeg(image)) if pictures else "")
            yield image

    found = model.outputs_of_study(with_previews())
    offered, combined = box_models(model), combine(found.outputs, model.preset)
    detections = pd.concat([found.outputs.detections, combined.detections], ignore_index=True)
    alone = found.outputs.study_probs.set_index("image_id")
    entries = [_image_entry(offered, image, alone, detections, combined) for image in found.index.itertuples()]
    mean = combined.study_probs[list(STUDY_LABELS)].to_numpy()[0] if len(combined.study_probs) else None
    highest = None if mean is None else int(mean.argmax())
    if pictures:
        for entry, pixels, preview in zip(entries, found.pixels, previews, strict=True):
            entry["preview"] = preview
            entry["heatmap"] = None if highest is None else _heat_map(model, pixels, highest)
    return {
        "version": __version__,
        "notice": " ".join(model.notices),
        "models": offered,
        "study_probabilities": _by_label(mean),
        "highest": None if highest is None else STUDY_LABELS[highest],
        "images": entries,
    }


def _image_entry(
    offered: list[str], image: Any, alone: pd.DataFrame, detections: pd.DataFrame, combined: EnsemblePrediction
) -> dict[str, Any]:
    """An image's part of the result.

    image: its row of StudyOutputs.index. alone: the study models' probabilities by image_id. detections: of every
    model and of the ensemble.
    """
    name, size = image.image_id, (image.rows, image.columns)
    probabilities = alone.loc[name, list(STUDY_LABELS)].to_numpy(float) if name in alone.index else None
    entry = {
        "rows": int(image.rows),
        "columns": int(image.columns),
        "study_probabilities": _by_label(probabilities),
        "notice": SENTENCE if name in unlike_images(alone.reset_index()) else "",
        "none": {},
        "boxes": {},
    }
    found = detections[detections["image_id"] == name]
    for model in offered:
        table = found[found["model"] == model]
        none = combined.none if model == ENSEMBLE else none_confidence(table, [name])
        entry["none"][model] = round(float(none[name]), 4)
        values = to_pixels(table[COLUMNS[2:]].to_numpy(float), size).round(4)
        entry["boxes"][model] = [dict(zip(BOX_KEYS, row, strict=True)) for row in values.tolist()]
    return entry


def _heat_map(model: TrainedModel, pixels: np.ndarray, study_label: int) -> str:
    """The study models' heat map of a study label (its place in STUDY_LABELS) as a data: address of a PNG."""
    studies = [(config, in_pytorch(each)) for name, (config, each) in model.models.items() if stage_of(name) == "study"]
    return data_url("image/png", grad_cam.heat_map(studies, pixels, study_label))


def _by_label(probabilities: np.ndarray | None) -> dict[str, float] | None:
    """Study label -> probability, to four decimals."""
    if probabilities is None:
        return None
    return {name: round(float(value), 4) for name, value in zip(STUDY_LABELS, probabilities, strict=True)}
