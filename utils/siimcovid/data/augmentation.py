"""Random changes of an image's greys and what hides parts of it; what moves pixels is in random_geometry.py."""

import os

import cv2
import numpy as np

from siimcovid.core.configuration import Augment
from siimcovid.data.random_geometry import VISIBLE

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or the import below asks the network for a newer version
import albumentations


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


def build_transforms(augment: Augment, seed: int) -> albumentations.Compose | None:
    """The albumentations pipeline of an Augment's changes of grey, or None where it has none; boxes stay.

    It takes `image`, uint8 (rows, columns, 1), and returns it, changed. What moves pixels is in random_geometry.py.
    """
    a, steps = augment, []
    if a.sharpen or a.blur:
        # the choices are weighed by their p, and one of them happens with the sum
        choices = [albumentations.Sharpen(p=a.sharpen), albumentations.Blur(blur_limit=(3, 5), p=a.blur)]
        steps.append(albumentations.OneOf([c for c in choices if c.p], p=min(1.0, a.sharpen + a.blur)))
    if a.brightness_contrast:
        steps.append(albumentations.RandomBrightnessContrast(p=a.brightness_contrast))
    if a.clahe:
        steps.append(albumentations.CLAHE(p=a.clahe))
    if a.value_gain:
        steps.append(albumentations.MultiplicativeNoise(multiplier=(1 - a.value_gain, 1 + a.value_gain), p=1.0))
    if a.cutouts:
        steps.append(CircularCutouts(p=a.cutouts))
    if a.erase:
        steps.append(albumentations.Erasing(scale=(0.01, 0.1), p=a.erase))
    return albumentations.Compose(steps, seed=seed) if steps else None


def random_rectangles(
    pixels: np.ndarray, boxes: np.ndarray, augment: Augment, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of an image, (S, S) uint8, with Augment's black rectangles, and the boxes (n, 4) that are still in sight.

    A side is a quarter to the whole of `rectangle_side`, and a rectangle lies within the image. A box of which less
    than VISIBLE is in sight is dropped.
    """
    side = pixels.shape[0]
    pixels, hidden = pixels.copy(), np.zeros_like(pixels)
    for _ in range(augment.rectangle_count):
        width, height = np.maximum(1, np.rint(rng.uniform(0.25, 1, 2) * augment.rectangle_side * side)).astype(int)
        column, row = rng.integers(0, (side - width + 1, side - height + 1))
        pixels[row : row + height, column : column + width] = 0
        hidden[row : row + height, column : column + width] = 1
    corners = np.rint(boxes * side).astype(int)
    shares = [hidden[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].mean() for x1, y1, x2, y2 in corners]
    return pixels, boxes[np.array(shares, np.float32) <= 1 - VISIBLE]
