"""Images as samples: boxes move with their pixels, and randomness depends on (seed, epoch, image) alone."""

from dataclasses import fields, replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from siimcovid.core.configuration import Augment
from siimcovid.core.labels import NIH_FINDINGS
from siimcovid.core.presets import FULL
from siimcovid.data.datasets import ImageDataset, collate, loader
from siimcovid.data.image_memory import ImageMemory

BOX = [0.25, 0.5, 0.5, 0.75]  # of an image of 200 x 120: columns 30 to 60, rows 100 to 150


@pytest.fixture
def cached_images(tmp_path):
    """Three images, not square, with a white block exactly where their only box is."""
    rows = []
    for name in "abc":
        pixels = np.full((200, 120), 20, np.uint8)
        pixels[100:150, 30:60] = 250
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        rows.append({"image_id": name, "boxes": [BOX], "study_label": "typical"})
    return tmp_path, pd.DataFrame(rows)


def block(pixels: np.ndarray) -> list[float]:
    """The white block of a square image as xyxy fractions."""
    rows, columns = np.nonzero(pixels > 130)
    side = pixels.shape[0]
    return [columns.min() / side, rows.min() / side, (columns.max() + 1) / side, (rows.max() + 1) / side]


@pytest.mark.parametrize("size", [64, 96, 256])
def test_square_keeps_fractions(cached_images, size):
    """An image that is not square becomes one, and a fraction of the image is the same fraction of the input."""
    folder, images = cached_images
    sample = ImageDataset(images, folder, size)[0]
    assert sample["images"].shape == (1, size, size)
    assert block(sample["images"][0].numpy()) == pytest.approx(sample["boxes"][0].tolist(), abs=1.01 / size)
    assert sample["boxes"][0].tolist() == BOX


@pytest.mark.parametrize(
    "augment",
    [
        Augment(hflip=1.0),
        Augment(vflip=1.0),
        Augment(shift_rotate=1.0, shift=0.1, degrees=0.0, scale=0.2),
        Augment(resized_crop=1.0, crop_area=0.8),
        Augment(hflip=0.5, vflip=0.5, shift_rotate=1.0, degrees=0.0),
    ],
    ids=["hflip", "vflip", "shift_scale", "crop", "together"],
)
def test_boxes_move_with_pixels(cached_images, augment):
    folder, images = cached_images
    dataset = ImageDataset(images, folder, 128, augment, seed=1)
    for ticket in range(12):
        sample = dataset[ticket]
        assert block(sample["images"][0].numpy()) == pytest.approx(sample["boxes"][0].tolist(), abs=0.03)


def test_rotated_box_holds_its_block(cached_images):
    folder, images = cached_images
    dataset = ImageDataset(images, folder, 128, Augment(shift_rotate=1.0, shift=0.0), seed=1)
    for ticket in range(12):
        sample = dataset[ticket]
        x1, y1, x2, y2 = sample["boxes"][0].tolist()
        u1, v1, u2, v2 = block(sample["images"][0].numpy())
        assert x1 <= u1 + 0.02
        assert y1 <= v1 + 0.02
        assert x2 >= u2 - 0.02
        assert y2 >= v2 - 0.02


@pytest.mark.parametrize("stage", ["rcnn", "yolo", "study"])
def test_changes_depend_on_the_ticket_alone(cached_images, stage):
    folder, images = cached_images
    augment = getattr(FULL, stage).augment
    one, two = (ImageDataset(images, folder, 256, augment, seed=3) for _ in range(2))
    there = [one[ticket] for ticket in range(9)]
    back = [two[ticket] for ticket in reversed(range(9))][::-1]
    for a, b in zip(there, back, strict=True):
        assert torch.equal(a["images"], b["images"])
        assert torch.equal(a["boxes"], b["boxes"])
    assert not torch.equal(there[0]["images"], there[3]["images"])  # the same image, an epoch later
    other = ImageDataset(images, folder, 256, augment, seed=4)[0]
    assert not torch.equal(other["images"], there[0]["images"])


#: Every change by itself.
CHANGES = {
    "hflip": Augment(hflip=1.0),
    "vflip": Augment(vflip=1.0),
    "shift_rotate": Augment(shift_rotate=1.0, scale=0.2),
    "sharpen": Augment(sharpen=1.0),
    "blur": Augment(blur=1.0),
    "brightness_contrast": Augment(brightness_contrast=1.0),
    "cutouts": Augment(cutouts=1.0),
    "erase": Augment(erase=1.0),
    "value_gain": Augment(value_gain=0.4),
    "mixup": Augment(mixup=1.0),
    "resized_crop": Augment(resized_crop=1.0),
    "mosaic": Augment(mosaic=1.0),
    "clahe": Augment(clahe=1.0),
    "rectangles": Augment(rectangles=1.0, rectangle_count=3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_repeated_and_left_out(cached_images, name):
    """The same bytes for the same ticket, other ones an epoch later; with probability 0 the image as it is."""
    folder, images = cached_images
    one, two = (ImageDataset(images, folder, 64, CHANGES[name], seed=3) for _ in range(2))
    there, back = [one[k] for k in range(9)], [two[k] for k in reversed(range(9))][::-1]
    for a, b in zip(there, back, strict=True):
        assert torch.equal(a["images"], b["images"])
        assert torch.equal(a["boxes"], b["boxes"])
    plain = ImageDataset(images, folder, 64)
    same = [
        all(np.array_equal(sample[key], plain[k % 3][key]) for key in ("images", "boxes"))
        for k, sample in enumerate(there)
    ]
    assert not all(same)
    without = ImageDataset(images, folder, 64, replace(CHANGES[name], **{name: 0.0}), seed=3)
    for k in range(9):
        assert torch.equal(without[k]["images"], plain[k % 3]["images"])
        assert torch.equal(without[k]["boxes"], plain[k % 3]["boxes"])


def test_every_change_is_in_the_table():
    """The fields of which 0 leaves the change out; the others say how much of it."""
    amounts = {"shift", "degrees", "scale", "crop", "crop_area", "mosaic_epochs", "rectangle_count", "rectangle_side"}
    assert {field.name for field in fields(Augment)} - amounts == set(CHANGES)


def test_the_last_epochs_have_no_mosaics(cached_images):
    folder, images = cached_images
    augment = Augment(mosaic=1.0, mosaic_epochs=0.5)
    dataset, plain = ImageDataset(images, folder, 64, augment, epochs=5), ImageDataset(images, folder, 64)
    changed = [
        any(not torch.equal(dataset[3 * epoch + k]["images"], plain[k]["images"]) for k in range(3))
        for epoch in range(5)
    ]
    assert changed == [True, True, True, False, False]


def test_mosaic_has_four_images_boxes(cached_images):
    """At half the size, where all four fit, each image's block lies in its box."""
    folder, images = cached_images
    dataset = ImageDataset(images, folder, 128, Augment(mosaic=1.0, shift_rotate=1.0, degrees=0, scale=0.5, shift=0))
    counts = set()
    for ticket in range(24):
        sample = dataset[ticket]
        counts.add(len(sample["boxes"]))
        for x1, y1, x2, y2 in (sample["boxes"] * 128).round().int().tolist():
            assert (sample["images"][0, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] > 200).all()
    assert 4 in counts


def test_mixup_keeps_both_images_boxes(cached_images):
    folder, images = cached_images
    sample = ImageDataset(images, folder, 64, Augment(mixup=1.0), seed=0)[0]
    assert sample["boxes"].tolist() == [BOX, BOX]


def test_loader_batches_in_order(cached_images):
    folder, images = cached_images
    batches = list(loader(ImageDataset(images, folder, 64), batch=2))
    assert [batch["image_ids"] for batch in batches] == [["a", "b"], ["c"]]
    assert batches[0]["images"].shape == (2, 1, 64, 64)
    assert batches[0]["images"].dtype == torch.uint8
    assert batches[0]["study_labels"].tolist() == [1, 1]


def test_unknown_level_is_minus_one(cached_images):
    folder, images = cached_images
    assert collate([ImageDataset(images.assign(study_label=None), folder, 64)[0]])["study_labels"].tolist() == [-1]


def test_findings_come_with_the_images(cached_images):
    folder, images = cached_images
    table = pd.DataFrame(np.eye(15, dtype=int)[: len(images)], columns=list(NIH_FINDINGS), index=images.index)
    batch = next(iter(loader(ImageDataset(images.join(table), folder, 32), 2)))
    assert batch["findings"].tolist() == np.eye(15)[:2].tolist()


def test_without_augmentation_leaves_the_original_alone(cached_images):
    folder, images = cached_images
    augmented = ImageDataset(images, folder, 64, Augment(hflip=1.0, crop=48), seed=0)
    plain = augmented.without_augmentation()
    assert torch.equal(plain[1]["images"], ImageDataset(images, folder, 64)[1]["images"])
    assert plain[1]["boxes"].tolist() == [pytest.approx(BOX)]
    assert augmented[1]["images"].shape == (1, 48, 48)
    assert plain.memory is augmented.memory


def test_memory_is_passed_not_shared_by_itself(cached_images):
    folder, images = cached_images
    memory = ImageMemory(2 * 64 * 64)
    datasets = [ImageDataset(images, folder, 64, memory=memory) for _ in range(2)]
    assert datasets[0].image(0) is datasets[1].image(0)
    assert datasets[0].image(1) is datasets[1].image(1)
    assert datasets[0].image(2) is not datasets[1].image(2)  # above the limit
    others = [ImageDataset(images, folder, 64) for _ in range(2)]
    assert others[0].image(0) is others[0].image(0)
    assert others[0].image(0) is not others[1].image(0)
    cv2.imwrite(str(folder / "a.png"), np.zeros((10, 10), np.uint8))
    assert datasets[0].image(0).max() == 0  # a new picture by the same name is read


def test_boxes_without_area_are_left_out(cached_images):
    """As a pseudo-label may have them; albumentations refuses a box whose sides round to nothing."""
    folder, images = cached_images
    thin = [0.5, 0.2, 0.5 + 1e-9, 0.4]
    images["boxes"] = [[BOX, thin], [thin], []]
    dataset = ImageDataset(images, folder, 64, Augment(hflip=1.0, shift_rotate=1.0))
    assert [len(dataset[number]["boxes"]) for number in range(3)] == [1, 0, 0]
