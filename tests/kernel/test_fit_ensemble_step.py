"""The ensemble is fitted on the images that no model was trained on, and what was chosen is used, kept and recorded."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from siimcovid.core.labels import CLASSES, STUDY_LABELS
from siimcovid.data import folds
from siimcovid.inference import choose_ensemble, fit_ensemble, fitted_numbers, predictor
from siimcovid.kernel import earlier_sessions, stage_models, steps
from siimcovid.kernel.run_plan import RunPlan
from siimcovid.kernel.step_forecast import FIT_ENSEMBLE, Profile, StageProfile, forecast
from siimcovid.models import weights_manifest
from siimcovid.synthetic.demo_competition import write_competition
from siimcovid.training import train_stage
from support.fault_scenes import copied_training
from support.tiny_weights import write_weights

CHOICES = pd.DataFrame(0.5, index=["fitted", "preset", "rcnn alone"], columns=[*CLASSES, "mean"])
ITEMS = pd.DataFrame({"item": ["as it came", "fusion"], "gain": [None, 0.1], "kept": True}).set_index("item")
NUMBERS = {"fusion.weights": [1.0, 0.0], "fusion.iou": 0.4, "late_fusion.opacity_none": 0.25}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("inputs")
    write_competition(top / "competition", train_studies=20, test_studies=2, seed=1, scale=0.03)
    write_weights(top / "weights")
    return top


@pytest.fixture
def spy(monkeypatch, folders):
    """Training copies tiny models; what is asked of the choice is kept, and CHOICES and NUMBERS answered."""
    asked = SimpleNamespace(outputs=None, trained_on=[])

    def fit(stage, preset, images, folder, *rest, **options):
        asked.trained_on.append(train_stage.split_images(stage, preset, images, folder)[0])
        return copied_training(folders / "weights")(stage, preset, images, folder, *rest, **options)

    def choose(outputs, images, parts, preset):
        asked.outputs, asked.images, asked.folds = outputs, images, parts
        return choose_ensemble.ChosenEnsemble("fitted", NUMBERS, CHOICES, ITEMS, len(images))

    monkeypatch.setattr(train_stage, "fit", fit)
    monkeypatch.setattr(choose_ensemble, "choose", choose)
    monkeypatch.setattr(folds, "FEWEST", 5)
    monkeypatch.setattr(folds, "FEWEST_OF_A_KIND", 1)
    return asked


def trained(folders, out, **overrides):
    settings = {"cache_size": 96, "folds": 2, **overrides}
    given = str(folders / "competition"), str(folders / "weights"), str(out)
    run = steps.start(*given, "demo", "finetune", overrides=settings)
    steps.prepare(run)
    steps.fit(run)
    return run


def test_what_is_fitted_on_the_fold_combines_the_test_images(folders, tmp_path, spy, capsys):
    run = trained(folders, tmp_path, hold_out=True, **{"fusion.iou": 0.6})
    assert list(steps.fit_ensemble(run).index) == list(CHOICES.index)
    assert run.degraded == []
    held_out = set(spy.images["image_id"])
    assert len(held_out) >= 8
    patients = set(spy.images["patient_id"])
    for table in spy.trained_on:
        assert not patients & set(table["patient_id"])
    assert set(spy.outputs.images["image_id"]) == held_out == set(spy.outputs.study_probs["image_id"])
    assert {name: set(ids) for name, ids in spy.outputs.predicted_ids.items()} == dict.fromkeys(
        ("rcnn", "yolo"), held_out
    )
    assert set(spy.folds.values()) == set(range(fit_ensemble.PARTS))
    assert run.preset.fusion.weights == (1.0, 0.0)
    assert run.preset.fusion.iou == 0.6  # OVERRIDES go before what was fitted
    written = fitted_numbers.read(tmp_path / "weights")
    assert written == NUMBERS | {"fusion.iou": 0.6}
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["ensemble"]["source"] == "competition, fold 0 that no model was trained on"
    assert record["ensemble"]["left_out"] == ["yolo"]
    assert record["ensemble"]["items"] == [{"item": "fusion", "gain": 0.1, "kept": True}]
    assert record["ensemble"]["overrides"] == written
    assert record["preset"]["fusion"]["weights"] == [1.0, 0.0]
    assert record["requested"]["fusion"]["weights"] == [1.0, 1.0]  # by which a restart is known
    assert record["seconds"][FIT_ENSEMBLE] > 0
    assert "fitted numbers (yolo left out of the fusion)" in capsys.readouterr().out
    infer = steps.start(str(folders / "competition"), str(tmp_path / "weights"), str(tmp_path / "infer"), "demo")
    assert infer.preset.fusion.weights == (1.0, 0.0)
    assert infer.record.ensemble == {"source": str(tmp_path / "weights" / "ensemble.json")}


def test_numbers_of_another_run_do_not_stay(folders, tmp_path, spy):
    """Without a fold held out nothing is fitted, and what an earlier run fitted to its models is removed."""
    run = trained(folders, tmp_path)
    fitted_numbers.write(tmp_path / "weights", NUMBERS, run.preset, "others")
    assert steps.fit_ensemble(run) is None
    assert spy.outputs is None
    assert fitted_numbers.FILE not in weights_manifest.read_manifest(tmp_path / "weights")
    assert not (tmp_path / "weights" / fitted_numbers.FILE).exists()
    assert run.record.ensemble == {"source": "preset demo"}
    assert FIT_ENSEMBLE not in run.record.seconds


def test_every_member_predicts_its_own_fold(folders, tmp_path, spy):
    run = trained(folders, tmp_path, members=2)
    assert steps.fit_ensemble(run) is not None
    known = run.prepared_images[run.prepared_images["split"] == "train"]
    assert set(spy.images["image_id"]) == set(known["image_id"])
    assert set(spy.outputs.predicted_ids) == {"rcnn", "yolo"}
    held = [set(stage_models.held_out(run, name)["image_id"]) for name in ("rcnn", "rcnn.1")]
    assert not held[0] & held[1]


def test_study_models_of_several_seeds_predict_the_same_fold(folders, tmp_path, spy):
    """Each begins from a seed of its own, on the same images; what they say of an image is averaged."""
    run = trained(folders, tmp_path, hold_out=True, study_models=2)
    assert run.degraded == []
    assert steps.fit_ensemble(run) is not None
    seeds = {name: stage_models.identity(run, name)["seed"] for name in ("study", "study.1", "yolo")}
    assert seeds == {"study": 0, "study.1": 1, "yolo": 0}
    trained_on = {tuple(table["image_id"]) for table in spy.trained_on}
    assert len(spy.trained_on) == 4
    assert len(trained_on) == 1
    study = spy.outputs.study_probs.set_index("image_id")
    assert sorted(study.index) == sorted(spy.images["image_id"])
    tables = [
        predictor.predict_table("study", *run.models.loaded[name][:2], spy.images, run.cache)
        for name in ("study", "study.1")
    ]
    mean = sum(table.set_index("image_id").loc[study.index, list(STUDY_LABELS)] for table in tables) / 2
    pd.testing.assert_frame_equal(study[list(STUDY_LABELS)], mean, check_exact=False, rtol=1e-5)
    assert earlier_sessions.trained_epochs(run) == {}  # the copied models are of no training of this run


def test_without_time_or_own_models_the_presets_numbers_stay(folders, tmp_path, spy, monkeypatch):
    run = trained(folders, tmp_path, hold_out=True)
    monkeypatch.setattr(run, "has_time_to_spare", lambda *_: False)
    assert steps.fit_ensemble(run) is None
    assert run.record.ended == ["no numbers are fitted to combine the models: the preset's own stay"]
    run.models.loaded["yolo"] = (*run.models.loaded["yolo"][:2], True)  # as if its training had failed
    monkeypatch.setattr(run, "has_time_to_spare", lambda *_: True)
    assert steps.fit_ensemble(run) is None
    assert spy.outputs is None


def test_the_step_costs_what_it_predicts():
    stage = StageProfile(once=1, epoch=1, load=5, image=2)
    profile = Profile(held_out=100, stages=dict.fromkeys(("rcnn", "yolo", "study"), stage))
    plan = RunPlan(True, ("rcnn", "yolo"), {"rcnn": 1})
    seconds = forecast(profile, plan)
    assert seconds[FIT_ENSEMBLE] == pytest.approx(3 * 5 + 100 * 2 * (2 + 2 + 1) + 0.02 * 100 * 4)
    of_two = forecast(profile, replace(plan, study_models=2))
    assert of_two[FIT_ENSEMBLE] == pytest.approx(seconds[FIT_ENSEMBLE] + 5 + 100 * 2)
    # a model is loaded once, with the first images that it predicts
    without = forecast(replace(profile, held_out=0), plan)
    assert [without[step] - seconds[step] for step in ("detect", "classify")] == [2 * 5, 5]
    names = list(seconds)
    assert names.index("curves") < names.index(FIT_ENSEMBLE) < names.index("detect")
    assert FIT_ENSEMBLE not in forecast(profile, replace(plan, epochs={}))
