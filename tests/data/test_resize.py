"""The one resize to a square and the one centre crop, of arrays and of tensors."""

import cv2
import numpy as np
import pytest
import torch

from siimcovid.data.resize import centre_crop, crop_boxes, resize_to_square


@pytest.mark.parametrize(("shape", "side"), [((20, 30), 10), ((20, 30), 64), ((8, 8), 8), ((3, 40), 20)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_resize_to_square(shape, side, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, *channels), dtype=np.uint8)
    how = cv2.INTER_AREA if max(shape) > side else cv2.INTER_LINEAR
    square = resize_to_square(pixels, side)
    assert (square.shape, square.dtype) == ((side, side, *channels), np.uint8)
    assert (square == cv2.resize(pixels, (side, side), interpolation=how)).all()


@pytest.mark.parametrize(("side", "start"), [(8, 1), (7, 1), (10, 0), (0, 0)])
def test_centre_crop_of_arrays_and_tensors(side, start):
    pixels = np.arange(100, dtype=np.uint8).reshape(10, 10)
    expected = pixels[start : start + (side or 10), start : start + (side or 10)].tolist()
    assert centre_crop(pixels, side).tolist() == expected
    assert centre_crop(torch.from_numpy(pixels)[None, None], side)[0, 0].tolist() == expected
    if side in (0, 10):
        assert centre_crop(pixels, side) is pixels


def test_crop_boxes():
    boxes = np.array([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.1, 0.1]], np.float32)
    kept = crop_boxes(boxes, 10, 8)
    assert kept == pytest.approx(np.array([[0.0, 0.0, 0.5, 0.5]]))  # (5 - 1) / 8; the other box lies in the border
    assert crop_boxes(boxes, 10, 0) is boxes
    assert crop_boxes(boxes, 8, 8) is boxes
