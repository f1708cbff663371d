"""Decoded and resized images in memory, for the next epoch or for the next model that is given the same images.

An ImageMemory is made by whoever wants images to be shared and passed to every ImageDataset that shares them. OpenCV
is imported when the first image is read: the kernel's run holds a memory also where OpenCV is broken.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from siimcovid.core.processes import sharing_processes

#: Bytes of images that a machine's training sets keep; the rest is decoded again in every epoch.
TRAINING_BYTES = 2 << 30

#: Bytes that predictions keep for the next model or epoch on the same images: few, so that memory stays flat.
PREDICTION_BYTES = 32 << 20


def training_bytes(workers: int = 0) -> int:
    """Bytes of images that a copy of this process's training set keeps.

    Processes that train side by side share them, and so do a loader's worker processes, each of which has a copy.
    """
    return TRAINING_BYTES // sharing_processes() // max(1, workers)


class ImageMemory:
    """The first `limit` bytes of the images that were asked for; later ones are decoded every time."""

    def __init__(self, limit: int):
        self.images: dict[tuple, np.ndarray] = {}  # by folder, image id, side, and the file's length and date
        self.free = limit

    def square(self, folder: Path, image_id: str, side: int) -> np.ndarray:
        """An image of the cache `folder`, stretched to a square: (side, side) uint8, which must not be written to.

        Raises InputError where the cache has no whole picture of it.
        """
        from siimcovid.data import image_cache
        from siimcovid.data.resize import resize_to_square

        try:
            state = os.stat(folder / f"{image_id}.png")
            key = folder, image_id, side, state.st_size, state.st_mtime_ns
        except OSError:
            key = None  # image_cache.read raises the error
        if key in self.images:
            return self.images[key]
        square = resize_to_square(image_cache.read(folder, image_id), side)
        if square.nbytes <= self.free:
            self.free -= square.nbytes
            self.images[key] = square
        return square


class HeldImages:
    """Images that lie in no folder, for an ImageDataset in place of an ImageMemory: nothing is written to a disk."""

    def __init__(self, images: Mapping[str, np.ndarray]):
        self.images = images  # image id -> (rows, columns) uint8

    def square(self, folder: Path, image_id: str, side: int) -> np.ndarray:
        """An image stretched to a square: (side, side) uint8. No folder is read."""
        from siimcovid.data.resize import resize_to_square

        return resize_to_square(self.images[image_id], side)
