"""Changes of grey, and what hides parts of an image: the parts that albumentations does not have."""

import cv2
import numpy as np
import pytest

from siimcovid.core.configuration import Augment
from siimcovid.data.augmentation import CircularCutouts, build_transforms, random_rectangles


def test_a_cutout_is_a_disc():
    image = np.full((200, 200, 1), 255, np.uint8)
    pixels = CircularCutouts().apply(image, discs=[(60, 90, 20)])[:, :, 0]
    rows, columns = np.mgrid[:200, :200]
    distance = np.hypot(rows - 90, columns - 60)
    assert (pixels[distance < 19] == 0).all()
    assert (pixels[distance > 21] == 255).all()
    assert (image == 255).all()


def test_one_to_six_cutouts():
    pipeline = build_transforms(Augment(cutouts=1.0), seed=0)
    image, counts = np.full((200, 200, 1), 255, np.uint8), set()
    for seed in range(40):
        pipeline.set_random_seed(seed)
        pixels = pipeline(image=image)["image"][:, :, 0]
        counts.add(cv2.connectedComponents((pixels == 0).astype(np.uint8))[0] - 1)
    assert {1, 5} < counts <= {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize(("count", "largest"), [(1, 0.4), (1, 1.0), (8, 0.1)])
def test_rectangles_are_black_and_of_their_size(count, largest):
    augment = Augment(rectangles=1.0, rectangle_count=count, rectangle_side=largest)
    image, sides, numbers = np.full((100, 100), 255, np.uint8), set(), set()
    for seed in range(40):
        pixels, _ = random_rectangles(image, np.zeros((0, 4), np.float32), augment, np.random.default_rng(seed))
        number, _, found, _ = cv2.connectedComponentsWithStats((pixels == 0).astype(np.uint8))
        numbers.add(number - 1)
        sides |= {int(length) for length in found[1:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].ravel()}
        assert set(np.unique(pixels)) == {0, 255}
    assert (image == 255).all()
    assert max(numbers) == count
    assert min(sides) == pytest.approx(largest * 25, abs=0.04 * largest * 100 + 1)
    if count == 1:  # of several, two may lie side by side
        assert numbers == {1}
        assert 0.9 * largest * 100 < max(sides) <= largest * 100


def test_a_box_behind_a_rectangle_is_dropped():
    """Of the first box nothing is in sight, of the second everything."""
    boxes = np.array([[0.4, 0.4, 0.6, 0.6], [0.0, 0.0, 0.05, 0.05]], np.float32)
    augment = Augment(rectangles=1.0, rectangle_side=0.8)
    image, kept = np.full((100, 100), 255, np.uint8), set()
    for seed in range(60):
        pixels, left = random_rectangles(image, boxes, augment, np.random.default_rng(seed))
        seen = [(pixels[40:60, 40:60] > 0).mean(), (pixels[:5, :5] > 0).mean()]
        assert left.tolist() == [box for box, share in zip(boxes.tolist(), seen, strict=True) if share >= 0.2]
        kept.add(len(left))
    assert {1, 2} <= kept
