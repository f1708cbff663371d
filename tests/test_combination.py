"""The numbers of a combination: what is fitted, on which films, and what is left off."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from siimcovid import LEVELS, combination, competition
from siimcovid.cli import main
from siimcovid.combine import Said, combine
from siimcovid.errors import InputError
from siimcovid.overrides import override
from siimcovid.presets import load_preset
from siimcovid.table_scores import class_scores
from small_world import PRESET, world


def test_what_helps_is_kept_and_helps_films_that_no_fit_saw():
    said, images, folds = world()
    numbers, table = combination.fit(said, images, folds, PRESET)
    assert table["kept"]["levels"]
    assert len(numbers["crosstalk.sides"]) == len(numbers["crosstalk.level_sides"]) == 12
    assert table["gain"]["levels"] > 0.05
    fresh, truth, _ = world(seed=1)
    before, after = (class_scores(combine(fresh, p), truth) for p in (PRESET, override(PRESET, numbers)))
    assert after["negative"] > before["negative"] + 0.3
    assert after["typical"] > before["typical"] + 0.1
    assert after["mean"] > before["mean"] + 0.05


def test_where_nothing_can_help_nothing_is_set():
    """Perfect answers: no item raises them, and all is left as it came."""
    said, images, folds = world(told=40)
    marks = np.array([[0.97 if level == name else 0.01 for name in LEVELS] for level in images["level"]])
    perfect = Said(
        said.films, said.detections, said.seen, said.levels.assign(**dict(zip(LEVELS, marks.T, strict=True)))
    )
    numbers, table = combination.fit(perfect, images, folds, PRESET)
    assert table["mean"].iloc[0] == pytest.approx(1)
    assert numbers == {}
    assert table["kept"].tolist() == [True] + [False] * len(combination.ITEMS)


def test_no_fit_sees_the_fold_it_is_judged_by(monkeypatch):
    said, images, folds = world(films=30)
    saw = []

    def spy(some, truth, preset):
        names = [set(some.films["image_id"]), set(some.detections["image_id"]), set(some.levels["image_id"])]
        names += [set(truth["image_id"]), *(set(seen) for seen in some.seen.values())]
        saw.append(set.union(*names))
        return {}

    monkeypatch.setattr(combination, "ITEMS", {"spy": spy})
    combination.fit(said, images, folds, PRESET, ["spy"])
    assert [{folds[name] for name in names} for names in saw] == [{1, 2}, {0, 2}, {0, 1}]


def test_calibration_finds_the_slope_and_the_intercept():
    """Scores whose odds are off by a known line."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0.02, 0.98, 8000)
    hit = rng.random(8000) < true
    said_score = expit((logit(true) - 0.5) / 2)
    names = [f"i{k}" for k in range(8000)]
    table = pd.DataFrame(
        {"image_id": names, "model": "rcnn", "score": said_score, "x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.5}
    )
    boxes = [[[0.1, 0.1, 0.5, 0.5]] if h else [] for h in hit]
    images = pd.DataFrame({"image_id": names, "study_id": names, "boxes": boxes, "level": "typical"})
    said = Said(images[["image_id", "study_id"]], table, {"rcnn": names, "yolo": names})
    slope, intercept, *silent = combination.fit_calibration(said, images, PRESET)["fusion.calibration"]
    assert slope == pytest.approx(2, abs=0.1)
    assert intercept == pytest.approx(0.5, abs=0.1)
    assert silent == [1.0, 0.0]  # a detector without a box has nothing to learn from


def test_bad_requests_are_refused():
    said, images, folds = world(films=12)
    with pytest.raises(InputError, match="at least two folds"):
        combination.fit(said, images, dict.fromkeys(folds, 0), PRESET)
    with pytest.raises(InputError, match="no item boxes to fit; choose of calibration"):
        combination.fit(said, images, folds, PRESET, ["none", "boxes"])


def test_numbers_beside_weights(tmp_path):
    numbers = {"fusion.weights": [1.0, 0.7], "crosstalk.none": [0.1, 0.2, 0.3, 0.4, 0.5]}
    path = combination.write(tmp_path, numbers, PRESET, "demo")
    assert combination.read(tmp_path) == numbers
    entry = json.loads((tmp_path / "manifest.json").read_text())["combination.json"]
    assert (entry["preset"], entry["stage"]) == ("small", "combination")
    path.write_text('{"rcnn.training.epochs": 1}')
    with pytest.raises(InputError, match="damaged"):  # not what the manifest vouches for
        combination.read(tmp_path)
    combination.write(tmp_path, {"rcnn.training.epochs": 1}, PRESET, "demo")
    with pytest.raises(InputError, match="sets other than fusion and crosstalk"):
        combination.read(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert combination.read(tmp_path) == {}


@pytest.fixture
def crossval(tmp_path, monkeypatch):
    """A folder as `siimcovid crossval` leaves it, and its competition's index in the place of a real one."""
    said, images, folds = world()
    for name, table in (("detections", said.detections), ("film_levels", said.levels)):
        table.assign(fold=table["image_id"].map(folds)).to_csv(tmp_path / f"{name}.csv", index=False)
    monkeypatch.setattr(competition, "load", lambda *_, **__: SimpleNamespace(images=images))
    return tmp_path


def test_the_command_fits_and_writes(crossval, capsys):
    given = ["combine", "--data", "demo", "--crossval", str(crossval), "--preset", "small"]
    assert main([*given, "--out", str(crossval / "weights")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("120 films, each scored by numbers fitted without its fold")
    numbers = combination.read(crossval / "weights")
    assert set(combination.NOTHING) <= set(numbers)  # the preset's own numbers do not stay beside them
    assert load_preset("small", numbers).crosstalk.sides == tuple(numbers["crosstalk.sides"])
    assert main([*given, "--items", "none"]) == 0
    assert "levels" not in capsys.readouterr().out.split("--set")[0]


def test_the_command_says_what_is_missing(crossval, capsys):
    given = ["combine", "--data", "demo", "--crossval", str(crossval), "--preset", "small"]
    three = ["--set", "fusion.detectors=rcnn,yolo,retinanet", "--set", "fusion.weights=1,1,1"]
    assert main([*given, *three]) == 2
    assert "lacks retinanet: run `siimcovid crossval` with it" in capsys.readouterr().err
    (crossval / "film_levels.csv").unlink()
    assert main(given) == 2
    assert "film_levels.csv" in capsys.readouterr().err
