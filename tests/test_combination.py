"""The numbers of a combination: what is fitted, on which films, and what is left off."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from siimcovid import CLASSES, LEVEL_COLUMNS, LEVELS, combination, metric
from siimcovid.ablation.arms import PLAIN
from siimcovid.combine import Combined, Said, combine
from siimcovid.errors import InputError
from siimcovid.fuse import COLUMNS
from siimcovid.overrides import override
from siimcovid.presets import load_preset
from siimcovid.submission import Priors, read_table, write_submission

LEFT, RIGHT = [0.1, 0.2, 0.4, 0.7], [0.6, 0.2, 0.9, 0.7]
PRESET = load_preset("small", PLAIN)


def world(seed=0, films=120, told=1.5):
    """Films with none, one and two boxes, a study each: detectors know `told` of them, the study model nothing."""
    rng = np.random.default_rng(seed)
    level = rng.choice(LEVELS, films)
    rows, found, graded = [], [], []
    for k in range(films):
        boxes = {"negative": [], "typical": [LEFT, RIGHT]}.get(level[k], [LEFT])
        rows.append({"image_id": f"i{k}", "study_id": f"s{k}", "boxes": boxes, "level": level[k]})
        for model, box in itertools.product(("rcnn", "yolo"), (LEFT, RIGHT)):
            found.append((f"i{k}", model, expit(rng.normal(told if box in boxes else -told, 1)), *box))
        graded.append([f"i{k}", f"s{k}", *rng.dirichlet(np.ones(4))])
    images = pd.DataFrame(rows).assign(rows=100, columns=200, annotated=True)
    levels = pd.DataFrame(graded, columns=["image_id", "study_id", *LEVELS])
    names = images["image_id"].tolist()
    said = Said(
        images[["image_id", "study_id"]], pd.DataFrame(found, columns=COLUMNS), {"rcnn": names, "yolo": names}, levels
    )
    return said, images, {name: k % 3 for k, name in enumerate(names)}


def test_class_scores_are_the_metrics(tmp_path):
    """The same answer as a file, scored as the competition scores it."""
    said, images, _ = world()
    answer = combine(said, PRESET)
    ids = [*(images["study_id"] + "_study"), *(images["image_id"] + "_image")]
    sample = pd.DataFrame({"id": ids, "PredictionString": ""})
    path = tmp_path / "submission.csv"
    priors = Priors(dict.fromkeys(LEVELS, 0.25), 0.5)
    write_submission(sample, answer.levels, answer.none, answer.detections, images, path, priors)
    text = {0: "none 1 0 0 1 1", 1: "opacity 1 20 20 80 70", 2: "opacity 1 20 20 80 70 opacity 1 120 20 180 70"}
    label = images["boxes"].map(len).map(text)
    truth = pd.DataFrame({"id": images["image_id"] + "_image", "label": label})
    marks = {c: (images["level"] == level).astype(int) for level, c in zip(LEVELS, LEVEL_COLUMNS, strict=True)}
    official = metric.score(
        read_table(path, ("id", "PredictionString")),
        truth,
        pd.DataFrame({"id": images["study_id"] + "_study", **marks}),
    )
    assert combination.class_scores(answer, images) == pytest.approx(official, abs=1e-6)


def test_what_helps_is_kept_and_helps_films_that_no_fit_saw():
    said, images, folds = world()
    numbers, table = combination.fit(said, images, folds, PRESET)
    assert table["kept"]["levels"]
    assert len(numbers["crosstalk.sides"]) == len(numbers["crosstalk.level_sides"]) == 12
    assert table["gain"]["levels"] > 0.05
    fresh, truth, _ = world(seed=1)
    before, after = (combination.class_scores(combine(fresh, p), truth) for p in (PRESET, override(PRESET, numbers)))
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


def test_a_class_without_truth_is_left_out_of_the_mean():
    said, images, _ = world(films=10)
    answer = combine(said, PRESET)
    scores = combination.class_scores(answer, images.assign(level="typical"))
    assert np.isnan([scores[name] for name in ("negative", "indeterminate", "atypical")]).all()
    assert scores["mean"] == pytest.approx(np.mean([scores[name] for name in ("typical", "none", "opacity")]))
    assert list(scores) == [*CLASSES, "mean"]
    nothing = Combined(answer.detections.iloc[:0], answer.none, answer.levels)
    assert combination.class_scores(nothing, images)["opacity"] == 0


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
