"""The models of a weights folder, and what they say of the images of one study.

In: uint8 images of any size. Out: a dict that is JSON as it stands (`Models.predict` describes it). The steps are the
kernel's: the image at the cache's size, stretched to the model's square, predicted, fused; in memory, since no upload
is kept. tests/test_web.py holds both against each other.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from siimcovid import __version__
from siimcovid.apps.web import grad_cam
from siimcovid.core.configuration import Preset
from siimcovid.core.device import choose_device
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.presets import PRESETS, SMALL
from siimcovid.data import image_cache
from siimcovid.evaluation.submission_csv import to_pixels
from siimcovid.inference import fit_ensemble
from siimcovid.inference.ensemble import EnsemblePrediction, ModelOutputs, combine
from siimcovid.inference.weighted_boxes_fusion import COLUMNS, ENSEMBLE, none_confidence
from siimcovid.models import checkpoints, weights_folder
from siimcovid.models.backbone import for_inference, normalise
from siimcovid.models.study_classifier import probabilities

NOTICE = "Research software, not for diagnosis."

#: What a detector's name ends in where it looked at the mirrored image.
HFLIP = "_hflip"

#: Longer side in pixels of the picture that the page shows.
PREVIEW_SIDE = 1024


@dataclass(frozen=True)
class Stage:
    """A trained stage: its configuration and its model."""

    config: Any
    model: nn.Module


@dataclass
class Seen:
    """What is kept of an image once the models have looked at it."""

    rows: int
    columns: int
    boxes: dict[str, np.ndarray]  # detector, or its name with FLIP -> (n, 5) score and xyxy fractions of the image
    study_probs: np.ndarray | None  # (4,) probabilities, and from some models a fifth, of `none`
    maps: Tensor | None  # the study backbone's last, (1, C, h, w)
    preview: str  # a data: address, or ""


class Models:
    """The trained stages that a folder of weights holds.

    Attributes:
        stages: those that are there, detectors and "study", made for inference.
        choices: what boxes can come from: the detectors that are there and, with both, their ensemble.
    """

    def __init__(self, stages: dict[str, Stage], preset: Preset = SMALL):
        self.device = choose_device()
        self.stages = {
            name: replace(stage, model=for_inference(stage.model.to(self.device))) for name, stage in stages.items()
        }
        self.preset = preset
        self.detectors = [name for name in preset.fusion.detectors if name in stages]
        self.choices = [*self.detectors, ENSEMBLE] if len(self.detectors) > 1 else list(self.detectors)
        #: what the ensemble hears, as in the kernel: the detectors and, with `hflip_tta`, each again on the mirrored
        #: image
        self.model_names = list(self.detectors)
        if preset.fusion.hflip_tta and ENSEMBLE in self.choices:
            self.model_names += [f"{name}{HFLIP}" for name in self.detectors]

    @classmethod
    def load(cls, folder: Path) -> "Models":
        """Load every trained stage of a folder, verified. Raises InputError where there is none or one is damaged."""
        manifest = weights_folder.read_manifest(folder)
        stages, preset, wanted = {}, "", [f"{name}.safetensors" for name in (*checkpoints.DETECTORS, "study")]
        for name in wanted:
            if manifest.get(name, {}).get("preset"):
                stage, config, model = checkpoints.load(weights_folder.verified(folder, name))
                stages[stage] = Stage(config, model)
                preset = preset or manifest[name]["preset"]
        if not stages:
            raise InputError(
                f"{folder} holds no trained stage ({', '.join(wanted)}): name the weights/ of a training run"
            )
        return cls(stages, override(PRESETS.get(preset, SMALL), fit_ensemble.read(folder)).check())

    def predict(self, images: Iterable[np.ndarray], pictures: bool = False) -> dict[str, Any]:
        """What the models say of the images of one study.

        images: uint8 (rows, columns); each is let go before the next is taken, so a generator needs memory for one.
        pictures: with a small JPEG of each image and a heat map, as data: addresses.

        Returns:
            version, notice; models: the names of what offers boxes; study labels: probability of each study label, the
            mean over the images, or None without a study model; highest: the likeliest study label, or None; images:
            for each rows, columns (of the original); study labels of this image alone; none: model -> confidence that
            there is no opacity; boxes: model -> [{score, left, top, right, bottom}] in original pixels, the highest
            score first; and with pictures `preview` and `heatmap`.
        """
        seen = [self.look(image, pictures) for image in images]
        boxes, answer = self.combined(seen)
        mean = answer.study_probs[list(STUDY_LABELS)].to_numpy()[0] if len(answer.study_probs) else None
        highest = None if mean is None else int(mean.argmax())
        result = {
            "version": __version__,
            "notice": NOTICE,
            "models": self.choices,
            "study_probabilities": _named(mean),
            "highest": None if highest is None else STUDY_LABELS[highest],
            "images": [],
        }
        for number, image in enumerate(seen):
            found = boxes[boxes["image_id"] == number]
            entry = {
                "rows": image.rows,
                "columns": image.columns,
                "study_probabilities": _named(
                    None if image.study_probs is None else image.study_probs[: len(STUDY_LABELS)]
                ),
                "none": {},
                "boxes": {},
            }
            for name in self.choices:
                table = found[found["model"] == name]
                none = answer.none if name == ENSEMBLE else none_confidence(table, [number])
                entry["none"][name] = round(float(none[number]), 4)
                values = to_pixels(table[COLUMNS[2:]].to_numpy(), (image.rows, image.columns)).round(4)
                names = ("score", "left", "top", "right", "bottom")
                entry["boxes"][name] = [dict(zip(names, row, strict=True)) for row in values.tolist()]
            if pictures:
                entry["preview"] = image.preview
                entry["heatmap"] = None if highest is None else self.heat(image, highest)
            result["images"].append(entry)
        return result

    def look(self, image: np.ndarray, preview: bool = False) -> Seen:
        """Run every stage on one image."""
        rows, columns = image.shape
        picture = as_address("image/jpeg", shrink(image)) if preview else ""
        image = image_cache.fit(image, self.preset.cache_size)
        boxes = {}
        for name in self.model_names:
            stage, mirrored = name.removesuffix(HFLIP), name.endswith(HFLIP)
            pixels = self.pixels(image, stage)
            with torch.inference_mode(), self.autocast():
                ((corners, scores),) = self.stages[stage].model.predict(pixels.flip(-1) if mirrored else pixels)
            table = torch.cat([scores.float()[:, None], corners.float()], dim=1).cpu().numpy().astype(np.float64)
            if mirrored:
                table[:, [1, 3]] = 1 - table[:, [3, 1]]
            boxes[name] = table
        study_probs = maps = None
        if "study" in self.stages:
            model = self.stages["study"].model
            with torch.no_grad(), self.autocast():  # not inference mode: the heat map needs gradients from the maps on
                maps = model.backbone(normalise(self.pixels(image, "study")))[-1]
                said = probabilities(model.head(maps.mean(dim=(2, 3))).float())
                if self.stages["study"].config.hflip_tta:
                    said = (said + probabilities(model.predict(self.pixels(image, "study").flip(-1)).float())) / 2
                study_probs = said[0].cpu().numpy().astype(np.float64)
        return Seen(rows, columns, boxes, study_probs, maps, picture)

    def combined(self, seen: list[Seen]) -> tuple[pd.DataFrame, EnsemblePrediction]:
        """The detections table of one study's images, their place in `seen` for an image_id, with the ensemble's boxes
        where there is an ensemble; and what all models say together."""
        parts, rows = [pd.DataFrame(columns=COLUMNS)], []
        for number, image in enumerate(seen):
            for name, values in image.boxes.items():
                part = pd.DataFrame(values, columns=COLUMNS[2:])
                part.insert(0, "model", name)
                part.insert(0, "image_id", number)
                parts.append(part)
            if image.study_probs is not None:
                rows.append(
                    {
                        "image_id": number,
                        "study_id": "",
                        **dict(zip((*STUDY_LABELS, "none"), image.study_probs, strict=False)),
                    }
                )
        numbers = list(range(len(seen)))
        images = pd.DataFrame({"image_id": numbers, "study_id": ""})
        table = pd.concat(parts[1:] or parts, ignore_index=True)
        said = ModelOutputs(images, table, dict.fromkeys(self.model_names, numbers))
        answer = combine(replace(said, study_probs=pd.DataFrame(rows)) if rows else said, self.preset)
        if ENSEMBLE in self.choices:
            table = pd.concat([table, answer.detections], ignore_index=True)
        return table, answer

    def heat(self, image: Seen, study_label: int) -> str:
        """The heat map of a study label as a data: address."""
        config = self.stages["study"].config
        seen = config.augment.crop / config.infer_size if config.augment.crop else 1.0
        heat = grad_cam.grad_cam(self.stages["study"].model.head, image.maps.float(), study_label)
        return as_address("image/png", grad_cam.as_picture(heat, seen))

    def pixels(self, image: np.ndarray, name: str) -> Tensor:
        """An image as a stage's input (1, 1, S, S) uint8, as predict.py makes it from the cache."""
        config = self.stages[name].config
        size, crop = config.infer_size, config.augment.crop
        shrinks = max(image.shape) > size
        square = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if crop:
            start = (size - crop) // 2
            square = square[start : start + crop, start : start + crop]
        return torch.from_numpy(np.ascontiguousarray(square))[None, None].to(self.device)

    def autocast(self) -> torch.autocast:
        """Mixed precision on a GPU, as in predict.py."""
        return torch.autocast(self.device.type, enabled=self.device.type == "cuda")


def shrink(image: np.ndarray) -> bytes:
    """An image as a JPEG of at most PREVIEW_SIDE pixels."""
    picture = image_cache.fit(image, PREVIEW_SIDE)
    return cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes()


def as_address(kind: str, data: bytes) -> str:
    """Bytes as a data: address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _named(probabilities: np.ndarray | None) -> dict[str, float] | None:
    if probabilities is None:
        return None
    return {name: round(float(value), 4) for name, value in zip(STUDY_LABELS, probabilities, strict=True)}
