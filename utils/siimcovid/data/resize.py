"""The two ways in which an image is brought to a model's input size: stretching to a square, and a centre crop.

Training, prediction, the web page, ablation and benchmarks all use these functions, so that a model is shown at
inference what it was shown in training.
"""

from typing import TypeVar

import cv2
import numpy as np

#: A NumPy array or a torch tensor; both are cut by the same indexing.
Pixels = TypeVar("Pixels")


def resize_to_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """Stretch an image to a square, whatever its proportions, so that a fraction of the input is one of the image.

    Args:
        pixels: (rows, columns) or (rows, columns, channels), uint8 or float32.
        side: side of the result in pixels, at least 1.

    Returns:
        (side, side[, channels]) of the same type: area averages where the longer side shrinks, else bilinear.
    """
    shrinks = max(pixels.shape[:2]) > side
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def centre_crop(pixels: Pixels, side: int) -> Pixels:
    """The middle `side` x `side` pixels of square images (..., S, S), an array or a tensor, as a view.

    `side` 0 (Augment.crop: no crop) or S returns `pixels` itself. Of an odd border the larger half is cut off at the
    bottom and on the right.
    """
    whole = pixels.shape[-1]
    if not side or side == whole:
        return pixels
    start = (whole - side) // 2
    return pixels[..., start : start + side, start : start + side]


def crop_boxes(boxes: np.ndarray, whole: int, side: int) -> np.ndarray:
    """The boxes of an image after `centre_crop`.

    Args:
        boxes: (n, 4) float32, xyxy fractions of the image before the crop.
        whole: side of the image before the crop in pixels.
        side: side of the crop in pixels, 0 for none.

    Returns:
        (m, 4) float32, xyxy fractions of the crop, clipped to [0, 1]; boxes that lie outside are dropped.
    """
    if not side or side == whole:
        return boxes
    start = (whole - side) // 2
    boxes = ((boxes * whole - start) / side).clip(0, 1).astype(np.float32)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
