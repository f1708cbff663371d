"""Predictions of one trained model for images in the cache, as a table.

    detections     image_id, model, score in [0, 1], x1, y1, x2, y2 as fractions of the image; an image's highest score
                   first
    study labels   image_id, study_id, the four probabilities in the order of STUDY_LABELS and, from a study model that
                   estimates them, the image's `none`, and `unlike`: above .5 the image is unlike those of training

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

from siimcovid.core.device import choose_device, launched_as
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.progress import progress_bar
from siimcovid.data.datasets import ImageDataset, loader
from siimcovid.data.image_cache import read
from siimcovid.data.image_memory import HeldImages, ImageMemory
from siimcovid.data.resize import centre_crop
from siimcovid.models.backbone import for_inference
from siimcovid.models.out_of_distribution import UNLIKE
from siimcovid.models.study_classifier import probabilities

DETECTION_COLUMNS = ["image_id", "model", "score", "x1", "y1", "x2", "y2"]

#: Changes a square image, uint8 (side, side), before the model gets it: returns a new array of the same shape.
Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Predictions:
    """The predictions of one model."""

    table: pd.DataFrame  # detections or study labels
    image_ids: list[str]  # the images predicted, in the index's order, those without a box included
    unreadable: list[str]  # images without a whole picture in the cache
    not_finite: list[str]  # images for which the model's output holds a number that is not finite


class InferenceDataset(ImageDataset):
    """Images as samples without augmentation; one without a readable picture is black, with `readable` False."""

    def __init__(
        self,
        images: pd.DataFrame,
        cache: Path,
        size: int,
        change: Change | None,
        memory: ImageMemory | HeldImages,
    ):
        super().__init__(images, cache, size, memory=memory)
        self.change_image = change

    def image(self, number: int) -> np.ndarray:
        square = super().image(number)
        if self.change_image is None:
            return square
        square = square.view()
        square.flags.writeable = False  # it is the memory's own, which serves other models too
        return self.change_image(square)

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
    change: Change | None = None,
    memory: ImageMemory | None = None,
) -> pd.DataFrame:
    """Predict all `images` of the index; returns the table alone.

    The arguments are those of `predict_images`, but for `model`, which is copied and prepared for inference here. An
    image whose output is not finite has no rows. Raises InputError where an image has no whole picture in the cache.
    """
    found = predict_images(
        stage, config, for_inference(model.to(choose_device())), images, cache, hflip, change=change, memory=memory
    )
    if found.unreadable:
        read(cache, found.unreadable[0])  # raises what is wrong
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
    change: Change | None = None,
    *,
    split: bool = True,
    memory: ImageMemory | HeldImages | None = None,
    progress: bool = True,
) -> Predictions:
    """Predict the images of the index that lie in the cache: detections with a detector, study labels with `study`.

    On a GPU the model runs under autocast, on the CPU in float32.

    Args:
        stage: of STAGES; config: its configuration.
        model: made by `for_inference`.
        images: rows of the index.
        cache: the folder of prepared images.
        hflip: predict mirrored images; the boxes are of the images themselves, under the model name "<stage>_hflip".
        device: "cpu" keeps off a GPU that is there.
        may_go_on: called after each batch; False leaves the rest out.
        change: what is done to each square image before the model gets it.
        split: in a distributed launch, predict this process's share of the batches and gather all; False predicts all
            images here.
        memory: keeps decoded images for the next model; by default none are kept. HeldImages has them all, and the
            cache is not read.
        progress: whether to show a bar.
    """
    device = torch.device(device) if device else choose_device()
    share, gather = _share(len(images), config.infer_batch) if split else (range(len(images)), _as_they_are)
    model = model.to(device)
    dataset = InferenceDataset(images, cache, config.infer_size, change, memory or ImageMemory(0))
    rows: list[tuple[str, bool, np.ndarray]] = []  # an image's id, whether it could be read, and its output
    batches = loader(Subset(dataset, share), config.infer_batch, decode_ahead=not isinstance(memory, HeldImages))
    for batch in progress_bar(batches, f"predict {stage}", "batch", disable=None if progress else True):
        output = _predict_batch(stage, config, model, batch["images"].to(device, non_blocking=True), hflip)
        rows += zip(batch["image_ids"], batch["readable"], _arrays(output), strict=True)
        if not may_go_on():
            break
    rows = gather(rows)
    unreadable = [name for name, readable, _ in rows if not readable]
    not_finite = [name for name, readable, values in rows if readable and not np.isfinite(values).all()]
    left_out = {*unreadable, *not_finite}
    rows = [(name, values) for name, _, values in rows if name not in left_out]
    table = _study_table(config, images, rows) if stage == "study" else _detections_table(stage, rows, hflip)
    return Predictions(table, [name for name, _ in rows], unreadable, not_finite)


def _predict_batch(
    stage: str, config: Any, model: nn.Module, pixels: Tensor, hflip: bool
) -> Tensor | list[tuple[Tensor, Tensor]]:
    """(B, 1, S, S) uint8 -> study probabilities (B, 4 or 5), or per image boxes (n, 4) and scores (n,)."""
    pixels = centre_crop(pixels, config.augment.crop)
    if hflip:
        pixels = pixels.flip(-1)
    with torch.autocast(pixels.device.type, enabled=pixels.device.type == "cuda"):
        output = model.predict(pixels)
        if stage == "study":
            output = probabilities(output.float())
            if config.hflip_tta:
                output = (output + probabilities(model.predict(pixels.flip(-1)).float())) / 2
    return output


def _study_table(config: Any, images: pd.DataFrame, rows: list[tuple[str, np.ndarray]]) -> pd.DataFrame:
    studies = dict(zip(images["image_id"], images["study_id"], strict=True))
    columns = [*STUDY_LABELS, *["none"] * bool(config.none), *["unlike"] * bool(config.typical_images)]
    values = np.array([values for _, values in rows], dtype=np.float64).reshape(-1, len(columns))
    names = [name for name, _ in rows]
    table = pd.DataFrame({"image_id": names, "study_id": [studies[name] for name in names]})
    return table.join(pd.DataFrame(values, columns=columns))


def _detections_table(stage: str, rows: list[tuple[str, np.ndarray]], hflip: bool) -> pd.DataFrame:
    values = np.concatenate([np.empty((0, 5)), *(values for _, values in rows)]).astype(np.float64)
    table = pd.DataFrame(values, columns=DETECTION_COLUMNS[2:])
    if hflip:
        table["x1"], table["x2"] = 1 - table["x2"], 1 - table["x1"]
    names = np.array([name for name, _ in rows], dtype=object)
    table.insert(0, "model", f"{stage}_hflip" if hflip else stage)
    table.insert(0, "image_id", np.repeat(names, [len(values) for _, values in rows]))
    return table


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
        return range(dataset), _as_they_are
    from accelerate.utils import gather_object

    state = launched_as()
    bounds = np.linspace(0, -(-dataset // batch), state.num_processes + 1).round().astype(int) * batch
    first, last = (min(int(bounds[state.process_index + k]), dataset) for k in (0, 1))
    return range(first, last), gather_object


def _as_they_are(rows: list) -> list:
    return rows


def unlike_images(study_probs: pd.DataFrame) -> list[str]:
    """The image ids of a table of study labels whose image is unlike those that the study models learnt from."""
    if "unlike" not in study_probs:
        return []
    return study_probs.loc[study_probs["unlike"].astype(float) > UNLIKE, "image_id"].tolist()


def study_probabilities(study_probs: pd.DataFrame) -> pd.DataFrame:
    """A table of images' study probabilities -> study_id and the four probabilities, the mean over a study's images."""
    return study_probs.groupby("study_id", sort=True)[list(STUDY_LABELS)].mean().reset_index()
