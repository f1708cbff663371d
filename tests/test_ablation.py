"""The ablation: what a system hears, what its table says, and the command on a tiny competition."""

import json

import numpy as np
import pandas as pd
import pytest

from siimcovid import CLASSES, LEVELS
from siimcovid.ablation import arms, experiment, systems, table
from siimcovid.ablation.systems import System
from siimcovid.cli import main
from siimcovid.errors import InputError
from siimcovid.overrides import override
from siimcovid.phantom_competition import write_competition
from siimcovid.presets import SMALL

BOX = [0.1, 0.2, 0.4, 0.7]


class Kept:
    """Stands for a trainer whose arms have run: two films of one study and one of another."""

    preset = override(SMALL, arms.PLAIN)
    folds = 2
    test = pd.DataFrame({"image_id": ["a", "b", "c"], "study_id": ["s", "s", "t"]})

    def __init__(self):
        self.heard = []

    def sides(self, arm):
        return {"test": self.test, "held_out": self.test}

    def said(self, arm, side, flip):
        self.heard.append((arm.name, side, flip))
        if arm.stage == "study":
            negative = {"study": 0.1, "study none": 0.3}[arm.name] + (0.2 if flip else 0.0)
            marks = [[negative + 0.3 * (name == "b"), 0.2, 0.2, 0.1] for name in self.test["image_id"]]
            table = self.test.join(pd.DataFrame(marks, columns=list(LEVELS)))
            return table.assign(none=0.6) if arm.name == "study none" else table
        scores = [0.9, 0.05] if arm.name == "rcnn" else [0.5, 0.4]
        corners = pd.DataFrame([BOX] * 2, columns=["x1", "y1", "x2", "y2"])
        return pd.DataFrame({"image_id": ["a", "b"], "model": arm.stage, "score": scores}).join(corners)

    def cost(self, arm):
        return {
            "train": {"rcnn": 100.0, "yolo": 50.0}.get(arm.name, 10.0),
            "film": 0.5 if arm.stage == "study" else 1.0,
        }


ARMS = {arm.name: arm for arm in arms.arms(("rcnn", "yolo"), 2)}


@pytest.mark.parametrize(
    ("changes", "voices", "negative", "boxes"),
    [
        ({}, ["rcnn", "yolo"], [0.1, 0.4, 0.1], 4),
        ({"flips": True}, ["rcnn", "rcnn_flip", "yolo", "yolo_flip"], [0.1, 0.4, 0.1], 8),
        ({"study_flips": True}, ["rcnn", "yolo"], [0.2, 0.5, 0.2], 4),
        ({"study": ("study", "study none")}, ["rcnn", "yolo"], [0.2, 0.5, 0.2], 4),
        ({"low_boxes": False}, ["rcnn", "yolo"], [0.1, 0.4, 0.1], 3),
        ({"every_film": False}, ["rcnn", "yolo"], [0.1, 0.1], 4),
        ({"detectors": {"yolo": ("yolo fold 0", "yolo fold 1")}}, ["yolo", "yolo.1"], [0.1, 0.4, 0.1], 4),
    ],
)
def test_what_a_system_hears(changes, voices, negative, boxes):
    said = systems.said(Kept(), System(**changes), ARMS)
    assert list(said.seen) == voices
    assert said.films["image_id"].tolist() == ["a", "b", "c"]
    assert said.levels["negative"].tolist() == pytest.approx(negative)
    assert len(said.detections) == boxes
    assert set(said.detections["model"]) == set(voices)


def test_none_comes_from_an_arm_of_its_own():
    said = systems.said(Kept(), System(none="study none"), ARMS)
    assert said.levels["none"].tolist() == [0.6] * 3
    assert said.levels["negative"].tolist() == pytest.approx([0.1, 0.4, 0.1])
    assert "none" not in systems.said(Kept(), System(study=("study none",)), ARMS).levels
    assert systems.cost(Kept(), System(none="study none"), ARMS) == {"train": 170.0, "film": 3.0}


def test_what_a_system_costs():
    assert systems.cost(Kept(), System(), ARMS) == {"train": 160.0, "film": 2.5}
    further = systems.cost(Kept(), System(detectors={"rcnn": ("rcnn pseudo",)}), ARMS)
    assert further == {"train": 10.0 + 100.0 + 10.0, "film": 1.5}  # on top of what it goes on from
    both = systems.cost(Kept(), System(flips=True, study_flips=True), ARMS)
    assert both == {"train": 160.0, "film": 5.0}


def test_items_differ_in_one_thing_and_name_arms_that_exist():
    found = systems.items(("rcnn", "yolo"), 2)
    assert len({item.name for item in found}) == len(found)
    for item in found:
        for system in (item.off, item.on):
            named = [name for members in system.detectors.values() for name in members]
            assert {*named, *system.study} <= set(ARMS)
        assert item.off != item.on


def test_the_tables_by_hand():
    scores = {"x": [(0.5, 0.6), (0.5, 0.8)], "y": [(0.4, 0.4), (0.6, 0.5)]}
    rows = []
    for item, pairs in scores.items():
        for competition, pair in enumerate(pairs):
            for state, mean in zip(("off", "on"), pair, strict=True):
                cost = {"film": 2.0 if state == "on" and item == "x" else 1.0, "train": 3.0}
                classes = dict.fromkeys(CLASSES, mean / 2)
                rows.append({"item": item, "competition": competition, "state": state, "mean": mean, **classes, **cost})
    found = pd.DataFrame(rows)
    lines = table.gains(found).splitlines()
    assert lines[0] == f"| item | off | mean | {' | '.join(CLASSES)} | film x | training x |"
    assert lines[2].startswith("| x | .500 | +.200 ±.100 | +.100 ±.050 |")
    assert lines[2].endswith("| 2.00 | 1.00 |")
    assert lines[3].startswith("| y | .500 | -.050 ±.050 | -.025 ±.025 |")
    both = table.off_and_on(found).splitlines()
    assert [line.split(" | ")[:3] for line in both[2:]] == [
        ["| x", "off", ".500 ±.000"],
        ["| x", "on", ".700 ±.100"],
        ["| y", "off", ".500 ±.100"],
        ["| y", "on", ".450 ±.050"],
    ]
    alone = table.gains(found[found["competition"] == 0]).splitlines()
    assert alone[2].startswith("| x | .500 | +.100 | +.050 |")


def test_ensembles_stand_beside_the_detectors():
    rows = [{"item": table.TOGETHER, "competition": "c", "state": state, "opacity": value}
            for state, value in (("off", 0.4), ("on", 0.5))]  # fmt: skip
    text = table.beside_singles(pd.DataFrame({"rcnn": [0.3], "yolo": [np.nan]}, index=["c"]), pd.DataFrame(rows))
    assert text.splitlines()[0] == f"| competition | rcnn | yolo | plain ensemble | {table.TOGETHER} |"
    assert text.splitlines()[2] == "| c | .300 |  | .400 | .500 |"


def test_numbers_are_fitted_on_other_competitions(monkeypatch):
    """Three competitions of a film each: the fit for one sees the films of the two others, in two folds."""
    from siimcovid.combine import Said

    def material(name):
        films = pd.DataFrame({"image_id": [name], "study_id": [name], "boxes": [[]], "level": ["typical"], "fold": [0]})
        return Said(films[["image_id", "study_id"]], pd.DataFrame({"image_id": [name]}), {"rcnn": [name]}), films

    seen = []

    def fit(said, images, folds, preset):
        seen.append((said.films["image_id"].tolist(), said.seen["rcnn"], images["image_id"].tolist(), folds))
        return {}, pd.DataFrame({"kept": dict.fromkeys(table.combination.ITEMS, False)})

    monkeypatch.setattr(table.combination, "fit", fit)
    monkeypatch.setattr(table.combination, "ITEMS", {"fusion": lambda *_: {"fusion.iou": 0.5}})
    steps = table.fit_elsewhere("b", {name: material(name) for name in "abc"}, SMALL)
    assert seen == [(["a", "c"], ["a", "c"], ["a", "c"], {"a": 0, "c": 1})]
    assert steps == [("fusion", {}, {"fusion.iou": 0.5}), (table.TOGETHER, {}, {})]
    table.fit_elsewhere("b", {"b": material("b")}, SMALL)
    assert seen[-1][-1] == {"b": 0}


def test_the_command_for_real(tmp_path, capsys):
    """A tiny synthetic competition with every item, and a folder with the plain system and all that is kept."""
    folder = tmp_path / "films"
    write_competition(folder, train_studies=12, test_studies=6, seed=5, scale=0.03)
    given = ["ablate", "--out", str(tmp_path / "out"), "--seeds", "4", "--data", str(folder), "--folds", "2"]
    given += ["--train-studies", "12", "--test-studies", "6", "--set", "cache_size=64"]
    for stage in (*experiment.DETECTORS, "study"):
        given += ["--set", f"{stage}.size=64", "--set", f"{stage}.infer_size=64", "--set", f"{stage}.training.epochs=1"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    found = pd.read_csv(tmp_path / "out" / "ablation.csv")
    assert set(found["competition"]) == {"phantom-4", "films"}
    assert np.isfinite(found[["mean", "film", "train"]].to_numpy()).all()
    everything = found[found["competition"] == "phantom-4"]["item"].unique()
    assert len(everything) == len(systems.items(experiment.DETECTORS, 2)) + len(table.combination.ITEMS) + 2
    assert all(item in printed for item in everything)
    assert printed.startswith((tmp_path / "out" / "ablation.md").read_text())
    numbers = json.loads((tmp_path / "out" / "combination.json").read_text())
    override(SMALL, numbers)  # settings that there are
    assert all(key.startswith(("fusion.", "crosstalk.")) for key in numbers)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/arms/*/*.safetensors")}
    assert len(before) > 20
    assert main(given) == 0
    assert capsys.readouterr().out == printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_folder_without_answers_is_refused(tmp_path, capsys):
    folder = tmp_path / "films"
    write_competition(folder, train_studies=3, test_studies=2, seed=5, scale=0.03)
    (tmp_path / "films.truth").rename(tmp_path / "elsewhere")
    plan = experiment.Plan((), 3, 2, (folder,), 2)
    with pytest.raises(InputError, match=r"films\.truth holds no answers"):
        experiment.train(plan, SMALL, None, tmp_path / "out")
    twice = experiment.Plan((), 3, 2, (folder, tmp_path / "x" / "films"), 2)
    with pytest.raises(InputError, match="two competitions have the name films"):
        experiment.train(twice, SMALL, None, tmp_path / "out")
