"""Covering: markers and borders go, the lungs and the boxes stay; at random it hides as much as it should."""

import cv2
import numpy as np
import pytest

from siimcovid.data.covering import BORDER, CORNER, SEAM, cover, markers, random_cover
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


#: A box near the left border, and one near a corner.
BOXES = np.array([[0.05, 0.4, 0.3, 0.7], [0.7, 0.86, 0.9, 0.96]], np.float32)

NO_BOXES = np.zeros((0, 4), np.float32)


def test_random_covers_differ_and_are_repeated():
    image = marked(chest(128, 128))
    covers = [random_cover(image, NO_BOXES, np.random.default_rng(seed)) for seed in range(20)]
    again = random_cover(image, NO_BOXES, np.random.default_rng(7))
    assert (again == covers[7]).all()
    assert len({covered.tobytes() for covered in covers}) == 20
    assert (image == marked(chest(128, 128))).all()


@pytest.mark.parametrize("boxes", [NO_BOXES, BOXES], ids=["no_boxes", "boxes"])
@pytest.mark.parametrize("shape", [(128, 128), (200, 120)])
def test_a_random_cover_hides_the_marker_and_spares_boxes_and_lungs(shape, boxes):
    image = marked(chest(*shape), border=0.01)
    plain = image.copy()
    part(plain, *LETTER)[:] = part(chest(*shape), *LETTER)
    for seed in range(20):
        covered = random_cover(image, boxes, np.random.default_rng(seed))
        changed = covered != image
        for x1, y1, x2, y2 in boxes:
            assert not part(changed, (y1, y2), (x1, x2)).any()
        middle = BORDER + 0.01, 1 - BORDER - 0.01
        inner = CORNER + 2 * SEAM + 0.02, 1 - CORNER - 2 * SEAM - 0.02
        inside = changed.copy()  # where neither a border nor the letter, in its seam, can be
        part(inside, *[(low - 0.05, high + 0.05) for low, high in LETTER])[:] = False
        assert not part(inside, middle, inner).any()
        assert not part(inside, inner, middle).any()
        other = random_cover(plain, boxes, np.random.default_rng(seed))
        assert np.abs(covered.astype(float) - other).max() < 15  # nothing says that there was a letter


def test_random_covers_vary_in_width_and_grey():
    """Over many draws: how far each border reaches, how often a corner is covered, and by which greys."""
    image, depths, corners, greys = np.full((200, 200), 128, np.uint8), [], [], []
    for seed in range(100):
        covered = random_cover(image, NO_BOXES, np.random.default_rng(seed))
        if (covered == image).all():  # filled with what is around it
            continue
        changed = np.abs(covered.astype(int) - image) > 1
        for turned in (np.rot90(changed, k) for k in range(4)):
            depths.append(int(turned[100].argmin()))
            corners.append(bool(turned[20, 20]))
        greys.append(int(covered[0, 0]))
    assert 35 < len(greys) < 65
    assert max(depths) <= BORDER * 200 + 1
    assert min(depths) <= 2
    assert np.mean(depths) == pytest.approx(BORDER * 100, abs=2)
    assert 0.02 < np.mean(corners) < 0.3
    assert np.ptp(greys) > 200


def test_no_notch_says_where_a_box_is():
    """A border beside a box ends before it on its whole length."""
    image = np.full((200, 200), 128, np.uint8)
    for seed in range(20):
        covered = random_cover(image, BOXES, np.random.default_rng(seed))
        depth = [int((covered[row] == image[row]).argmax()) for row in range(30, 150, 10)]  # between the corners
        assert len(set(depth)) == 1
        assert depth[0] <= 0.05 * 200
