"""Covering: markers and borders go, the lungs stay; no trace says where they were."""

import cv2
import numpy as np
import pytest

from siimcovid.data.cover_markers import cover, markers
from support.painted_chest import chest

#: Where the letter stands: rows, columns, as shares.
LETTER = (0.12, 0.22), (0.78, 0.88)


def marked(image: np.ndarray, border: float = 0.03) -> np.ndarray:
    """The image with an "L" and a white frame burned in."""
    image, (rows, columns) = image.copy(), image.shape
    (top, bottom), (left, right) = ([round(v * n) for v in share] for share, n in zip(LETTER, image.shape, strict=True))
    stroke = max(1, round(0.015 * max(image.shape)))
    image[top:bottom, left : left + stroke] = image[bottom - stroke : bottom, left:right] = 255
    frame = [max(1, round(border * n)) for n in (rows, columns)]
    image[: frame[0]] = image[-frame[0] :] = 255
    image[:, : frame[1]] = image[:, -frame[1] :] = 255
    return image


def part(image: np.ndarray, rows: tuple[float, float], columns: tuple[float, float]) -> np.ndarray:
    (a, b), (c, d) = ([round(v * n) for v in share] for share, n in zip((rows, columns), image.shape, strict=True))
    return image[a:b, c:d]


def steepest(image: np.ndarray) -> float:
    """The largest step between neighbours."""
    return max(np.abs(np.diff(image.astype(float), axis=axis)).max() for axis in (0, 1))


@pytest.mark.parametrize("shape", [(128, 128), (256, 256), (320, 260), (1024, 1024)])
def test_letter_and_border_go_and_the_lungs_stay(shape):
    image = chest(*shape)
    shown = marked(image)
    before = shown.copy()
    covered = cover(shown)
    assert (shown == before).all()
    assert (covered.shape, covered.dtype) == (shape, np.uint8)
    assert (part(covered, (0.25, 0.75), (0.25, 0.75)) == part(image, (0.25, 0.75), (0.25, 0.75))).all()
    assert (part(covered, (0.25, 0.9), (0.1, 0.9)) == part(image, (0.25, 0.9), (0.1, 0.9))).all()
    letter, plain = part(covered, *LETTER).astype(float), part(image, *LETTER)
    assert np.abs(letter - plain).max() < 15  # of the 85 by which it stood out
    assert covered.max() < 185
    assert steepest(covered) <= steepest(image) + 3  # no edge where something was
    other = cover(image)
    assert np.abs(covered.astype(float) - other).max() < 15  # nor does the image say that there was


@pytest.mark.parametrize("image", [np.zeros((40, 30)), np.full((64, 64), 255), np.eye(3) * 255, np.ones((1, 1))])
def test_images_that_show_nothing(image):
    covered = cover(image.astype(np.uint8))
    assert covered.shape == image.shape
    assert image.min() <= covered.min() <= covered.max() <= image.max()


def test_what_is_no_marker_stays():
    image = chest(256, 256)
    cv2.line(image, (60, 40), (225, 110), 255, 3)  # a catheter, longer than a word
    cv2.rectangle(image, (200, 30), (230, 60), 255, -1)  # wider than a stroke
    cv2.circle(image, (128, 128), 3, 255, -1)  # among the lungs
    assert not markers(image).any()
    cv2.putText(image, "AP", (200, 235), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1, cv2.LINE_AA)
    found = np.argwhere(markers(image))
    assert found.min() >= 198  # rows and columns of the word alone
    assert len(found) > 100
