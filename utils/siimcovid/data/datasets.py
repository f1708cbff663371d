"""Images for the models: the index and the cache in, augmented square tensors out.

A sample is a dict, a batch the same with a leading axis:

    images     (B, 1, S, S) uint8, the image stretched to a square: a fraction of the input is a fraction of the image
    boxes      list of B tensors (n, 4) float32, xyxy fractions
    study labels     (B,) int64, place in STUDY_LABELS, -1 where unknown
    findings   (B, 15) float32, 0 or 1 in the order of labels.NIH_FINDINGS: only of tables that have these columns
    image_ids  list of B texts

What happens to image i in epoch e depends on (seed, e, i) alone, not on workers, processes or a restart.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from siimcovid.core.configuration import Augment
from siimcovid.core.device import gpu_count
from siimcovid.core.labels import NIH_FINDINGS, STUDY_LABELS
from siimcovid.data import image_cache

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or the import below looks for a network
import albumentations


class Memory:
    """Images that were decoded and resized, for the next epoch or the next model: the first `limit` bytes of them."""

    def __init__(self, limit: int):
        self.images: dict[tuple, np.ndarray] = {}  # by path, length, date and side
        self.free = limit

    def square(self, folder: Path, image_id: str, side: int) -> np.ndarray:
        """A cached image stretched to a square (side, side) uint8 array, which is not to be written to."""
        try:
            state = os.stat(folder / f"{image_id}.png")
            key = folder, image_id, side, state.st_size, state.st_mtime_ns
        except OSError:
            key = None  # cache.read says what is wrong
        if key in self.images:
            return self.images[key]
        pixels = image_cache.read(folder, image_id)
        shrinks = max(pixels.shape) > side
        square = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if square.nbytes <= self.free:
            self.free -= square.nbytes
            self.images[key] = square
        return square


#: Bytes of images that a training set may keep in memory; the rest is decoded again in every epoch.
MEMORY_LIMIT = 2 << 30

#: What predictions keep for the models that look at the same images after them. Few, so that memory stays flat.
SHARED = Memory(32 << 20)


class CircularCutouts(albumentations.ImageOnlyTransform):
    """Up to six black discs, of 3 to 10 % of the image's side in radius; boxes stay (report, section 3.1).

    albumentations cuts out rectangles only. The report states the shape and the number; the size is ours.
    """

    HOLES = 6
    RADIUS = (0.03, 0.1)

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        """Centres and radii in pixels, from the pipeline's own random numbers."""
        rows, columns = params["shape"][:2]
        return {
            "discs": [
                (
                    self.py_random.randrange(columns),
                    self.py_random.randrange(rows),
                    max(1, round(self.py_random.uniform(*self.RADIUS) * rows)),
                )
                for _ in range(self.py_random.randint(1, self.HOLES))
            ]
        }

    def apply(self, img: np.ndarray, discs: list[tuple[int, int, int]], **params: object) -> np.ndarray:
        """Draw the discs on a copy of (rows, columns, 1) pixels."""
        pixels = np.ascontiguousarray(img).copy()
        for column, row, radius in discs:
            cv2.circle(pixels, (column, row), radius, 0, thickness=-1)
        return pixels


def transforms(augment: Augment, seed: int) -> albumentations.Compose:
    """The albumentations pipeline of an Augment (mixup and the crop are not in it): boxes move with the image."""
    a, steps = augment, []
    if a.hflip:
        steps.append(albumentations.HorizontalFlip(p=a.hflip))
    if a.vflip:
        steps.append(albumentations.VerticalFlip(p=a.vflip))
    if a.shift_rotate:
        shift, degrees, scale = (-a.shift, a.shift), (-a.degrees, a.degrees), (1 - a.scale, 1 + a.scale)
        steps.append(albumentations.Affine(translate_percent=shift, rotate=degrees, scale=scale, p=a.shift_rotate))
    if a.sharpen or a.blur:
        # the choices are weighed by their p, and one of them happens with the sum
        choices = [albumentations.Sharpen(p=a.sharpen), albumentations.Blur(blur_limit=(3, 5), p=a.blur)]
        steps.append(albumentations.OneOf([c for c in choices if c.p], p=min(1.0, a.sharpen + a.blur)))
    if a.brightness_contrast:
        steps.append(albumentations.RandomBrightnessContrast(p=a.brightness_contrast))
    if a.value_gain:
        steps.append(albumentations.MultiplicativeNoise(multiplier=(1 - a.value_gain, 1 + a.value_gain), p=1.0))
    if a.cutouts:
        steps.append(CircularCutouts(p=a.cutouts))
    if a.erase:
        steps.append(albumentations.Erasing(scale=(0.01, 0.1), p=a.erase))
    boxes = albumentations.BboxParams(format="albumentations", label_fields=[], clip=True, min_visibility=0.2)
    return albumentations.Compose(steps, bbox_params=boxes, seed=seed)


class ImageDataset(Dataset):
    """Images of an index table as samples.

    Args:
        images: rows of the index whose image lies in the cache.
        folder: the cache.
        size: side of the square in pixels.
        augment: random changes, or None for the image as it is.
        seed: of the changes.
        memory: where decoded images are kept; by default one of its own.
    """

    def __init__(
        self,
        images: pd.DataFrame,
        folder: Path,
        size: int,
        augment: Augment | None = None,
        seed: int = 0,
        memory: Memory | None = None,
    ):
        self.image_ids = images["image_id"].tolist()
        self.boxes = [np.asarray(boxes, np.float32).reshape(-1, 4) for boxes in images["boxes"]]
        self.study_labels = [
            STUDY_LABELS.index(study_label) if study_label in STUDY_LABELS else -1
            for study_label in images["study_label"]
        ]
        self.findings = None
        if NIH_FINDINGS[0] in images:
            self.findings = torch.from_numpy(images[list(NIH_FINDINGS)].to_numpy(np.float32, copy=True))
        self.folder, self.size, self.augment, self.seed = Path(folder), size, augment, seed
        self.transforms = transforms(augment, seed) if augment else None
        self.memory = memory or Memory(MEMORY_LIMIT)

    def __len__(self) -> int:
        return len(self.image_ids)

    def image(self, number: int) -> np.ndarray:
        """Image `number` as a square (S, S) uint8 array."""
        return self.memory.square(self.folder, self.image_ids[number], self.size)

    def __getitem__(self, ticket: int) -> dict:
        """Sample of a ticket of EpochSampler: epoch * len + number. A plain number is epoch 0."""
        epoch, number = divmod(int(ticket), len(self))
        pixels, boxes = self.image(number), self.boxes[number]
        if self.augment:
            rng = np.random.default_rng((self.seed, epoch, number))
            pixels, boxes = self.change(pixels, boxes, rng)
            if self.augment.mixup and rng.random() < self.augment.mixup:
                other = int(rng.integers(len(self)))
                pixels_2, boxes_2 = self.change(self.image(other), self.boxes[other], rng)
                share = rng.beta(32, 32)  # Zhang et al. 2017, with the parameter that yolov5 uses
                pixels = cv2.addWeighted(pixels, share, pixels_2, 1 - share, 0)
                boxes = np.concatenate([boxes, boxes_2])
            pixels, boxes = centre_crop(pixels, boxes, self.augment.crop)
        sample = {
            "images": torch.from_numpy(np.ascontiguousarray(pixels))[None],
            "boxes": torch.from_numpy(boxes),
            "study_labels": self.study_labels[number],
            "image_ids": self.image_ids[number],
        }
        return sample if self.findings is None else sample | {"findings": self.findings[number]}

    def change(self, pixels: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One random draw of the pipeline."""
        self.transforms.set_random_seed(int(rng.integers(2**31)))
        changed = self.transforms(image=pixels[:, :, None], bboxes=boxes)
        return changed["image"][:, :, 0], np.asarray(changed["bboxes"], np.float32).reshape(-1, 4)


def centre_crop(pixels: np.ndarray, boxes: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle `side` x `side` pixels of a square image and the boxes there; side 0 leaves all as it is."""
    if not side or side == pixels.shape[0]:
        return pixels, boxes
    start, whole = (pixels.shape[0] - side) // 2, pixels.shape[0]
    boxes = ((boxes * whole - start) / side).clip(0, 1).astype(np.float32)
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    return pixels[start : start + side, start : start + side], boxes


class EpochSampler(Sampler[int]):
    """Tickets of one epoch, shuffled by (seed, epoch); `sampling_weights` draws with replacement by these weights
    instead."""

    def __init__(self, count: int, seed: int, sampling_weights: Sequence[float] | None = None):
        self.count, self.seed, self.epoch = count, seed, 0
        self.sampling_weights = (
            None if sampling_weights is None else np.asarray(sampling_weights, float) / np.sum(sampling_weights)
        )

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.sampling_weights is None:
            order = rng.permutation(self.count)
        else:
            order = rng.choice(self.count, self.count, p=self.sampling_weights)
        return iter((self.epoch * self.count + order).tolist())


def collate(samples: list[dict]) -> dict:
    """Samples to a batch: what can be stacked is stacked."""
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    for key in ("images", "features", "findings"):
        if key in batch:
            batch[key] = torch.stack(batch[key])
    batch["study_labels"] = torch.tensor(batch["study_labels"])
    return batch


def loader(dataset: Dataset, batch: int, sampler: Sampler | None = None, drop_last: bool = False) -> DataLoader:
    """A loader in the dataset's order, or the sampler's. On GPU machines worker processes decode ahead of the model."""
    gpu = gpu_count() > 0
    workers = min(4, os.cpu_count() or 1) if gpu else 0  # on CPU the model wants the cores itself
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=gpu,
        drop_last=drop_last,
        persistent_workers=workers > 0,
    )
