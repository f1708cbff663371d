"""Shortcuts: markers and borders go, the lungs stay; who reads markers falls; a run with time says so."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from run_folder import write_run
from siimcovid import LEVELS, data, inference, scoreboard, shortcuts
from siimcovid.clock import Clock
from siimcovid.competition import Competition, read_index
from siimcovid.predict import look, predict, study_levels
from siimcovid.presets import SMALL, override
from siimcovid.run import Run

SIDE = 128
CONFIG = override(SMALL.study, {"infer_size": SIDE})

#: Where the letter stands: rows, columns, as shares.
LETTER = (0.12, 0.22), (0.78, 0.88)


def chest(rows: int, columns: int) -> np.ndarray:
    """Two dark lungs in a bright body, nothing of it narrow or sharp."""
    y, x = np.mgrid[0:rows, 0:columns] / [[[rows]], [[columns]]]
    lungs = sum(np.exp(-(((x - centre) / 0.13) ** 2) - ((y - 0.5) / 0.28) ** 2) for centre in (0.3, 0.7))
    return np.rint(170 - 110 * lungs + 8 * np.sin(40 * y)).astype(np.uint8)


def marked(film: np.ndarray, border: float = 0.03) -> np.ndarray:
    """The film with an "L" and a white frame burned in."""
    film, (rows, columns) = film.copy(), film.shape
    (top, bottom), (left, right) = ([round(v * n) for v in share] for share, n in zip(LETTER, film.shape, strict=True))
    stroke = max(1, round(0.015 * max(film.shape)))
    film[top:bottom, left : left + stroke] = film[bottom - stroke : bottom, left:right] = 255
    frame = [max(1, round(border * n)) for n in (rows, columns)]
    film[: frame[0]] = film[-frame[0] :] = 255
    film[:, : frame[1]] = film[:, -frame[1] :] = 255
    return film


def part(film: np.ndarray, rows: tuple[float, float], columns: tuple[float, float]) -> np.ndarray:
    (a, b), (c, d) = ([round(v * n) for v in share] for share, n in zip((rows, columns), film.shape, strict=True))
    return film[a:b, c:d]


def steepest(film: np.ndarray) -> float:
    """The largest step between neighbours."""
    return max(np.abs(np.diff(film.astype(float), axis=axis)).max() for axis in (0, 1))


@pytest.mark.parametrize("shape", [(128, 128), (256, 256), (320, 260), (1024, 1024)])
def test_letter_and_border_go_and_the_lungs_stay(shape):
    film = chest(*shape)
    shown = marked(film)
    before = shown.copy()
    covered = shortcuts.cover(shown)
    assert (shown == before).all()
    assert (covered.shape, covered.dtype) == (shape, np.uint8)
    assert (part(covered, (0.25, 0.75), (0.25, 0.75)) == part(film, (0.25, 0.75), (0.25, 0.75))).all()
    assert (part(covered, (0.25, 0.9), (0.1, 0.9)) == part(film, (0.25, 0.9), (0.1, 0.9))).all()
    letter, plain = part(covered, *LETTER).astype(float), part(film, *LETTER)
    assert np.abs(letter - plain).max() < 15  # of the 85 by which it stood out
    assert covered.max() < 185
    assert steepest(covered) <= steepest(film) + 3  # no edge where something was
    other = shortcuts.cover(film)
    assert np.abs(covered.astype(float) - other).max() < 15  # nor does the film say that there was


@pytest.mark.parametrize("film", [np.zeros((40, 30)), np.full((64, 64), 255), np.eye(3) * 255, np.ones((1, 1))])
def test_films_that_show_nothing(film):
    covered = shortcuts.cover(film.astype(np.uint8))
    assert covered.shape == film.shape
    assert film.min() <= covered.min() <= covered.max() <= film.max()


def test_what_is_no_marker_stays():
    film = chest(256, 256)
    cv2.line(film, (60, 40), (225, 110), 255, 3)  # a catheter, longer than a word
    cv2.rectangle(film, (200, 30), (230, 60), 255, -1)  # wider than a stroke
    cv2.circle(film, (128, 128), 3, 255, -1)  # among the lungs
    assert not shortcuts.markers(film).any()
    cv2.putText(film, "AP", (200, 235), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1, cv2.LINE_AA)
    found = np.argwhere(shortcuts.markers(film))
    assert found.min() >= 198  # rows and columns of the word alone
    assert len(found) > 100


class Reader(nn.Module):
    """A study model that tells the level by how bright one part of the film is: level k at 25 + 60 k."""

    def __init__(self, rows, columns):
        super().__init__()
        self.rows, self.columns = rows, columns

    def predict(self, images: Tensor) -> Tensor:
        parts = images[..., self.rows, self.columns].float().mean((1, 2, 3))
        return -(((parts[:, None] - 25 - 60 * torch.arange(4)) / 30) ** 2)


@pytest.fixture(params=["corner"])
def films(tmp_path, request):
    """Films with a spot as bright as the level says: a marker in a corner, or something between the lungs."""
    rows, spot = [], slice(2, 6) if request.param == "corner" else slice(60, 68)
    for k in range(16):
        film = chest(SIDE, SIDE)
        film[spot, spot] = 25 + 60 * (k % 4)
        cv2.imwrite(str(tmp_path / f"f{k:02}.png"), film)
        rows.append({"image_id": f"f{k:02}", "study_id": f"s{k:02}", "boxes": [], "level": LEVELS[k % 4]})
    return tmp_path, pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("films", "where", "fall"),
    [("corner", slice(2, 6), True), ("middle", slice(60, 68), False)],
    indirect=["films"],
    ids=["marker", "middle"],
)
def test_who_reads_the_marker_falls(films, where, fall):
    """On covered films the marker's reader says the same of all, so that only the order of the ties is left."""
    folder, images = films
    tables = [
        study_levels(predict("study", CONFIG, Reader(where, where), images, folder, change=change))
        for change in (None, shortcuts.cover)
    ]
    found = shortcuts.compare(*tables, images.set_index("study_id")["level"])
    assert found["as they are"] == dict.fromkeys((*LEVELS, "mean"), 1.0)
    assert (found["fall"]["mean"] > 0.5) if fall else (found["fall"] == dict.fromkeys((*LEVELS, "mean"), 0.0))


def test_the_memory_of_shared_films_is_not_disturbed(films):
    folder, images = films
    before = [data.SHARED.square(folder, name, SIDE).copy() for name in images["image_id"]]
    model = Reader(slice(None), slice(None))
    plain = look("study", CONFIG, model, images, folder).table
    changed = look("study", CONFIG, model, images, folder, change=lambda film: 255 - film).table
    assert not plain.equals(changed)
    with pytest.raises(ValueError, match="read-only"):
        look("study", CONFIG, model, images, folder, change=lambda film: np.clip(film, 0, 9, out=film))
    for film, name in zip(before, images["image_id"], strict=True):
        assert (data.SHARED.square(folder, name, SIDE) == film).all()
    pd.testing.assert_frame_equal(look("study", CONFIG, model, images, folder).table, plain)


def test_compared_are_the_studies_that_all_know():
    """Two levels, told apart perfectly, then the wrong way round; one study not looked at again, one without truth."""
    sure = {"negative": [0.9, 0.1, 0.9, 0.5], "typical": [0.1, 0.9, 0.1, 0.5], "indeterminate": 0.0, "atypical": 0.0}
    before = pd.DataFrame({"study_id": ["a", "b", "c", "d"], **sure})
    after = before.assign(negative=before["typical"], typical=before["negative"])[::-1]
    truth = pd.Series({"a": "negative", "b": "typical", "c": "negative"})
    found = shortcuts.compare(before, after[after["study_id"] != "c"], truth)
    none = dict.fromkeys(("indeterminate", "atypical"))
    assert found == {
        "studies": 2,
        "as they are": {"negative": 1.0, "typical": 1.0, **none, "mean": 1.0},
        "covered": {"negative": 0.5, "typical": 0.5, **none, "mean": 0.5},
        "fall": {"negative": 0.5, "typical": 0.5, **none, "mean": 0.5},
    }


@pytest.fixture
def run(tmp_path):
    """A run that has classified its four films, with a study model that says of each film how bright it is."""
    folder = write_run(tmp_path)
    images = read_index(folder / "index.csv")
    sample = pd.read_csv(folder / "submission.csv")
    ended = Run(folder, Clock(1.0), competition=Competition(tmp_path / "competition", images, sample, ()))
    ended.source = tmp_path / "competition"
    ended.models["study"] = (CONFIG, Reader(slice(40, 80), slice(40, 80)), False)
    ended.choices = ended.all_choices()
    levels = pd.read_csv(folder / "levels.csv")  # of each study, as if it were of its film
    ended.film_levels = ended.test[["image_id", "study_id"]].merge(levels, on="study_id")
    return ended


def test_a_run_prints_and_keeps_the_fall(run, capsys):
    """Its films are of one grey, 40, 80, 120 and 160, each of another level, so covering changes nothing on them."""
    said = look("study", CONFIG, run.models["study"][1], run.test, run.cache).table
    scoreboard.check_shortcuts(run)
    found = json.loads((run.folder / "shortcuts.json").read_text(encoding="utf-8"))
    truth = pd.Series({"s0": "negative", "s1": "typical", "s2": "indeterminate", "s3": "atypical"})
    levels = study_levels(run.film_levels)
    assert found == shortcuts.compare(levels, study_levels(said), truth)
    assert found["studies"] == 4
    assert f"a fall of {found['fall']['mean']:.3f} over 4 studies" in capsys.readouterr().out


def test_no_check_without_time_model_levels_or_answers(run, monkeypatch, tmp_path):
    def nothing(so: str) -> bool:
        scoreboard.check_shortcuts(run)
        return not (run.folder / "shortcuts.json").exists() and so in " ".join(run.ended)

    run.seconds["classify"] = 2000.0  # of the 3,240 that the hour leaves
    assert nothing("shortcuts is left out")
    run.seconds.clear()
    with monkeypatch.context() as patch:
        patch.setattr(run, "unusable", {"study"})
        patch.setattr(run, "models", {})
        assert nothing("")
    with monkeypatch.context() as patch:
        patch.setattr(run, "film_levels", None)
        assert nothing("")
    with monkeypatch.context() as patch:
        patch.setattr(run, "source", tmp_path / "another")
        assert nothing("")
    assert not nothing("")


def test_a_fault_of_the_check_leaves_the_scoreboard(run, monkeypatch):
    from siimcovid import pipeline

    def broken(run):
        raise RuntimeError("no films")

    monkeypatch.setattr(inference, "classify_covered", broken)
    table = pipeline.score(run)
    assert table.index.tolist() == ["rcnn", "yolo", "ensemble"]
    assert [(entry["step"], entry["reason"]) for entry in run.degraded] == [("shortcuts", "no films")]
    assert (run.folder / "scores.json").is_file()
