"""The ablation: what a system hears, what its table says, and the command on a tiny competition."""

import json

import numpy as np
import pandas as pd
import pytest

from siimcovid.apps.ablation import ablation_experiment, ablation_table, compared_systems, trained_variants
from siimcovid.apps.ablation.compared_systems import SystemSetup
from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.labels import CLASSES, STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.presets import DEMO
from siimcovid.synthetic.demo_competition import write_competition

BOX = [0.1, 0.2, 0.4, 0.7]


class Kept:
    """Stands for a VariantTrainer whose variants are trained: two images of one study and one of another."""

    preset = override(DEMO, trained_variants.PLAIN)
    folds = 2
    test = pd.DataFrame({"image_id": ["a", "b", "c"], "study_id": ["s", "s", "t"]})

    def __init__(self):
        self.used = []

    def parts_of(self, variant):
        return {"test": self.test, "held_out": self.test}

    def outputs(self, variant, part, hflip):
        self.used.append((variant.name, part, hflip))
        if variant.stage == "study":
            negative = {"study": 0.1, "study none": 0.3}[variant.name] + (0.2 if hflip else 0.0)
            marks = [[negative + 0.3 * (name == "b"), 0.2, 0.2, 0.1] for name in self.test["image_id"]]
            table = self.test.join(pd.DataFrame(marks, columns=list(STUDY_LABELS)))
            return table.assign(none=0.6) if variant.name == "study none" else table
        scores = [0.9, 0.05] if variant.name == "rcnn" else [0.5, 0.4]
        corners = pd.DataFrame([BOX] * 2, columns=["x1", "y1", "x2", "y2"])
        return pd.DataFrame({"image_id": ["a", "b"], "model": variant.stage, "score": scores}).join(corners)

    def cost(self, variant):
        return {
            "train": {"rcnn": 100.0, "yolo": 50.0}.get(variant.name, 10.0),
            "image": 0.5 if variant.stage == "study" else 1.0,
        }


VARIANTS = {variant.name: variant for variant in trained_variants.variants(("rcnn", "yolo"), 2)}


@pytest.mark.parametrize(
    ("changes", "model_names", "negative", "boxes"),
    [
        ({}, ["rcnn", "yolo"], [0.1, 0.4, 0.1], 4),
        ({"hflip_tta": True}, ["rcnn", "rcnn_hflip", "yolo", "yolo_hflip"], [0.1, 0.4, 0.1], 8),
        ({"study_hflip_tta": True}, ["rcnn", "yolo"], [0.2, 0.5, 0.2], 4),
        ({"study": ("study", "study none")}, ["rcnn", "yolo"], [0.2, 0.5, 0.2], 4),
        ({"low_boxes": False}, ["rcnn", "yolo"], [0.1, 0.4, 0.1], 3),
        ({"every_image": False}, ["rcnn", "yolo"], [0.1, 0.1], 4),
        ({"detectors": {"yolo": ("yolo fold 0", "yolo fold 1")}}, ["yolo", "yolo.1"], [0.1, 0.4, 0.1], 4),
    ],
)
def test_which_models_a_system_uses(changes, model_names, negative, boxes):
    outputs = compared_systems.outputs(Kept(), SystemSetup(**changes), VARIANTS)
    assert list(outputs.predicted_ids) == model_names
    assert outputs.images["image_id"].tolist() == ["a", "b", "c"]
    assert outputs.study_probs["negative"].tolist() == pytest.approx(negative)
    assert len(outputs.detections) == boxes
    assert set(outputs.detections["model"]) == set(model_names)


def test_none_comes_from_an_arm_of_its_own():
    outputs = compared_systems.outputs(Kept(), SystemSetup(none="study none"), VARIANTS)
    assert outputs.study_probs["none"].tolist() == [0.6] * 3
    assert outputs.study_probs["negative"].tolist() == pytest.approx([0.1, 0.4, 0.1])
    assert "none" not in compared_systems.outputs(Kept(), SystemSetup(study=("study none",)), VARIANTS).study_probs
    assert compared_systems.cost(Kept(), SystemSetup(none="study none"), VARIANTS) == {"train": 170.0, "image": 3.0}


def test_what_a_system_costs():
    assert compared_systems.cost(Kept(), SystemSetup(), VARIANTS) == {"train": 160.0, "image": 2.5}
    further = compared_systems.cost(Kept(), SystemSetup(detectors={"rcnn": ("rcnn pseudo",)}), VARIANTS)
    assert further == {"train": 10.0 + 100.0 + 10.0, "image": 1.5}  # on top of what it goes on from
    both = compared_systems.cost(Kept(), SystemSetup(hflip_tta=True, study_hflip_tta=True), VARIANTS)
    assert both == {"train": 160.0, "image": 5.0}


def test_items_differ_in_one_thing_and_name_arms_that_exist():
    found = compared_systems.comparisons(("rcnn", "yolo"), 2)
    assert len({item.name for item in found}) == len(found)
    for item in found:
        for system in (item.off, item.on):
            named = [name for members in system.detectors.values() for name in members]
            assert {*named, *system.study} <= set(VARIANTS)
        assert item.off != item.on


def test_the_tables_by_hand():
    scores = {"x": [(0.5, 0.6), (0.5, 0.8)], "y": [(0.4, 0.4), (0.6, 0.5)]}
    rows = []
    for item, pairs in scores.items():
        for competition, pair in enumerate(pairs):
            for state, mean in zip(("off", "on"), pair, strict=True):
                cost = {"image": 2.0 if state == "on" and item == "x" else 1.0, "train": 3.0}
                classes = dict.fromkeys(CLASSES, mean / 2)
                rows.append({"item": item, "competition": competition, "state": state, "mean": mean, **classes, **cost})
    found = pd.DataFrame(rows)
    lines = ablation_table.gains_table(found).splitlines()
    assert lines[0] == f"| item | off | mean | {' | '.join(CLASSES)} | image x | training x |"
    assert lines[2].startswith("| x | .500 | +.200 ±.100 | +.100 ±.050 |")
    assert lines[2].endswith("| 2.00 | 1.00 |")
    assert lines[3].startswith("| y | .500 | -.050 ±.050 | -.025 ±.025 |")
    both = ablation_table.precision_table(found).splitlines()
    assert [line.split(" | ")[:3] for line in both[2:]] == [
        ["| x", "off", ".500 ±.000"],
        ["| x", "on", ".700 ±.100"],
        ["| y", "off", ".500 ±.100"],
        ["| y", "on", ".450 ±.050"],
    ]
    alone = ablation_table.gains_table(found[found["competition"] == 0]).splitlines()
    assert alone[2].startswith("| x | .500 | +.100 | +.050 |")


def test_ensembles_stand_beside_the_detectors():
    rows = [{"item": ablation_table.TOGETHER, "competition": "c", "state": state, "opacity": value}
            for state, value in (("off", 0.4), ("on", 0.5))]  # fmt: skip
    text = ablation_table.ensembles_beside_detectors(
        pd.DataFrame({"rcnn": [0.3], "yolo": [np.nan]}, index=["c"]), pd.DataFrame(rows)
    )
    assert text.splitlines()[0] == f"| competition | rcnn | yolo | plain ensemble | {ablation_table.TOGETHER} |"
    assert text.splitlines()[2] == "| c | .300 |  | .400 | .500 |"


def test_numbers_are_fitted_on_other_competitions(monkeypatch):
    """Three competitions of an image each: the fit for one sees the images of the two others, in two folds."""
    from siimcovid.inference.model_outputs import ModelOutputs

    def data(name):
        image_rows = pd.DataFrame(
            {"image_id": [name], "study_id": [name], "boxes": [[]], "study_label": ["typical"], "fold": [0]}
        )
        return ModelOutputs(
            image_rows[["image_id", "study_id"]], pd.DataFrame({"image_id": [name]}), {"rcnn": [name]}
        ), image_rows

    seen = []

    def fit(outputs, images, folds, preset):
        seen.append(
            (outputs.images["image_id"].tolist(), outputs.predicted_ids["rcnn"], images["image_id"].tolist(), folds)
        )
        return {}, pd.DataFrame({"kept": dict.fromkeys(ablation_table.fit_ensemble.ITEMS, False)})

    monkeypatch.setattr(ablation_table.fit_ensemble, "fit", fit)
    monkeypatch.setattr(ablation_table.fit_ensemble, "ITEMS", {"fusion": lambda *_: {"fusion.iou": 0.5}})
    steps = ablation_table.fit_on_other_competitions("b", {name: data(name) for name in "abc"}, DEMO)
    assert seen == [(["a", "c"], ["a", "c"], ["a", "c"], {"a": 0, "c": 1})]
    assert steps == [("fusion", {}, {"fusion.iou": 0.5}), (ablation_table.TOGETHER, {}, {})]
    ablation_table.fit_on_other_competitions("b", {"b": data("b")}, DEMO)
    assert seen[-1][-1] == {"b": 0}


@pytest.mark.slow
def test_the_command_for_real(tmp_path, capsys):
    """A tiny synthetic competition with every item, and a folder with the plain system and all that is kept."""
    folder = tmp_path / "image_rows"
    write_competition(folder, train_studies=12, test_studies=6, seed=5, scale=0.03)
    given = ["ablate", "--out", str(tmp_path / "out"), "--seeds", "4", "--data", str(folder), "--folds", "2"]
    given += ["--train-studies", "12", "--test-studies", "6", "--set", "cache_size=64"]
    for stage in (*ablation_experiment.DETECTORS, "study"):
        given += ["--set", f"{stage}.size=64", "--set", f"{stage}.infer_size=64", "--set", f"{stage}.training.epochs=1"]
        given += ["--set", f"{stage}.backbone=shufflenet_v2_x0_5"]  # most of the time went into larger ones' weights
    assert main(given) == 0
    printed = capsys.readouterr().out
    found = pd.read_csv(tmp_path / "out" / "ablation.csv")
    assert set(found["competition"]) == {"synthetic-4", "image_rows"}
    assert np.isfinite(found[["mean", "image", "train"]].to_numpy()).all()
    everything = found[found["competition"] == "synthetic-4"]["item"].unique()
    assert (
        len(everything)
        == len(compared_systems.comparisons(ablation_experiment.DETECTORS, 2))
        + len(ablation_table.fit_ensemble.ITEMS)
        + 2
    )
    assert all(item in printed for item in everything)
    assert (tmp_path / "out" / "ablation.md").read_text() in printed  # after a line for each epoch of training
    numbers = json.loads((tmp_path / "out" / "ensemble.json").read_text())
    override(DEMO, numbers)  # settings that there are
    assert all(key.startswith(("fusion.", "late_fusion.")) for key in numbers)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/variants/*/*.safetensors")}
    assert len(before) > 20
    assert main(given) == 0
    again = capsys.readouterr().out  # nothing is trained a second time, so there are no lines of epochs
    assert again.startswith("Gains")
    assert printed.endswith(again)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_a_folder_without_answers_is_refused(tmp_path):
    folder = tmp_path / "lungs"
    write_competition(folder, train_studies=3, test_studies=2, seed=5, scale=0.03)
    plan = ablation_experiment.Plan((), 3, 2, (folder,), 2)
    answers = tmp_path / "lungs.truth" / "test_image_level.csv"
    table = pd.read_csv(answers)
    table.iloc[1:].to_csv(answers, index=False)  # the studies have all their labels
    unanswered = table["id"][0].removesuffix("_image")
    with pytest.raises(InputError, match=rf"lungs\.truth has no ground truth of image {unanswered}"):
        ablation_experiment.train(plan, DEMO, None, tmp_path / "out")
    answers.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"lungs\.truth holds no ground truth"):
        ablation_experiment.train(plan, DEMO, None, tmp_path / "out")
    twice = ablation_experiment.Plan((), 3, 2, (folder, tmp_path / "x" / "lungs"), 2)
    with pytest.raises(InputError, match="two competitions have the name lungs"):
        ablation_experiment.train(twice, DEMO, None, tmp_path / "out")
