"""The numbers of a combination: what is fitted, on which images, and what is left off."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.presets import load_preset
from siimcovid.data import competition
from siimcovid.evaluation.prediction_scores import class_scores
from siimcovid.inference import fit_ensemble, fitted_numbers
from siimcovid.inference.ensemble import combine
from siimcovid.inference.model_outputs import ModelOutputs
from support.random_predictions import PRESET, world


def test_what_helps_is_kept_and_helps_images_that_no_fit_saw():
    outputs, images, folds = world()
    numbers, table = fit_ensemble.fit(outputs, images, folds, PRESET)
    assert table["kept"]["laterality"]
    assert len(numbers["late_fusion.laterality"]) == len(numbers["late_fusion.label_laterality"]) == 12
    assert table["gain"]["laterality"] > 0.05
    fresh, truth, _ = world(seed=1)
    before, after = (class_scores(combine(fresh, p), truth) for p in (PRESET, override(PRESET, numbers)))
    assert after["negative"] > before["negative"] + 0.3
    assert after["typical"] > before["typical"] + 0.1
    assert after["mean"] > before["mean"] + 0.05


def test_where_nothing_can_help_nothing_is_set():
    """Perfect answers: no item raises them, and all is left as it came."""
    outputs, images, folds = world(told=40)
    marks = np.array(
        [[0.97 if study_label == name else 0.01 for name in STUDY_LABELS] for study_label in images["study_label"]]
    )
    perfect = ModelOutputs(
        outputs.images,
        outputs.detections,
        outputs.predicted_ids,
        outputs.study_probs.assign(**dict(zip(STUDY_LABELS, marks.T, strict=True))),
    )
    numbers, table = fit_ensemble.fit(perfect, images, folds, PRESET)
    assert table["mean"].iloc[0] == pytest.approx(1)
    assert numbers == {}
    assert table["kept"].tolist() == [True] + [False] * len(fit_ensemble.ITEMS)


def test_no_fit_sees_the_fold_it_is_judged_by(monkeypatch):
    outputs, images, folds = world(images=30)
    saw = []

    def spy(some, truth, preset):
        names = [set(some.images["image_id"]), set(some.detections["image_id"]), set(some.study_probs["image_id"])]
        names += [set(truth["image_id"]), *(set(seen) for seen in some.predicted_ids.values())]
        saw.append(set.union(*names))
        return {}

    monkeypatch.setattr(fit_ensemble, "ITEMS", {"spy": spy})
    fit_ensemble.fit(outputs, images, folds, PRESET, ["spy"])
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
    images = pd.DataFrame({"image_id": names, "study_id": names, "boxes": boxes, "study_label": "typical"})
    outputs = ModelOutputs(images[["image_id", "study_id"]], table, {"rcnn": names, "yolo": names})
    slope, intercept, *silent = fit_ensemble.fit_calibration(outputs, images, PRESET)["fusion.calibration"]
    assert slope == pytest.approx(2, abs=0.1)
    assert intercept == pytest.approx(0.5, abs=0.1)
    assert silent == [1.0, 0.0]  # a detector without a box has nothing to learn from


def test_bad_requests_are_refused():
    outputs, images, folds = world(images=12)
    with pytest.raises(InputError, match="at least two folds"):
        fit_ensemble.fit(outputs, images, dict.fromkeys(folds, 0), PRESET)
    with pytest.raises(InputError, match="no item boxes to fit; choose of calibration"):
        fit_ensemble.fit(outputs, images, folds, PRESET, ["none", "boxes"])


def test_numbers_beside_weights(tmp_path):
    numbers = {"fusion.weights": [1.0, 0.7], "late_fusion.none": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}
    path = fitted_numbers.write(tmp_path, numbers, PRESET, "demo")
    assert fitted_numbers.read(tmp_path) == numbers
    entry = json.loads((tmp_path / "manifest.json").read_text())["ensemble.json"]
    assert (entry["preset"], entry["stage"]) == ("demo", "combination")
    path.write_text('{"rcnn.training.epochs": 1}')
    with pytest.raises(InputError, match="damaged"):  # not what the manifest vouches for
        fitted_numbers.read(tmp_path)
    fitted_numbers.write(tmp_path, {"rcnn.training.epochs": 1}, PRESET, "demo")
    with pytest.raises(InputError, match="sets other than fusion and late_fusion"):
        fitted_numbers.read(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert fitted_numbers.read(tmp_path) == {}


@pytest.fixture
def crossval(tmp_path, monkeypatch):
    """A folder as `siimcovid crossval` leaves it, and its competition's index in the place of a real one."""
    outputs, images, folds = world()
    for name, table in (("detections", outputs.detections), ("image_study_probabilities", outputs.study_probs)):
        table.assign(fold=table["image_id"].map(folds)).to_csv(tmp_path / f"{name}.csv", index=False)
    monkeypatch.setattr(competition, "load", lambda *_, **__: SimpleNamespace(images=images))
    return tmp_path


def test_the_command_fits_and_writes(crossval, capsys):
    given = ["fit-ensemble", "--data", "demo", "--crossval", str(crossval), "--preset", "demo"]
    assert main([*given, "--out", str(crossval / "weights")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("120 images, each scored by numbers fitted without its fold")
    numbers = fitted_numbers.read(crossval / "weights")
    assert set(fit_ensemble.NOTHING) <= set(numbers)  # the preset's own numbers do not stay beside them
    assert load_preset("demo", numbers).late_fusion.laterality == tuple(numbers["late_fusion.laterality"])
    assert main([*given, "--items", "none"]) == 0
    assert "laterality" not in capsys.readouterr().out.split("--set")[0]


def test_the_command_says_what_is_missing(crossval, capsys):
    given = ["fit-ensemble", "--data", "demo", "--crossval", str(crossval), "--preset", "demo"]
    three = ["--set", "fusion.detectors=rcnn,yolo,retinanet", "--set", "fusion.weights=1,1,1"]
    assert main([*given, *three]) == 2
    assert "lacks retinanet: run `siimcovid crossval` with it" in capsys.readouterr().err
    (crossval / "image_study_probabilities.csv").unlink()
    assert main(given) == 2
    assert "image_study_probabilities.csv" in capsys.readouterr().err
