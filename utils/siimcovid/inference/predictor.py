"""Predictions of trained models on cached images, as tables.

detections   image_id, model, score, x1, y1, x2, y2: fractions of the image, an image's highest box first
study labels       image_id, study_id, the four probabilities in the order of STUDY_LABELS, and of a study model that
                   estimates it
             the image's `none`

Under `accelerate launch` or `torchrun` every process predicts its share of the batches, and all have the whole table in
the end, with the same rows in the same order as one process. All of them must call then.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from siimcovid.core.device import choose_device
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.processes import launched_as
from siimcovid.data.datasets import SHARED, ImageDataset, loader
from siimcovid.data.image_cache import read
from siimcovid.models.backbone import for_inference
from siimcovid.models.study_classifier import probabilities

DETECTION_COLUMNS = ["image_id", "model", "score", "x1", "y1", "x2", "y2"]


@dataclass(frozen=True)
class Predictions:
    """What a model said."""

    table: pd.DataFrame  # detections or study labels
    image_ids: list[str]  # the images it looked at, in the index's order, those without a box included
    unreadable: list[str]  # images without a whole picture in the cache
    not_finite: list[str]  # images of which the model says a number that is not finite


class InferenceDataset(ImageDataset):
    """Images of which some may have no readable picture: those come black, and marked."""

    changed: Callable[[np.ndarray], np.ndarray] | None = None  # what is done to a square image before the model sees it

    def image(self, number: int) -> np.ndarray:
        square = super().image(number)
        if self.changed is None:
            return square
        square = square.view()
        square.flags.writeable = False  # the memory's own, which other models look at
        return self.changed(square)

    def __getitem__(self, number: int) -> dict:
        try:
            return {**super().__getitem__(number), "readable": True}
        except InputError:
            black = torch.zeros((1, self.size, self.size), dtype=torch.uint8)
            name, boxes = self.image_ids[number], torch.zeros((0, 4))
            return {"images": black, "boxes": boxes, "study_labels": -1, "image_ids": name, "readable": False}


def predict_table(
    stage: str,
    config: Any,
    model: nn.Module,
    images: pd.DataFrame,
    cache: Path,
    hflip: bool = False,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> pd.DataFrame:
    """Predict images of the index that lie in the cache: a detections table for a detector, study labels for `study`.

    On a GPU the model runs under autocast; on the CPU in float32. What runs is a copy made for inference. With `hflip`
    it sees mirrored images; the boxes come back as of the images themselves, under the model name "<stage>_hflip". With
    `change` it sees what that makes of each square image, uint8 (side, side), as a new array of the same shape.
    An image for which a number is not finite has no rows. Raises InputError where an image has no whole picture.
    """
    found = predict_images(
        stage, config, for_inference(model.to(default_device())), images, cache, hflip, change=change
    )
    if found.unreadable:
        read(cache, found.unreadable[0])  # says what is wrong
    return found.table


def predict_images(
    stage: str,
    config: Any,
    model: nn.Module,
    images: pd.DataFrame,
    cache: Path,
    hflip: bool = False,
    device: str | None = None,
    may_go_on: Callable[[], bool] = lambda: True,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Predictions:
    """Predict as many images as may be; see `predict`.

    model: made by `for_inference`. device: "cpu" keeps off a GPU that is there. may_go_on: asked after each batch;
    False leaves the rest out.
    """
    device = torch.device(device) if device else default_device()
    share, gather = _share(len(images), config.infer_batch)
    model = model.to(device)
    dataset = InferenceDataset(images, cache, config.infer_size, memory=SHARED)
    dataset.changed = change
    crop = config.augment.crop
    rows: list[tuple[str, bool, np.ndarray]] = []  # an image's id, whether it could be read, and its output
    batches = loader(Subset(dataset, share), config.infer_batch)
    for batch in tqdm(batches, desc=f"predict {stage}", unit="batch", mininterval=2):
        pixels = batch["images"].to(device, non_blocking=True)
        if crop:
            start = (pixels.shape[-1] - crop) // 2
            pixels = pixels[..., start : start + crop, start : start + crop]
        if hflip:
            pixels = pixels.flip(-1)
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            output = model.predict(pixels)
            if stage == "study":
                output = probabilities(output.float())
                if config.hflip_tta:
                    output = (output + probabilities(model.predict(pixels.flip(-1)).float())) / 2
        rows += zip(batch["image_ids"], batch["readable"], _arrays(output), strict=True)
        if not may_go_on():
            break
    rows = gather(rows)
    unreadable = [name for name, readable, _ in rows if not readable]
    not_finite = [name for name, readable, values in rows if readable and not np.isfinite(values).all()]
    left_out = {*unreadable, *not_finite}
    rows = [(name, values) for name, _, values in rows if name not in left_out]
    names = [name for name, _ in rows]
    if stage == "study":
        studies = dict(zip(images["image_id"], images["study_id"], strict=True))
        columns = [*STUDY_LABELS, "none"] if config.none else list(STUDY_LABELS)
        values = np.array([values for _, values in rows], dtype=np.float64).reshape(-1, len(columns))
        table = pd.DataFrame({"image_id": names, "study_id": [studies[name] for name in names]})
        return Predictions(table.join(pd.DataFrame(values, columns=columns)), names, unreadable, not_finite)
    values = np.concatenate([np.empty((0, 5)), *(values for _, values in rows)]).astype(np.float64)
    table = pd.DataFrame(values, columns=DETECTION_COLUMNS[2:])
    if hflip:
        table["x1"], table["x2"] = 1 - table["x2"], 1 - table["x1"]
    table.insert(0, "model", f"{stage}_hflip" if hflip else stage)
    table.insert(0, "image_id", np.repeat(np.array(names, dtype=object), [len(values) for _, values in rows]))
    return Predictions(table, names, unreadable, not_finite)


def default_device() -> torch.device:
    """The GPU (of this process, where there are several), else the CPU."""
    return choose_device()


def _arrays(output: Tensor | list[tuple[Tensor, Tensor]]) -> list[np.ndarray]:
    """A batch's output as an array per image: the study model's probabilities, or (n, 5) score and box."""
    if torch.is_tensor(output):
        return list(output.cpu().numpy())
    return [np.hstack([scores.float().cpu().numpy()[:, None], boxes.float().cpu().numpy()]) for boxes, scores in output]


def _share(dataset: int, batch: int) -> tuple[range, Callable[[list], list]]:
    """This process's images, and the function that joins all processes' rows.

    Whole batches are shared out in order, so that an image stands in the same batch whatever the number of processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return range(dataset), lambda rows: rows
    from accelerate.utils import gather_object

    state = launched_as()
    bounds = np.linspace(0, -(-dataset // batch), state.num_processes + 1).round().astype(int) * batch
    first, last = (min(int(bounds[state.process_index + k]), dataset) for k in (0, 1))
    return range(first, last), gather_object


def study_probabilities(study_probs: pd.DataFrame) -> pd.DataFrame:
    """Mean of a study's images: study_id and the four probabilities."""
    return study_probs.groupby("study_id", sort=True)[list(STUDY_LABELS)].mean().reset_index()
