"""Pseudo-labels: which test images are taken, with what truth; and a kernel of two members that learns from them."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from siimcovid.apps.ablation.trained_variants import PLAIN
from siimcovid.core.configuration import PseudoLabelConfig
from siimcovid.core.presets import load_preset
from siimcovid.core.stage_names import stage_of
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.inference import pseudo_labels
from siimcovid.inference.weighted_boxes_fusion import COLUMNS
from siimcovid.kernel import stage_models, steps
from siimcovid.kernel.recovery import Recovery
from siimcovid.kernel.run import LoadedModels
from siimcovid.models import published_weights, weights_manifest
from siimcovid.synthetic.demo_competition import write_competition

pytestmark = pytest.mark.slow

LEFT, RIGHT = [0.1, 0.2, 0.4, 0.7], [0.6, 0.2, 0.9, 0.7]


@pytest.mark.parametrize(
    ("none", "scores", "expected"),
    [
        (0.8, [], []),
        (0.8, [0.6], []),  # surely empty, whatever a box says
        (0.7, [], []),
        (0.69, [], None),  # neither
        (0.31, [0.9], None),
        (0.3, [0.9, 0.5], [LEFT, RIGHT]),
        (0.1, [0.9, 0.3], [LEFT]),
        (0.1, [0.3, 0.2], None),  # surely not empty, and no box to show for it
        (None, [0.9], None),  # no detector looked at it
    ],
)
def test_which_images_are_taken(none, scores, expected):
    test = pd.DataFrame({"image_id": ["a"], "study_id": ["s"], "split": ["test"], "boxes": [[]], "study_label": [None]})
    test["annotated"] = False
    rows = [("a", "ensemble", score, *box) for score, box in zip(scores, (LEFT, RIGHT), strict=False)]
    confidence = pd.Series({} if none is None else {"a": none}, dtype=float)
    prediction = EnsemblePrediction(pd.DataFrame(rows, columns=COLUMNS), confidence, pd.DataFrame())
    found = pseudo_labels.label(prediction, test, PseudoLabelConfig(score=0.4, none=0.7))
    assert found["boxes"].tolist() == ([] if expected is None else [expected])
    if expected is not None:
        assert (found["split"].item(), found["annotated"].item(), found["study_label"].item()) == ("train", True, None)
    assert test["split"].item() == "test"


def test_further_training_is_short_and_slow_and_on_both():
    images = pd.DataFrame({"image_id": ["a", "b", "t"], "split": ["train", "train", "test"]})
    labelled = pd.DataFrame({"image_id": ["t"], "split": ["train"]})
    preset = load_preset("demo", {"pseudo.epochs": 2, "pseudo.learning_rate": 0.5, "rcnn.training.validate": True})
    changed, together = pseudo_labels.further("rcnn", preset, images, labelled)
    training = changed.rcnn.training
    rate = preset.rcnn.training.learning_rate
    assert (training.epochs, training.learning_rate, training.validate) == (2, rate / 2, False)
    assert together[["image_id", "split"]].to_numpy().tolist() == [["a", "train"], ["b", "train"], ["t", "train"]]


SIDES = {f"{stage}.{key}": 64 for stage in ("rcnn", "yolo", "study") for key in ("size", "infer_size")}
SETTINGS = {**PLAIN, "cache_size": 64, "folds": 2, "members": 2, **SIDES}
SETTINGS |= {f"{stage}.training.epochs": 1 for stage in ("rcnn", "yolo", "study")}
SETTINGS |= {"pseudo.epochs": 1, "pseudo.none": 0.5, "pseudo.score": 0.001}  # every test image is labelled


def go(folder, start, out, mode, **overrides):
    run = steps.start(str(folder), str(start), str(out), "demo", mode, overrides=SETTINGS | overrides)
    steps.plan(run)
    steps.prepare(run)
    steps.fit(run)
    first = steps.detect(run)
    study_probs = steps.classify(run)
    second = steps.fine_tune_on_pseudo_labels(run, first)
    steps.submit(run, second, study_probs)
    return run, first, second


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A fine-tuning run with two members that learns from its test images, and what it said before and after."""
    top = tmp_path_factory.mktemp("pseudo")
    write_competition(top / "competition", train_studies=10, test_studies=4, seed=2, scale=0.03)
    published_weights.import_weights("efficientnet_lite0", None, top / "imagenet")
    return top, *go(top / "competition", top / "imagenet", top / "run", "finetune")


def test_members_are_trained_without_a_fold_each(kernel):
    top, run, first, _ = kernel
    assert run.degraded == []
    names = ["rcnn", "yolo", "study", "rcnn.1", "yolo.1", "study.1"]
    manifest = weights_manifest.read_manifest(top / "run" / "weights")
    assert {f"{name}.safetensors" for name in names} <= set(manifest)
    for name in names:
        assert manifest[f"{name}.safetensors"]["stage"] == stage_of(name)
        weights_manifest.verified(top / "run" / "weights", f"{name}.safetensors")
    images = run.prepared_images[(run.prepared_images["split"] == "train") & run.prepared_images["annotated"]]
    counted = [json.loads((top / "run/weights" / f"{n}.json").read_text())["images"] for n in ("rcnn", "rcnn.1")]
    assert sum(counted) == len(images)  # of two folds, each member sees the other's
    assert set(first["model"]) == {"rcnn", "yolo", "rcnn.1", "yolo.1", "ensemble"}


def test_the_detectors_learn_from_the_test_images(kernel):
    top, run, first, second = kernel
    for folder in ("pseudo", "member_1/pseudo"):
        for name in ("rcnn", "yolo"):
            facts = json.loads((top / "run" / "weights" / folder / f"{name}.json").read_text())
            assert facts["start"]["file"] == f"{name}.safetensors"
            assert facts["start"]["left"] == []
            assert len(facts["epochs"]) == 1
    assert not (top / "run" / "weights" / "pseudo" / "study.safetensors").exists()
    assert set(second["model"]) == set(first["model"])
    assert not second.equals(first)
    assert "fine_tune_on_pseudo_labels" in run.record.seconds
    written = pd.read_csv(top / "run" / "detections.csv", dtype={"image_id": str})
    assert written["score"].to_numpy() == pytest.approx(second["score"].to_numpy())


def test_members_infer_from_a_weights_folder(kernel, tmp_path):
    """The first-round models of both members give what they gave; a member that is missing is named."""
    top, _, first, _ = kernel
    run, again, same = go(top / "competition", top / "run" / "weights", tmp_path / "infer", "infer")
    assert run.degraded == []
    pd.testing.assert_frame_equal(again, first)
    assert same is again  # nothing is learned where nothing is trained
    lacking = go(top / "competition", top / "run" / "weights", tmp_path / "lacking", "infer", members=3)
    assert {fault["step"] for fault in lacking[0].degraded} >= {"fit rcnn.2", "fit yolo.2", "fit study.2"}
    pd.testing.assert_frame_equal(lacking[1], first)


def test_a_failure_leaves_the_detectors_as_they_were(kernel, monkeypatch):
    written = []

    def broken(*_, **__):
        written.append(run.record.by_priors)
        raise RuntimeError("no memory of it")

    _, run, first, second = kernel
    monkeypatch.setattr(stage_models, "fit", broken)
    record = replace(run.record, seconds=dict(run.record.seconds), by_priors=None)
    run = replace(run, recovery=Recovery(), models=LoadedModels(dict(run.models.loaded)), record=record)
    again = steps.fine_tune_on_pseudo_labels(run, first)
    assert {(fault["step"], fault["reason"]) for fault in run.degraded} == {
        ("fine_tune_on_pseudo_labels", "no memory of it")
    }
    assert written[0] == 0  # there is a submission with boxes and study labels before the hours of training
    pd.testing.assert_frame_equal(again, second)
