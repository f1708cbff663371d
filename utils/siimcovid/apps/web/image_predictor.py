"""What each model predicts on one image.

In: uint8 pixels (rows, columns) of any size. Out: an `ImagePrediction`. The steps are the kernel's: the image at the
size of the image cache, stretched to the model's square, predicted; in memory, since no upload is kept.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from siimcovid.apps.web.loaded_models import HFLIP, STUDY, LoadedModels, Stage
from siimcovid.data import image_cache
from siimcovid.data.resize import centre_crop, resize_to_square
from siimcovid.models.backbone import normalise
from siimcovid.models.study_classifier import probabilities


@dataclass(frozen=True)
class ImagePrediction:
    """The models' outputs for one image, before they are combined."""

    rows: int
    columns: int
    boxes: dict[str, np.ndarray]  # ensemble member -> (n, 5) score and xyxy fractions of the image
    study_probs: np.ndarray | None  # (4,) probabilities of STUDY_LABELS, from some models a fifth, of `none`
    feature_maps: Tensor | None  # (1, C, h, w), the last of the study model's backbone


def predict_image(models: LoadedModels, image: np.ndarray) -> ImagePrediction:
    """Run every model on one image."""
    rows, columns = image.shape
    image = image_cache.fit(image, models.preset.cache_size)
    boxes = {name: _predict_boxes(models, name, image) for name in models.ensemble_members}
    study_probs, feature_maps = _predict_study_labels(models, image) if STUDY in models.stages else (None, None)
    return ImagePrediction(rows, columns, boxes, study_probs, feature_maps)


def _predict_boxes(models: LoadedModels, member: str, image: np.ndarray) -> np.ndarray:
    """(n, 5) score and xyxy fractions of an ensemble member, as they lie in the image that is not mirrored."""
    stage, mirrored = models.stages[member.removesuffix(HFLIP)], member.endswith(HFLIP)
    pixels = model_input(image, stage, models.device)
    with torch.inference_mode(), models.autocast():
        ((corners, scores),) = stage.model.predict(pixels.flip(-1) if mirrored else pixels)
    boxes = torch.cat([scores.float()[:, None], corners.float()], dim=1).cpu().numpy().astype(np.float64)
    if mirrored:
        boxes[:, [1, 3]] = 1 - boxes[:, [3, 1]]
    return boxes


def _predict_study_labels(models: LoadedModels, image: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """The study model's probabilities (4 or 5,) and its backbone's last feature maps (1, C, h, w)."""
    stage = models.stages[STUDY]
    pixels = model_input(image, stage, models.device)
    with torch.no_grad(), models.autocast():  # not inference mode: the heat map takes gradients from the maps on
        feature_maps = stage.model.backbone(normalise(pixels))[-1]
        predicted = probabilities(stage.model.head(feature_maps.mean(dim=(2, 3))).float())
        if stage.config.hflip_tta:
            predicted = (predicted + probabilities(stage.model.predict(pixels.flip(-1)).float())) / 2
    return predicted[0].cpu().numpy().astype(np.float64), feature_maps


def model_input(image: np.ndarray, stage: Stage, device: torch.device) -> Tensor:
    """An image as a stage's input (1, 1, S, S) uint8: stretched to a square, then the centre crop of its augmentation,
    as inference/predictor.py makes it from the cache."""
    square = centre_crop(resize_to_square(image, stage.config.infer_size), stage.config.augment.crop)
    return torch.from_numpy(np.ascontiguousarray(square))[None, None].to(device)
