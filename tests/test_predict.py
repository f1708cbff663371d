"""Predictions: films that cannot be used, the clock, memory, and two processes that say what one says."""

import multiprocessing
import socket
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import split_predictions
from siimcovid import LEVELS, checkpoint
from siimcovid.competition import index_table, write_index
from siimcovid.errors import InputError
from siimcovid.predict import look, predict
from siimcovid.presets import SMALL, override
from tiny_weights import write_weights

FILMS = 11
CONFIG = override(SMALL.rcnn, {"infer_batch": 2, "infer_size": 64})


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """A folder with index.csv, cache/ and eleven films."""
    folder, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    (folder / "cache").mkdir()
    rows = []
    for k in range(FILMS):
        cv2.imwrite(str(folder / "cache" / f"film{k:02}.png"), rng.integers(0, 256, (48, 40), dtype=np.uint8))
        row = {"image_id": f"film{k:02}", "study_id": f"study{k // 2}", "series_id": "", "patient_id": "p"}
        row |= {"split": "test", "path": "", "rows": 48, "columns": 40, "boxes": [], "level": None, "annotated": False}
        rows.append(row)
    images = index_table(rows)
    write_index(images, folder / "index.csv")
    return folder, images


class Bright(nn.Module):
    """A detector that gives each film one box, of its mean brightness; of the films numbered in `nan`, no number."""

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


def test_films_without_a_whole_picture_are_left_out(films, tmp_path):
    folder, images = films
    for path in (folder / "cache").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "film03.png").unlink()
    (tmp_path / "film04.png").write_bytes((folder / "cache" / "film04.png").read_bytes()[:100])
    said = look("rcnn", CONFIG, Bright(), images, tmp_path)
    assert said.unreadable == ["film03", "film04"]
    assert said.image_ids == [name for name in images["image_id"] if name not in said.unreadable]
    assert said.table["image_id"].tolist() == said.image_ids
    with pytest.raises(InputError, match="film03"):
        predict("rcnn", CONFIG, Bright(), images, tmp_path)


def test_numbers_that_are_not_finite_are_left_out(films):
    folder, images = films
    said = look("rcnn", CONFIG, Bright(nan=(0, 7)), images, folder / "cache")
    assert said.not_finite == ["film00", "film07"]
    assert len(said.table) == FILMS - 2
    assert np.isfinite(said.table["score"]).all()


def test_films_without_a_box_were_looked_at(films):
    folder, images = films
    said = look("rcnn", CONFIG, Bright(boxes=0), images, folder / "cache")
    assert said.image_ids == images["image_id"].tolist()
    assert said.table.empty
    assert said.table.columns.tolist() == ["image_id", "model", "score", "x1", "y1", "x2", "y2"]


@pytest.mark.parametrize("batches", [1, 3])
def test_stops_after_a_batch_when_told(films, batches):
    folder, images = films
    answers = iter([True] * (batches - 1) + [False])
    said = look("rcnn", CONFIG, Bright(), images, folder / "cache", may_go_on=lambda: next(answers))
    assert said.image_ids == images["image_id"].head(2 * batches).tolist()


def test_nothing_to_look_at(films):
    folder, images = films
    assert look("rcnn", CONFIG, Bright(), images.head(0), folder / "cache").table.empty
    study = override(SMALL.study, {"infer_size": 64})
    assert predict("study", study, Bright(), images.head(0), folder / "cache").columns.tolist() == [
        *("image_id", "study_id"), *LEVELS,
    ]  # fmt: skip


def test_two_processes_say_what_one_says(films, tmp_path):
    """All tables, of mirrored films too, byte by byte in both processes; 11 films are two batches of unequal length."""
    folder, _ = films
    write_weights(folder / "weights", checkpoint.SUBMISSION_STAGES)
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
