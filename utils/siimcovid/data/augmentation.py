"""Random changes to training images, with albumentations: boxes move with their pixels."""

import os

import cv2
import numpy as np

from siimcovid.core.configuration import Augment

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


def build_transforms(augment: Augment, seed: int) -> albumentations.Compose:
    """The albumentations pipeline of an Augment, without mixup and the crop, which ImageDataset does.

    It takes `image`, uint8 (rows, columns, 1), and `bboxes`, (n, 4) xyxy fractions, and returns both, changed. A box of
    which less than a fifth of the area is left in the image is dropped.
    """
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
