"""The models of a weights folder, and what they say of the films of one study.

In: uint8 films of any size. Out: a dict that is JSON as it stands (`Models.predict` describes it). The steps are the
kernel's: the film at the cache's size, stretched to the model's square, predicted, fused; in memory, since no upload
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

from siimcovid import LEVELS, __version__, cache, checkpoint, combination, weights
from siimcovid.combine import Combined, Said, combine
from siimcovid.configs import Preset
from siimcovid.errors import InputError
from siimcovid.fuse import COLUMNS, ENSEMBLE, none_confidence
from siimcovid.models.backbone import for_inference, normalise
from siimcovid.models.study import probabilities
from siimcovid.overrides import override
from siimcovid.presets import PRESETS, SMALL
from siimcovid.submission import to_pixels
from siimcovid.web import heatmap

NOTICE = "Research software, not for diagnosis."

#: What a detector's name ends in where it looked at the mirrored film.
FLIP = "_flip"

#: Longer side in pixels of the picture that the page shows.
PREVIEW_SIDE = 1024


@dataclass(frozen=True)
class Stage:
    """A trained stage: its configuration and its model."""

    config: Any
    model: nn.Module


@dataclass
class Seen:
    """What is kept of a film once the models have looked at it."""

    rows: int
    columns: int
    boxes: dict[str, np.ndarray]  # detector, or its name with FLIP -> (n, 5) score and xyxy fractions of the film
    levels: np.ndarray | None  # (4,) probabilities, and from some models a fifth, of `none`
    maps: Tensor | None  # the study backbone's last, (1, C, h, w)
    preview: str  # a data: address, or ""


class Models:
    """The trained stages that a folder of weights holds.

    Attributes:
        stages: those that are there, detectors and "study", made for inference.
        choices: what boxes can come from: the detectors that are there and, with both, their ensemble.
    """

    def __init__(self, stages: dict[str, Stage], preset: Preset = SMALL):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.stages = {
            name: replace(stage, model=for_inference(stage.model.to(self.device))) for name, stage in stages.items()
        }
        self.preset = preset
        self.detectors = [name for name in preset.fusion.detectors if name in stages]
        self.choices = [*self.detectors, ENSEMBLE] if len(self.detectors) > 1 else list(self.detectors)
        #: what the ensemble hears, as in the kernel: the detectors and, with `flips`, each again on the mirrored film
        self.voices = list(self.detectors)
        if preset.fusion.flips and ENSEMBLE in self.choices:
            self.voices += [f"{name}{FLIP}" for name in self.detectors]

    @classmethod
    def load(cls, folder: Path) -> "Models":
        """Load every trained stage of a folder, verified. Raises InputError where there is none or one is damaged."""
        manifest = weights.read_manifest(folder)
        stages, preset, wanted = {}, "", [f"{name}.safetensors" for name in (*checkpoint.DETECTORS, "study")]
        for name in wanted:
            if manifest.get(name, {}).get("preset"):
                stage, config, model = checkpoint.load(weights.verified(folder, name))
                stages[stage] = Stage(config, model)
                preset = preset or manifest[name]["preset"]
        if not stages:
            raise InputError(
                f"{folder} holds no trained stage ({', '.join(wanted)}): name the weights/ of a training run"
            )
        return cls(stages, override(PRESETS.get(preset, SMALL), combination.read(folder)).check())

    def predict(self, films: Iterable[np.ndarray], pictures: bool = False) -> dict[str, Any]:
        """What the models say of the films of one study.

        films: uint8 (rows, columns); each is let go before the next is taken, so a generator needs memory for one.
        pictures: with a small JPEG of each film and a heat map, as data: addresses.

        Returns:
            version, notice; models: the names of what offers boxes; levels: probability of each level, the mean over
            the films, or None without a study model; highest: the likeliest level, or None;
            films: for each rows, columns (of the original); levels of this film alone; none: model -> confidence that
            there is no opacity; boxes: model -> [{score, left, top, right, bottom}] in original pixels, the highest
            score first; and with pictures `preview` and `heatmap`.
        """
        seen = [self.look(film, pictures) for film in films]
        boxes, answer = self.combined(seen)
        mean = answer.levels[list(LEVELS)].to_numpy()[0] if len(answer.levels) else None
        highest = None if mean is None else int(mean.argmax())
        result = {
            "version": __version__,
            "notice": NOTICE,
            "models": self.choices,
            "levels": _named(mean),
            "highest": None if highest is None else LEVELS[highest],
            "films": [],
        }
        for number, film in enumerate(seen):
            found = boxes[boxes["image_id"] == number]
            entry = {
                "rows": film.rows,
                "columns": film.columns,
                "levels": _named(None if film.levels is None else film.levels[: len(LEVELS)]),
                "none": {},
                "boxes": {},
            }
            for name in self.choices:
                table = found[found["model"] == name]
                none = answer.none if name == ENSEMBLE else none_confidence(table, [number])
                entry["none"][name] = round(float(none[number]), 4)
                values = to_pixels(table[COLUMNS[2:]].to_numpy(), (film.rows, film.columns)).round(4)
                names = ("score", "left", "top", "right", "bottom")
                entry["boxes"][name] = [dict(zip(names, row, strict=True)) for row in values.tolist()]
            if pictures:
                entry["preview"] = film.preview
                entry["heatmap"] = None if highest is None else self.heat(film, highest)
            result["films"].append(entry)
        return result

    def look(self, film: np.ndarray, preview: bool = False) -> Seen:
        """Run every stage on one film."""
        rows, columns = film.shape
        picture = as_address("image/jpeg", shrink(film)) if preview else ""
        film = cache.fit(film, self.preset.cache_size)
        boxes = {}
        for name in self.voices:
            stage, mirrored = name.removesuffix(FLIP), name.endswith(FLIP)
            pixels = self.pixels(film, stage)
            with torch.inference_mode(), self.autocast():
                ((corners, scores),) = self.stages[stage].model.predict(pixels.flip(-1) if mirrored else pixels)
            table = torch.cat([scores.float()[:, None], corners.float()], dim=1).cpu().numpy().astype(np.float64)
            if mirrored:
                table[:, [1, 3]] = 1 - table[:, [3, 1]]
            boxes[name] = table
        levels = maps = None
        if "study" in self.stages:
            model = self.stages["study"].model
            with torch.no_grad(), self.autocast():  # not inference mode: the heat map needs gradients from the maps on
                maps = model.backbone(normalise(self.pixels(film, "study")))[-1]
                said = probabilities(model.head(maps.mean(dim=(2, 3))).float())
                if self.stages["study"].config.flips:
                    said = (said + probabilities(model.predict(self.pixels(film, "study").flip(-1)).float())) / 2
                levels = said[0].cpu().numpy().astype(np.float64)
        return Seen(rows, columns, boxes, levels, maps, picture)

    def combined(self, seen: list[Seen]) -> tuple[pd.DataFrame, Combined]:
        """The detections table of one study's films, their place in `seen` for an image_id, with the ensemble's boxes
        where there is an ensemble; and what all models say together."""
        parts, rows = [pd.DataFrame(columns=COLUMNS)], []
        for number, film in enumerate(seen):
            for name, values in film.boxes.items():
                part = pd.DataFrame(values, columns=COLUMNS[2:])
                part.insert(0, "model", name)
                part.insert(0, "image_id", number)
                parts.append(part)
            if film.levels is not None:
                rows.append(
                    {"image_id": number, "study_id": "", **dict(zip((*LEVELS, "none"), film.levels, strict=False))}
                )
        numbers = list(range(len(seen)))
        films = pd.DataFrame({"image_id": numbers, "study_id": ""})
        table = pd.concat(parts[1:] or parts, ignore_index=True)
        said = Said(films, table, dict.fromkeys(self.voices, numbers))
        answer = combine(replace(said, levels=pd.DataFrame(rows)) if rows else said, self.preset)
        if ENSEMBLE in self.choices:
            table = pd.concat([table, answer.detections], ignore_index=True)
        return table, answer

    def heat(self, film: Seen, level: int) -> str:
        """The heat map of a level as a data: address."""
        config = self.stages["study"].config
        seen = config.augment.crop / config.infer_size if config.augment.crop else 1.0
        heat = heatmap.grad_cam(self.stages["study"].model.head, film.maps.float(), level)
        return as_address("image/png", heatmap.as_picture(heat, seen))

    def pixels(self, film: np.ndarray, name: str) -> Tensor:
        """A film as a stage's input (1, 1, S, S) uint8, as predict.py makes it from the cache."""
        config = self.stages[name].config
        size, crop = config.infer_size, config.augment.crop
        shrinks = max(film.shape) > size
        square = cv2.resize(film, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if crop:
            start = (size - crop) // 2
            square = square[start : start + crop, start : start + crop]
        return torch.from_numpy(np.ascontiguousarray(square))[None, None].to(self.device)

    def autocast(self) -> torch.autocast:
        """Mixed precision on a GPU, as in predict.py."""
        return torch.autocast(self.device.type, enabled=self.device.type == "cuda")


def shrink(film: np.ndarray) -> bytes:
    """A film as a JPEG of at most PREVIEW_SIDE pixels."""
    picture = cache.fit(film, PREVIEW_SIDE)
    return cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes()


def as_address(kind: str, data: bytes) -> str:
    """Bytes as a data: address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _named(probabilities: np.ndarray | None) -> dict[str, float] | None:
    if probabilities is None:
        return None
    return {name: round(float(value), 4) for name, value in zip(LEVELS, probabilities, strict=True)}
