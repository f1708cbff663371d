"""Films as samples: boxes move with their pixels, and randomness depends on (seed, epoch, film) alone."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from siimcovid.configs import Augment
from siimcovid.data import CircularCutouts, EpochSampler, Films, centre_crop, collate, loader, transforms
from siimcovid.nih import LABELS
from siimcovid.presets import FULL

BOX = [0.25, 0.5, 0.5, 0.75]  # of a film of 200 x 120: columns 30 to 60, rows 100 to 150


@pytest.fixture
def films(tmp_path):
    """Three films, not square, with a white block exactly where their only box is."""
    rows = []
    for name in "abc":
        pixels = np.full((200, 120), 20, np.uint8)
        pixels[100:150, 30:60] = 250
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        rows.append({"image_id": name, "boxes": [BOX], "level": "typical"})
    return tmp_path, pd.DataFrame(rows)


def block(pixels: np.ndarray) -> list[float]:
    """The white block of a square film as xyxy fractions."""
    rows, columns = np.nonzero(pixels > 130)
    side = pixels.shape[0]
    return [columns.min() / side, rows.min() / side, (columns.max() + 1) / side, (rows.max() + 1) / side]


@pytest.mark.parametrize("size", [64, 96, 256])
def test_square_keeps_fractions(films, size):
    """A film that is not square becomes one, and a fraction of the film is the same fraction of the input."""
    folder, images = films
    sample = Films(images, folder, size)[0]
    assert sample["images"].shape == (1, size, size)
    assert block(sample["images"][0].numpy()) == pytest.approx(sample["boxes"][0].tolist(), abs=1.01 / size)
    assert sample["boxes"][0].tolist() == BOX


@pytest.mark.parametrize(
    "augment",
    [
        Augment(flip=1.0),
        Augment(flip_vertical=1.0),
        Augment(shift_rotate=1.0, shift=0.1, degrees=0.0, scale=0.2),
        Augment(flip=0.5, flip_vertical=0.5, shift_rotate=1.0, degrees=0.0),
    ],
    ids=["flip", "flip_vertical", "shift_scale", "together"],
)
def test_boxes_move_with_pixels(films, augment):
    folder, images = films
    dataset = Films(images, folder, 128, augment, seed=1)
    for ticket in range(12):
        sample = dataset[ticket]
        assert block(sample["images"][0].numpy()) == pytest.approx(sample["boxes"][0].tolist(), abs=0.03)


def test_rotated_box_holds_its_block(films):
    folder, images = films
    dataset = Films(images, folder, 128, Augment(shift_rotate=1.0, shift=0.0), seed=1)
    for ticket in range(12):
        sample = dataset[ticket]
        x1, y1, x2, y2 = sample["boxes"][0].tolist()
        u1, v1, u2, v2 = block(sample["images"][0].numpy())
        assert x1 <= u1 + 0.02
        assert y1 <= v1 + 0.02
        assert x2 >= u2 - 0.02
        assert y2 >= v2 - 0.02


@pytest.mark.parametrize("stage", ["rcnn", "yolo", "study"])
def test_changes_depend_on_the_ticket_alone(films, stage):
    folder, images = films
    augment = getattr(FULL, stage).augment
    one, two = (Films(images, folder, 256, augment, seed=3) for _ in range(2))
    there = [one[ticket] for ticket in range(9)]
    back = [two[ticket] for ticket in reversed(range(9))][::-1]
    for a, b in zip(there, back, strict=True):
        assert torch.equal(a["images"], b["images"])
        assert torch.equal(a["boxes"], b["boxes"])
    assert not torch.equal(there[0]["images"], there[3]["images"])  # the same film, an epoch later
    other = Films(images, folder, 256, augment, seed=4)[0]
    assert not torch.equal(other["images"], there[0]["images"])


def test_mixup_keeps_both_films_boxes(films):
    folder, images = films
    sample = Films(images, folder, 64, Augment(mixup=1.0), seed=0)[0]
    assert sample["boxes"].tolist() == [BOX, BOX]


def test_centre_crop():
    pixels = np.arange(100, dtype=np.uint8).reshape(10, 10)
    boxes = np.array([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.1, 0.1]], np.float32)
    cropped, kept = centre_crop(pixels, boxes, 8)
    assert cropped.tolist() == pixels[1:9, 1:9].tolist()
    assert kept == pytest.approx(np.array([[0.0, 0.0, 0.5, 0.5]]))  # (5 - 1) / 8; the other box lies in the border
    assert centre_crop(pixels, boxes, 0)[0] is pixels


def test_sampler_covers_each_epoch_once():
    sampler = EpochSampler(5, seed=0)
    first = list(sampler)
    sampler.epoch = 2
    third = list(sampler)
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert sorted(third) == [10, 11, 12, 13, 14]
    assert [t - 10 for t in third] != first
    assert list(EpochSampler(5, seed=0)) == first


def test_sampler_draws_by_chances():
    sampler = EpochSampler(2000, seed=0, chances=[3.0] * 1000 + [1.0] * 1000)
    rare = sum(ticket < 1000 for ticket in sampler)
    assert rare == pytest.approx(1500, abs=60)  # three standard deviations


def test_loader_batches_in_order(films):
    folder, images = films
    batches = list(loader(Films(images, folder, 64), batch=2))
    assert [batch["image_ids"] for batch in batches] == [["a", "b"], ["c"]]
    assert batches[0]["images"].shape == (2, 1, 64, 64)
    assert batches[0]["images"].dtype == torch.uint8
    assert batches[0]["levels"].tolist() == [1, 1]


def test_unknown_level_is_minus_one(films):
    folder, images = films
    assert collate([Films(images.assign(level=None), folder, 64)[0]])["levels"].tolist() == [-1]


def test_a_cutout_is_a_disc():
    film = np.full((200, 200, 1), 255, np.uint8)
    pixels = CircularCutouts().apply(film, discs=[(60, 90, 20)])[:, :, 0]
    rows, columns = np.mgrid[:200, :200]
    distance = np.hypot(rows - 90, columns - 60)
    assert (pixels[distance < 19] == 0).all()
    assert (pixels[distance > 21] == 255).all()
    assert (film == 255).all()


def test_one_to_six_cutouts_and_boxes_stay():
    pipeline = transforms(Augment(cutouts=1.0), seed=0)
    film, counts = np.full((200, 200, 1), 255, np.uint8), set()
    for seed in range(40):
        pipeline.set_random_seed(seed)
        changed = pipeline(image=film, bboxes=np.array([[0.1, 0.1, 0.9, 0.9]]))
        assert changed["bboxes"] == pytest.approx(np.array([[0.1, 0.1, 0.9, 0.9]]))
        counts.add(cv2.connectedComponents((changed["image"][:, :, 0] == 0).astype(np.uint8))[0] - 1)
    assert {1, 5} < counts <= {1, 2, 3, 4, 5, 6}


def test_findings_come_with_the_films(films):
    folder, images = films
    table = pd.DataFrame(np.eye(15, dtype=int)[: len(images)], columns=list(LABELS), index=images.index)
    batch = next(iter(loader(Films(images.join(table), folder, 32), 2)))
    assert batch["findings"].tolist() == np.eye(15)[:2].tolist()
