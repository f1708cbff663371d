"""The parts of the augmentation pipeline that albumentations does not have."""

import cv2
import numpy as np
import pytest

from siimcovid.core.configuration import Augment
from siimcovid.data.augmentation import CircularCutouts, build_transforms


def test_a_cutout_is_a_disc():
    image = np.full((200, 200, 1), 255, np.uint8)
    pixels = CircularCutouts().apply(image, discs=[(60, 90, 20)])[:, :, 0]
    rows, columns = np.mgrid[:200, :200]
    distance = np.hypot(rows - 90, columns - 60)
    assert (pixels[distance < 19] == 0).all()
    assert (pixels[distance > 21] == 255).all()
    assert (image == 255).all()


def test_one_to_six_cutouts_and_boxes_stay():
    pipeline = build_transforms(Augment(cutouts=1.0), seed=0)
    image, counts = np.full((200, 200, 1), 255, np.uint8), set()
    for seed in range(40):
        pipeline.set_random_seed(seed)
        changed = pipeline(image=image, bboxes=np.array([[0.1, 0.1, 0.9, 0.9]]))
        assert changed["bboxes"] == pytest.approx(np.array([[0.1, 0.1, 0.9, 0.9]]))
        counts.add(cv2.connectedComponents((changed["image"][:, :, 0] == 0).astype(np.uint8))[0] - 1)
    assert {1, 5} < counts <= {1, 2, 3, 4, 5, 6}
