"""Images for the models: the index and the cache in, augmented square tensors out.

A sample is a dict, a batch the same with a leading axis:

    images        (B, 1, S, S) uint8, the image stretched to a square: a fraction of the input is one of the image
    boxes         list of B tensors (n, 4) float32, xyxy fractions
    study_labels  (B,) int64, place in STUDY_LABELS, -1 where unknown
    findings      (B, 15) float32, 0 or 1 in the order of labels.NIH_FINDINGS: only of tables that have these columns
    image_ids     list of B texts

What happens to image i in epoch e depends on (seed, e, i) alone, not on workers, processes or a restart.
"""

import copy
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from siimcovid.core.configuration import Augment
from siimcovid.core.device import gpu_count
from siimcovid.core.labels import NIH_FINDINGS, STUDY_LABELS
from siimcovid.core.processes import processors, sharing_processes
from siimcovid.data.image_memory import ImageMemory, training_bytes
from siimcovid.data.random_geometry import mosaic, move, random_flips, random_matrix
from siimcovid.data.resize import centre_crop, crop_boxes

#: Sides of a box, as fractions of the image, below which augmentation and losses would divide by nothing.
SMALLEST_SIDE = 1e-5


def _with_area(boxes: np.ndarray) -> np.ndarray:
    """The boxes (n, 4) whose sides are long enough; a predicted box, taken as a pseudo-label, may have none."""
    return boxes[(boxes[:, 2:] - boxes[:, :2] >= SMALLEST_SIDE).all(axis=1)]


class ImageDataset(Dataset):
    """Images of an index table as samples.

    Args:
        images: rows of the index whose image lies in the cache.
        folder: the cache.
        size: side of the square in pixels.
        augment: random changes, or None for the image as it is.
        seed: of the changes.
        memory: where decoded images are kept; None makes one of training_bytes for this data set alone.
        epochs: that it will serve, for Augment.mosaic_epochs; None has mosaics in all.
    """

    def __init__(
        self,
        images: pd.DataFrame,
        folder: Path,
        size: int,
        augment: Augment | None = None,
        seed: int = 0,
        memory: ImageMemory | None = None,
        epochs: int | None = None,
    ):
        self.image_ids = images["image_id"].tolist()
        self.boxes = [_with_area(np.asarray(boxes, np.float32).reshape(-1, 4)) for boxes in images["boxes"]]
        self.study_labels = [
            STUDY_LABELS.index(study_label) if study_label in STUDY_LABELS else -1
            for study_label in images["study_label"]
        ]
        self.findings = None
        if NIH_FINDINGS[0] in images:
            self.findings = torch.from_numpy(images[list(NIH_FINDINGS)].to_numpy(np.float32, copy=True))
        self.folder, self.size, self.augment, self.seed, self.epochs = Path(folder), size, augment, seed, epochs
        self.transforms = None
        if augment:
            from siimcovid.data.augmentation import build_transforms  # who predicts only is spared albumentations

            self.transforms = build_transforms(augment, seed)
        self.memory = ImageMemory(training_bytes(loader_workers())) if memory is None else memory

    def __len__(self) -> int:
        return len(self.image_ids)

    def without_augmentation(self, size: int | None = None) -> "ImageDataset":
        """A data set of the same images as they are (no changes, no crop), which shares this one's memory; of another
        size where that is given."""
        plain = copy.copy(self)
        plain.augment = plain.transforms = None
        plain.size = size or self.size
        return plain

    def image(self, number: int) -> np.ndarray:
        """Image `number` as a square (S, S) uint8 array."""
        return self.memory.square(self.folder, self.image_ids[number], self.size)

    def __getitem__(self, ticket: int) -> dict:
        """Sample of a ticket of EpochSampler: epoch * len + number. A plain number is epoch 0."""
        epoch, number = divmod(int(ticket), len(self))
        if self.augment:
            pixels, boxes = self._augmented(number, epoch)
        else:
            pixels, boxes = self.image(number), self.boxes[number]
        sample = {
            "images": torch.from_numpy(np.ascontiguousarray(pixels))[None],
            "boxes": torch.from_numpy(boxes),
            "study_labels": self.study_labels[number],
            "image_ids": self.image_ids[number],
        }
        return sample if self.findings is None else sample | {"findings": self.findings[number]}

    def _augmented(self, number: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An image as epoch `epoch` has it: perhaps in a mosaic, changed, perhaps mixed with another one, cropped."""
        rng = np.random.default_rng((self.seed, epoch, number))
        mosaics = self.augment.mosaic if self.epochs is None or epoch < self.augment.mosaic_epochs * self.epochs else 0
        pixels, boxes = self._changed(number, mosaics, rng)
        if self.augment.mixup and rng.random() < self.augment.mixup:
            pixels_2, boxes_2 = self._changed(int(rng.integers(len(self))), mosaics, rng)
            share = rng.beta(32, 32)  # Zhang et al. 2017, with the parameter that yolov5 uses
            pixels = cv2.addWeighted(pixels, share, pixels_2, 1 - share, 0)
            boxes = np.concatenate([boxes, boxes_2])
        whole = pixels.shape[0]
        return centre_crop(pixels, self.augment.crop), crop_boxes(boxes, whole, self.augment.crop)

    def _changed(self, number: int, mosaics: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A random draw of all changes but mixup and crop: (S, S) uint8 and (n, 4) float32.

        `mosaics` is the probability that three random images stand beside this one, at random places.
        """
        a = self.augment
        if mosaics and rng.random() < mosaics:
            four = rng.permutation([number, *rng.integers(len(self), size=3)])
            canvas, boxes = mosaic([self.image(k) for k in four], [self.boxes[k] for k in four], rng)
        else:
            canvas, boxes = self.image(number), self.boxes[number] * self.size
        pixels, boxes = move(canvas, boxes, random_matrix(a, len(canvas), self.size, rng), self.size)
        pixels, boxes = random_flips(pixels, boxes, a, rng)
        if self.transforms:
            self.transforms.set_random_seed(int(rng.integers(2**31)))
            pixels = self.transforms(image=pixels[:, :, None])["image"][:, :, 0]
        if a.rectangles and rng.random() < a.rectangles:
            from siimcovid.data.augmentation import random_rectangles

            pixels, boxes = random_rectangles(pixels, boxes, a, rng)
        return pixels, boxes


def collate(samples: list[dict]) -> dict:
    """Samples to a batch: what can be stacked is stacked."""
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    for key in ("images", "features", "findings"):
        if key in batch:
            batch[key] = torch.stack(batch[key])
    batch["study_labels"] = torch.tensor(batch["study_labels"])
    return batch


def loader_workers() -> int:
    """Processes of a loader that decode ahead of a GPU: up to four, and no more than the cores that processes which
    train side by side leave this one. 0 on the CPU, where the model wants the cores itself."""
    return min(4, max(1, processors() // sharing_processes())) if gpu_count() else 0


def loader(
    dataset: Dataset,
    batch: int = 1,
    sampler: Sampler | None = None,
    batches: Sampler[list[int]] | None = None,
    decode_ahead: bool = True,
) -> DataLoader:
    """A loader in the dataset's order, or the sampler's; `batches` yields whole batches instead of both.

    On GPU machines worker processes decode ahead of the model, unless `decode_ahead` is false.
    """
    workers = loader_workers() if decode_ahead else 0
    order = {"batch_size": batch, "sampler": sampler}
    return DataLoader(
        dataset,
        **(order if batches is None else {"batch_sampler": batches}),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=bool(gpu_count()),
        persistent_workers=workers > 0,
    )
