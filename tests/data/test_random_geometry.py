"""Flips, shift, rotation, scale, parts and mosaics: the boxes go where the pixels go."""

import cv2
import numpy as np
import pytest

from siimcovid.core.configuration import Augment
from siimcovid.data.random_geometry import mosaic, move, random_flips, random_matrix

#: Boxes that do not touch each other.
LEFT, HIGH, LOW = [0.3, 0.3, 0.45, 0.5], [0.55, 0.4, 0.65, 0.6], [0.4, 0.7, 0.8, 0.75]


def painted(side: int, boxes: np.ndarray) -> np.ndarray:
    """A grey image with white rectangles where its boxes, fractions, are."""
    pixels = np.full((side, side), 20, np.uint8)
    for x1, y1, x2, y2 in np.rint(boxes * side).astype(int):
        pixels[y1:y2, x1:x2] = 250
    return pixels


def blocks(pixels: np.ndarray) -> list[list[float]]:
    """The white rectangles of an image as fractions, from the left; without those of a few pixels."""
    _, _, found, _ = cv2.connectedComponentsWithStats((pixels > 130).astype(np.uint8))
    found = found[1:][found[1:, cv2.CC_STAT_AREA] > 8, :4].astype(float)
    found[:, 2:] += found[:, :2]
    return sorted((found / len(pixels)).tolist())


def assert_together(pixels: np.ndarray, boxes: np.ndarray) -> None:
    """Every box lies on a white rectangle, and every white rectangle that the border does not cut has a box."""
    seen = blocks(pixels)
    for box in boxes.tolist():
        assert any(block == pytest.approx(box, abs=0.025) for block in seen), (box, seen)
    for block in seen:
        cut = min(block) < 0.01 or max(block) > 0.99
        assert cut or any(box == pytest.approx(block, abs=0.025) for box in boxes.tolist()), (block, boxes)


@pytest.mark.parametrize("seed", range(12))
def test_mosaic_moves_rectangles_with_their_boxes(seed):
    tables = [np.array(boxes, np.float32).reshape(-1, 4) for boxes in ([LEFT, LOW], [], [HIGH], [LEFT, HIGH])]
    rng = np.random.default_rng(seed)
    canvas, boxes = mosaic([painted(128, its) for its in tables], tables, rng)
    assert canvas.shape == (256, 256)
    assert len(boxes) == 5
    assert_together(*move(canvas, boxes, np.eye(3), 256))
    zoom = Augment(shift_rotate=1.0, degrees=0.0, scale=0.5, shift=0.1)
    for augment in (Augment(), zoom):
        pixels, left = move(canvas, boxes, random_matrix(augment, 256, 128, rng), 128)
        assert pixels.shape == (128, 128)
        assert_together(pixels, left)


def test_mosaic_has_four_images_around_a_random_point():
    greys, points = [np.full((8, 8), grey, np.uint8) for grey in (50, 100, 150, 200)], set()
    for seed in range(100):
        canvas, _ = mosaic(greys, [np.zeros((0, 4))] * 4, np.random.default_rng(seed))
        y, x = np.argwhere(canvas == 200)[0]
        assert canvas[y - 1, x - 1] == 50
        assert canvas[y - 1, x] == 100
        assert canvas[y, x - 1] == 150
        assert [(canvas == grey).sum() for grey in (50, 100, 150, 200)] == [
            min(8, rows) * min(8, columns) for rows in (y, 16 - y) for columns in (x, 16 - x)
        ]
        points |= {(x, 0), (0, y)}
    assert points == {(k, 0) for k in range(4, 13)} | {(0, k) for k in range(4, 13)}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(resized_crop=1.0),
        Augment(resized_crop=1.0, crop_area=0.2),
        Augment(shift_rotate=1.0, degrees=0.0, scale=0.5, shift=0.1),
        Augment(resized_crop=1.0, shift_rotate=1.0, degrees=0.0, scale=0.3, shift=0.2),
    ],
    ids=["centre", "crop", "small_crop", "scale_shift", "together"],
)
@pytest.mark.parametrize("whole", [128, 256])
def test_rectangles_move_with_their_boxes(augment, whole, seed):
    boxes = np.array([LEFT, HIGH, LOW], np.float32)
    rng = np.random.default_rng(seed)
    matrix = random_matrix(augment, whole, 128, rng)
    pixels, left = move(painted(whole, boxes), boxes * whole, matrix, 128)
    assert pixels.shape == (128, 128)
    assert_together(pixels, left)


def test_a_box_of_which_less_than_a_fifth_is_left_is_dropped():
    """Boxes of 40 x 40 pixels, with 0, 7, 8 and 40 of their columns in sight."""
    boxes = np.array([[-40, 10, 0, 50], [-33, 10, 7, 50], [-32, 10, 8, 50], [0, 10, 40, 50]], np.float32)
    _, left = move(np.zeros((100, 100), np.uint8), boxes, np.eye(3), 100)
    assert left.tolist() == [pytest.approx([0, 0.1, 0.08, 0.5]), pytest.approx([0, 0.1, 0.4, 0.5])]


def test_a_box_ends_where_its_canvas_ends():
    """At half the size a canvas of 100 pixels reaches from 25 to 75, and so does what is left of a box across it."""
    half = np.array([[0.5, 0, 25], [0, 0.5, 25], [0, 0, 1]])
    _, left = move(np.zeros((100, 100), np.uint8), np.array([[-20, 40, 120, 60]], np.float32), half, 100)
    assert left.tolist() == [pytest.approx([0.25, 0.45, 0.75, 0.55])]


@pytest.mark.parametrize("scale", [0.5, 1.5, 3])
def test_pixels_and_boxes_have_the_same_origin(scale):
    """The centre of what is white is the box's, to a twentieth of a pixel: a fraction counts from the border."""
    pixels, box = np.zeros((60, 60), np.uint8), np.array([[8, 8, 16, 12]], np.float32)
    pixels[8:12, 8:16] = 200
    moved, left = move(pixels, box, np.diag([scale, scale, 1]), 60)
    rows, columns = np.mgrid[:60, :60] + 0.5
    centre = [(axis * moved).sum() / moved.sum() for axis in (columns, rows)]
    assert centre == pytest.approx([12 * scale, 10 * scale], abs=0.05)
    assert (left[0, :2] + left[0, 2:]) / 2 * 60 == pytest.approx([12 * scale, 10 * scale])


class Drawn:
    """Gives numbers of one's own, each from -1 to 1, in the order in which random_matrix asks for them."""

    def __init__(self, degrees: float, scale: float, x: float, y: float):
        self.numbers = [np.array([degrees, scale]), np.array([x, y])]

    def random(self):
        return 0.0

    def uniform(self, low, high, size):
        return self.numbers.pop(0)


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ((0, 0, 0, 0), lambda x, y: (x - 32, y - 32)),  # the canvas's centre is the output's
        ((0, 0, 1, -0.5), lambda x, y: (x - 32 + 6.4, y - 32 - 3.2)),
        ((0, 1, 0, 0), lambda x, y: (32 + 1.5 * (x - 64), 32 + 1.5 * (y - 64))),
        ((0, -1, 1, 1), lambda x, y: (32 + 0.5 * (x - 64) + 6.4, 32 + 0.5 * (y - 64) + 6.4)),
        ((1, 0, 0, 0), lambda x, y: (32 + (y - 64), 32 - (x - 64))),
        ((1, 1, 0.5, 0), lambda x, y: (32 + 1.5 * (y - 64) + 3.2, 32 - 1.5 * (x - 64))),
    ],
    ids=["nothing", "shift", "larger", "smaller_shift", "quarter_turn", "together"],
)
def test_scale_and_turn_about_the_centre_then_shift(drawn, expected):
    """As yolov5's random_perspective has it: T @ R @ C, one scale for both axes, the shift of the output's side."""
    augment = Augment(shift_rotate=1.0, degrees=90, scale=0.5, shift=0.1)
    matrix = random_matrix(augment, 128, 64, Drawn(*drawn))
    for x, y in [(64, 64), (50, 70), (90, 40)]:
        assert (matrix @ (x, y, 1))[:2] == pytest.approx(expected(x, y))


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        (Augment(hflip=1.0), [0.7, 0.2, 0.9, 0.5]),
        (Augment(vflip=1.0), [0.1, 0.5, 0.3, 0.8]),
        (Augment(hflip=1.0, vflip=1.0), [0.7, 0.5, 0.9, 0.8]),
        (Augment(), [0.1, 0.2, 0.3, 0.5]),
    ],
    ids=["hflip", "vflip", "both", "none"],
)
def test_flips(augment, expected):
    box = np.array([[0.1, 0.2, 0.3, 0.5]], np.float32)
    pixels, boxes = random_flips(painted(40, box), box, augment, np.random.default_rng(0))
    assert boxes.tolist() == [pytest.approx(expected)]
    assert blocks(pixels) == [pytest.approx(expected)]


@pytest.mark.parametrize("smallest", [0.1, 0.5, 1.0])
def test_the_part_has_its_area_and_lies_in_the_image(smallest):
    areas = []
    for seed in range(50):
        matrix = random_matrix(Augment(resized_crop=1.0, crop_area=smallest), 64, 64, np.random.default_rng(seed))
        corners = np.linalg.inv(matrix) @ np.array([[0, 64], [0, 64], [1, 1]])  # of the part, in the image
        assert corners[:2].min() >= -1e-9
        assert corners[:2].max() <= 64 + 1e-9
        areas.append((corners[:2, 1] - corners[:2, 0]).prod() / 64**2)
    assert min(areas) == pytest.approx(smallest, abs=0.05)
    assert max(areas) == pytest.approx(1, abs=0.05)
    assert min(areas) >= smallest - 1e-9
