"""The trained models of a weights folder as one model that predicts images: `siimcovid.load(folder)`.

    model = siimcovid.load("runs/demo/weights")
    prediction = model.predict("image.dcm")
    prediction.plot()

In: the safetensors files and ensemble.json of a weights folder, verified. Out: boxes in pixels, the probabilities of
the study labels and of `none`, fused by the preset that the weights were trained with.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override, to_dict
from siimcovid.core.presets import PRESETS, SMALL
from siimcovid.core.stage_names import DETECTORS, stage_of
from siimcovid.data import image_cache, image_files
from siimcovid.data.image_memory import HeldImages, ImageMemory
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.evaluation.submission_csv import to_pixels
from siimcovid.inference import fitted_numbers
from siimcovid.inference.ensemble import combine
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.predictor import DETECTION_COLUMNS, predict_images, unlike_images
from siimcovid.models import checkpoints, weights_manifest
from siimcovid.models.out_of_distribution import SENTENCE

#: Stands in every output.
RESEARCH_NOTICE = "Research software, not for diagnosis."
SYNTHETIC_NOTICE = "The weights were trained on synthetic images: what they predict means nothing on patients."

#: Boxes of a lower score are left out of what people look at: the report's own threshold.
THRESHOLD = 0.1

#: Bytes of decoded images that the models of one call share.
MEMORY = 128 << 20


class Box(NamedTuple):
    """An opacity: its score in [0, 1], and its corners in pixels of the original image."""

    score: float
    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True)
class ImagePrediction:
    """What the models predict for one image.

    Attributes:
        name: of the image.
        rows, columns: size of the original in pixels.
        boxes: the opacities, highest score first.
        study_probs: probability of each study label, of the image's study; they add up to 1. Empty without a study
            model.
        none: confidence in [0, 1] that the image has no opacity; nan without a detector.
        notices: what must be known of the weights, and whether the image is unlike those that the study model learnt
            from, a sentence each.
        pixels: (h, w) uint8, the image upright at the models' working size.
    """

    name: str
    rows: int
    columns: int
    boxes: tuple[Box, ...]
    study_probs: Mapping[str, float]
    none: float
    notices: tuple[str, ...]
    pixels: np.ndarray = field(repr=False, compare=False)

    @property
    def label(self) -> str:
        """The likeliest study label, "" without a study model."""
        return max(self.study_probs, key=self.study_probs.get) if self.study_probs else ""

    def plot(self, axes: Any = None) -> Any:
        """Draw the image with its boxes, the label and the notices on matplotlib `axes` (new ones by default), and
        return them."""
        from matplotlib import pyplot
        from matplotlib.patches import Rectangle

        axes = axes if axes is not None else pyplot.subplots(figsize=(6, 6), layout="constrained")[1]
        extent = (0, self.columns, self.rows, 0)  # coordinates are the original's pixels
        axes.imshow(self.pixels, cmap="gray", vmin=0, vmax=255, extent=extent)
        for box in self.boxes:
            size = box.xmax - box.xmin, box.ymax - box.ymin
            axes.add_patch(Rectangle((box.xmin, box.ymin), *size, fill=False, color="orange", lw=1.5))
            axes.text(box.xmin, box.ymin, f"{box.score:.2f}", color="orange", fontsize=8, va="bottom")
        title = f"{self.label} {self.study_probs[self.label]:.2f}   " if self.label else ""
        axes.set_title(f"{title}none {self.none:.2f}", fontsize=10)
        axes.set_xlabel("\n".join(self.notices), fontsize=7)
        axes.set_xticks([])
        axes.set_yticks([])
        return axes


@dataclass(frozen=True)
class StudyOutputs:
    """What every model predicts on the images of one study, before that is combined.

    Attributes:
        index: a row per image: image_id ("0", "1" …), study_id, name, rows, columns (of the original).
        pixels: of each image, (h, w) uint8, upright at the models' working size.
        outputs: the models' outputs.
    """

    index: pd.DataFrame
    pixels: list[np.ndarray]
    outputs: ModelOutputs


@dataclass(frozen=True)
class TrainedModel:
    """The trained models of a weights folder.

    Attributes:
        models: name ("rcnn", "rcnn.1" …, "study") -> its configuration and network, prepared for inference.
        preset: how the models are combined.
        trained_on: what the weights were trained on, in words.
        notices: what every output must say of them, a sentence each.
        identity: hexadecimal, the same for the same weights and preset.
    """

    models: Mapping[str, tuple[Any, nn.Module]]
    preset: Preset
    trained_on: str
    notices: tuple[str, ...]
    identity: str

    def predict(self, image: Path | str | np.ndarray, threshold: float = THRESHOLD) -> ImagePrediction:
        """Predict one image: the path of a DICOM, PNG or JPEG file, or uint8 (rows, columns) with 0 black.

        threshold: boxes of a lower score are left out. Raises InputError for an image that cannot be read.
        """
        return self.predict_study([image], threshold)[0]

    def predict_study(
        self, images: Sequence[Path | str | np.ndarray], threshold: float = THRESHOLD
    ) -> list[ImagePrediction]:
        """Predict the images of one study, whose study probabilities are the mean over them; else as `predict`."""
        found = self.outputs_of_study(images)
        rows = as_images(combine(found.outputs, self.preset), found.index, threshold)
        unlike = unlike_images(found.outputs.study_probs)
        return [
            ImagePrediction(
                *(name, row.rows, row.columns, row.boxes, row.study_probs, row.none),
                notices=self.notices_of(row.image_id, unlike),
                pixels=picture,
            )
            for name, row, picture in zip(found.index["name"], rows, found.pixels, strict=True)
        ]

    def notices_of(self, image_id: str, unlike: Collection[str]) -> tuple[str, ...]:
        """What must be said of an image: `notices`, and a sentence more where it is one of `unlike_images`."""
        return (*self.notices, SENTENCE) if image_id in unlike else self.notices

    def outputs_of_study(self, images: Iterable[Path | str | np.ndarray]) -> StudyOutputs:
        """Every model's output for the images of one study, which are held in memory alone.

        images: as for `predict`; each is let go at its full size before the next is taken. Raises InputError for one
        that cannot be read, or for which the models' output is not finite.
        """
        rows, held = [], {}
        for number, image in enumerate(images):
            name = f"image {number + 1}" if isinstance(image, np.ndarray) else str(image)
            pixels = image if isinstance(image, np.ndarray) else image_files.read_image_file(image)
            if pixels.dtype != np.uint8 or pixels.ndim != 2 or not pixels.size:
                raise InputError(
                    f"an image is {pixels.dtype} {pixels.shape}; give uint8 pixels of shape (rows, columns)"
                )
            held[str(number)] = image_cache.fit(pixels, self.preset.cache_size)
            rows.append((str(number), "study", name, *pixels.shape))
        index = pd.DataFrame(rows, columns=["image_id", "study_id", "name", "rows", "columns"])
        outputs = self.outputs(index, memory=HeldImages(held))
        predicted = set(outputs.study_probs["image_id"]).union(*outputs.predicted_ids.values())
        if missing := index.loc[~index["image_id"].isin(predicted), "name"].tolist():
            raise InputError(f"{missing[0]}: the models' output is not finite; use other weights")
        return StudyOutputs(index, list(held.values()), outputs)

    def outputs(
        self, index: pd.DataFrame, cache: Path = Path(), memory: ImageMemory | HeldImages | None = None
    ) -> ModelOutputs:
        """Every model's output for images in the cache, mirrored ones included where the preset asks for them.

        index: image_id, study_id. memory: HeldImages where the images are in no cache. In a distributed launch each
        process predicts all of the images it is given.
        """
        memory, tables, study_tables, predicted = memory or ImageMemory(MEMORY), [], [], {}
        index = index.assign(boxes=[[] for _ in range(len(index))], study_label=None)
        for name, (config, network) in self.models.items():
            stage = stage_of(name)
            for hflip in (False, True) if self.preset.fusion.hflip_tta and stage in DETECTORS else (False,):
                found = predict_images(
                    stage, config, network, index, cache, hflip, split=False, memory=memory, progress=False
                )
                if stage == "study":
                    study_tables.append(found.table)
                    continue
                model_name = f"{name}_hflip" if hflip else name
                predicted[model_name] = found.image_ids
                tables.append(found.table.assign(model=model_name))
        detections = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=DETECTION_COLUMNS)
        study_probs = pd.concat(study_tables) if study_tables else pd.DataFrame(columns=["image_id", "study_id"])
        if len(study_tables) > 1:
            study_probs = study_probs.groupby(["image_id", "study_id"], sort=False).mean().reset_index()
        if not study_tables:
            return ModelOutputs(index[["image_id", "study_id"]], detections, predicted)
        return ModelOutputs(index[["image_id", "study_id"]], detections, predicted, study_probs)


class ImageRow(NamedTuple):
    """One image of an EnsemblePrediction, its boxes in pixels; see ImagePrediction."""

    image_id: str
    rows: int
    columns: int
    boxes: tuple[Box, ...]
    study_probs: dict[str, float]
    none: float


def as_images(prediction: EnsemblePrediction, index: pd.DataFrame, threshold: float) -> list[ImageRow]:
    """A prediction image by image, in the order of `index` (image_id, study_id, rows, columns)."""
    columns = DETECTION_COLUMNS[2:]
    kept = prediction.detections[prediction.detections["score"] >= threshold]
    boxes_of = {name: part[columns].to_numpy(dtype=float) for name, part in kept.groupby("image_id")}
    labels = prediction.study_probs.set_index("study_id")[list(STUDY_LABELS)]
    probs_of = dict(zip(labels.index, labels.to_numpy(dtype=float).tolist(), strict=True))
    found = []
    for image in index.itertuples():
        boxes = to_pixels(boxes_of.get(image.image_id, np.empty((0, 5))), (image.rows, image.columns))
        boxes = sorted((Box(*row) for row in boxes.tolist()), reverse=True)
        probs = probs_of.get(image.study_id)
        study_probs = dict(zip(STUDY_LABELS, probs, strict=True)) if probs else {}
        none = float(prediction.none.get(image.image_id, float("nan")))
        found.append(ImageRow(image.image_id, image.rows, image.columns, tuple(boxes), study_probs, none))
    return found


def load(folder: Path | str) -> TrainedModel:
    """Load the trained models of a weights folder: the detectors and the study model, all members of fold ensembles.

    Every file is verified against the manifest. Raises InputError where the folder holds no trained model, or a damaged
    one.
    """
    folder = Path(folder).expanduser()
    manifest = weights_manifest.read_manifest(folder)
    entries = {}
    for file, entry in manifest.items():
        name = file.removesuffix(".safetensors")
        if file != name and entry.get("preset") and stage_of(name) in (*DETECTORS, "study"):
            entries[name] = entry
    preset_name = next((entry["preset"] for entry in entries.values()), "")
    preset = override(PRESETS.get(preset_name, SMALL), fitted_numbers.read(folder)).check()
    names = [name for name in sorted(entries) if stage_of(name) in preset.stages]
    if not names:
        wanted = ", ".join(f"{stage}.safetensors" for stage in preset.stages)
        raise InputError(f"{folder} holds no trained model ({wanted}): name the weights/ of a training run")
    models = {}
    for name in names:
        path = weights_manifest.verified(folder, f"{name}.safetensors")
        models[name] = checkpoints.load_for_inference(path, stage_of(name))
    facts = {name: entries[name]["sha256"] for name in names} | {"preset": to_dict(preset)}
    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    trained_on = ", ".join(sorted({weights_manifest.trained_on(entries[name]) for name in names}))
    notices = [RESEARCH_NOTICE, f"Weights trained on {trained_on}."]
    if any(entries[name].get("images") == weights_manifest.SYNTHETIC for name in names):
        notices.append(SYNTHETIC_NOTICE)
    return TrainedModel(models, preset, trained_on, tuple(notices), identity)
