"""Random changes of place: flips, shift, rotation, scale, a stretched part, mosaics of four images.

All but the flips are one affine matrix, so that an image is interpolated once whatever happens to it, and the boxes go
through the same matrix as the pixels. Coordinates are continuous: a canvas of side S goes from 0 to S, and its first
pixel's centre is at 0.5. What comes into view from beyond the canvas is black.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from siimcovid.core.configuration import Augment

#: Of a box's area, the least that must stay in sight; a box of which less is left is dropped.
VISIBLE = 0.2

#: Width to height of the part that is stretched to the whole image: torchvision's RandomResizedCrop.
PROPORTIONS = (3 / 4, 4 / 3)


def random_matrix(augment: Augment, whole: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random (3, 3) matrix from a canvas of side `whole` to an output of `side` pixels, whose centre is the canvas's.

    The stretched part first, then scale and rotation about the centre, then the shift, as yolov5's random_perspective:
    one scale for both axes, a shift of each axis as a fraction of the output.
    """
    matrix = _shift(side / 2 - whole / 2, side / 2 - whole / 2)
    if augment.resized_crop and rng.random() < augment.resized_crop:
        matrix = _random_part(side, augment.crop_area, rng) @ matrix
    if augment.shift_rotate and rng.random() < augment.shift_rotate:
        degrees, scale = rng.uniform(-1, 1, 2) * (augment.degrees, augment.scale)
        shift = rng.uniform(-1, 1, 2) * augment.shift * side
        turned = np.eye(3)
        turned[:2] = cv2.getRotationMatrix2D((side / 2, side / 2), degrees, 1 + scale)
        matrix = _shift(*shift) @ turned @ matrix
    return matrix


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def _random_part(side: int, smallest: float, rng: np.random.Generator) -> np.ndarray:
    """The matrix that stretches a random part of a square, of at least this share of its area, to the whole of it."""
    area = rng.uniform(smallest, 1)
    proportion = math.exp(rng.uniform(*np.log(PROPORTIONS)))
    width = min(1.0, math.sqrt(area * proportion))  # where a side is cut the other one grows: the area stays
    height = min(1.0, area / width)
    width = area / height
    left, top = rng.random(2) * (1 - width, 1 - height) * side
    return np.diag([1 / width, 1 / height, 1]) @ _shift(-left, -top)


def move(pixels: np.ndarray, boxes: np.ndarray, matrix: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A canvas and its boxes through a matrix of `random_matrix`.

    Args:
        pixels: the canvas, (whole, whole) uint8.
        boxes: (n, 4) float32, xyxy pixels of the canvas; they may reach beyond it.
        matrix: (3, 3), from the canvas to the output.
        side: of the output.

    Returns:
        (side, side) uint8, and (m, 4) float32 xyxy fractions of it: the smallest upright boxes around the moved ones,
        clipped, without those of which less than VISIBLE is left.
    """
    whole = pixels.shape[0]
    if whole != side or not np.array_equal(matrix, np.eye(3)):
        to_indices = _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)  # OpenCV counts from the first pixel's centre
        pixels = cv2.warpAffine(pixels, to_indices[:2], (side, side), flags=cv2.INTER_LINEAR)
    left = _around(boxes.clip(0, whole), matrix).clip(0, side)
    seen = _areas(left) >= VISIBLE * _areas(_around(boxes, matrix))
    return pixels, (left[seen & (_areas(left) > 0)] / side).astype(np.float32)


def _areas(boxes: np.ndarray) -> np.ndarray:
    """(n,) areas of (n, 4) boxes."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _around(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(n, 4): the smallest upright boxes around the corners of (n, 4) boxes, moved by a matrix."""
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ matrix[:2, :2].T + matrix[:2, 2]  # (n, 4, 2)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def mosaic(
    images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Four images around a random point of a canvas of twice their side, as yolov5's load_mosaic.

    Args:
        images: four (S, S) uint8 arrays: top left, top right, bottom left, bottom right.
        boxes: the four images' boxes, (n, 4) fractions.
        rng: for the point, from S / 2 to 3 S / 2 of each axis.

    Returns:
        (2 S, 2 S) uint8, black where no image reaches, and all boxes (m, 4) in pixels of the canvas, some beyond it.
    """
    side = images[0].shape[0]
    canvas, moved = np.zeros((2 * side, 2 * side), np.uint8), []
    x, y = (int(number) for number in rng.integers(side // 2, side + (side + 1) // 2 + 1, 2))
    for image, its_boxes, left, top in zip(images, boxes, (x - side, x) * 2, (y - side, y - side, y, y), strict=True):
        first, last = np.clip([top, left], 0, None), np.minimum([top + side, left + side], 2 * side)
        (row, column), (end, stop) = first, last
        canvas[row:end, column:stop] = image[row - top : end - top, column - left : stop - left]
        moved.append(its_boxes * side + np.array([left, top, left, top], np.float32))
    return canvas, np.concatenate(moved)


def random_flips(
    pixels: np.ndarray, boxes: np.ndarray, augment: Augment, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An image and its boxes (n, 4), fractions, perhaps mirrored left-right and up-down."""
    if augment.hflip and rng.random() < augment.hflip:
        pixels, boxes = cv2.flip(pixels, 1), boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (1, 0, 1, 0)
    if augment.vflip and rng.random() < augment.vflip:
        pixels, boxes = cv2.flip(pixels, 0), boxes[:, [0, 3, 2, 1]] * (1, -1, 1, -1) + (0, 1, 0, 1)
    return pixels, boxes.astype(np.float32)
