"""Predictions: images that cannot be used, the clock, memory, and two processes that say what one says."""

import multiprocessing
import socket
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from siimcovid.core import stage_names
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.presets import DEMO, override
from siimcovid.data.competition import index_table, write_index
from siimcovid.inference.predictor import predict_images, predict_table
from support import split_predictions
from support.tiny_weights import write_weights

IMAGES = 11
CONFIG = override(DEMO.rcnn, {"infer_batch": 2, "infer_size": 64})


@pytest.fixture(scope="module")
def cached_images(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """A folder with index.csv, cache/ and eleven images."""
    folder, rng = tmp_path_factory.mktemp("cached_images"), np.random.default_rng(0)
    (folder / "cache").mkdir()
    rows = []
    for k in range(IMAGES):
        cv2.imwrite(str(folder / "cache" / f"image{k:02}.png"), rng.integers(0, 256, (48, 40), dtype=np.uint8))
        row = {"image_id": f"image{k:02}", "study_id": f"study{k // 2}", "series_id": "", "patient_id": "p"}
        row |= {
            "split": "test",
            "path": "",
            "rows": 48,
            "columns": 40,
            "boxes": [],
            "study_label": None,
            "annotated": False,
        }
        rows.append(row)
    images = index_table(rows)
    write_index(images, folder / "index.csv")
    return folder, images


class Bright(nn.Module):
    """A detector that gives each image one box, of its mean brightness; of the images numbered in `nan`, no number."""

    def __init__(self, nan: tuple[int, ...] = (), boxes: int = 1):
        super().__init__()
        self.nan, self.boxes, self.count = nan, boxes, 0

    def predict(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        found = []
        for image in images:
            score = image.float().mean().view(1) / 255
            score = torch.full_like(score, torch.nan) if self.count in self.nan else score
            found.append((torch.tensor([[0.1, 0.2, 0.5, 0.6]])[: self.boxes], score[: self.boxes]))
            self.count += 1
        return found


def test_images_without_a_whole_picture_are_left_out(cached_images, tmp_path):
    folder, images = cached_images
    for path in (folder / "cache").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "image03.png").unlink()
    (tmp_path / "image04.png").write_bytes((folder / "cache" / "image04.png").read_bytes()[:100])
    outputs = predict_images("rcnn", CONFIG, Bright(), images, tmp_path)
    assert outputs.unreadable == ["image03", "image04"]
    assert outputs.image_ids == [name for name in images["image_id"] if name not in outputs.unreadable]
    assert outputs.table["image_id"].tolist() == outputs.image_ids
    with pytest.raises(InputError, match="image03"):
        predict_table("rcnn", CONFIG, Bright(), images, tmp_path)


def test_numbers_that_are_not_finite_are_left_out(cached_images):
    folder, images = cached_images
    outputs = predict_images("rcnn", CONFIG, Bright(nan=(0, 7)), images, folder / "cache")
    assert outputs.not_finite == ["image00", "image07"]
    assert len(outputs.table) == IMAGES - 2
    assert np.isfinite(outputs.table["score"]).all()


def test_images_without_a_box_were_looked_at(cached_images):
    folder, images = cached_images
    outputs = predict_images("rcnn", CONFIG, Bright(boxes=0), images, folder / "cache")
    assert outputs.image_ids == images["image_id"].tolist()
    assert outputs.table.empty
    assert outputs.table.columns.tolist() == ["image_id", "model", "score", "x1", "y1", "x2", "y2"]


@pytest.mark.parametrize("batches", [1, 3])
def test_stops_after_a_batch_when_told(cached_images, batches):
    folder, images = cached_images
    answers = iter([True] * (batches - 1) + [False])
    outputs = predict_images("rcnn", CONFIG, Bright(), images, folder / "cache", may_go_on=lambda: next(answers))
    assert outputs.image_ids == images["image_id"].head(2 * batches).tolist()


def test_nothing_to_look_at(cached_images):
    folder, images = cached_images
    assert predict_images("rcnn", CONFIG, Bright(), images.head(0), folder / "cache").table.empty
    study = override(DEMO.study, {"infer_size": 64})
    assert predict_table("study", study, Bright(), images.head(0), folder / "cache").columns.tolist() == [
        *("image_id", "study_id"), *STUDY_LABELS,
    ]  # fmt: skip


def test_two_processes_say_what_one_says(cached_images, tmp_path):
    """All tables, of mirrored images too, byte by byte in both processes; 11 images are two batches of unequal
    length."""
    folder, _ = cached_images
    write_weights(folder / "weights", stage_names.SUBMISSION_STAGES)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=split_predictions.work, args=(folder, one))]
    for rank in (0, 1):
        processes.append(context.Process(target=split_predictions.work_as, args=(rank, port, folder, two)))
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    names = sorted(path.name for path in one.iterdir())
    assert len(names) == 5
    for name in names:
        for rank in "01":
            assert (two / name.replace("-0.", f"-{rank}.")).read_bytes() == (one / name).read_bytes(), (name, rank)
