"""Each change of a preset by itself: what is tried, on which images, shared between processes, and its table."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from siimcovid.apps.ablation import changed_parts
from siimcovid.apps.ablation.changed_parts import OWN, Change, Trials, changes, of_patients
from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.overrides import override, to_dict
from siimcovid.core.presets import DEMO, SMALL
from siimcovid.models import published_weights, weights_manifest
from siimcovid.synthetic.demo_competition import write_competition
from siimcovid.training import cross_validation, out_of_fold
from siimcovid.training.hyperparameter_search import claimed

#: A preset that trains in a moment.
TINY = {
    "cache_size": 64,
    "study_models": 1,
    **{f"{s}.{k}": 64 for s in ("study", "yolo") for k in ("size", "infer_size")},
}
TINY |= {"study.training.epochs": 1, "yolo.training.epochs": 1}


@pytest.mark.parametrize("preset", [SMALL, DEMO], ids=lambda preset: preset.name)
def test_each_change_changes_its_stage_alone(preset):
    found = changes(preset, ("study", "yolo", "rcnn"))
    assert [change.stage for change in found if change.name == OWN] == ["study", "yolo", "rcnn"]
    assert len({(change.stage, change.folder) for change in found}) == len(found)
    for change in found:
        if change.name == OWN:
            continue
        changed = override(preset, {f"{change.stage}.{key}": value for key, value in change.settings.items()}).check()
        differ = [key for key, value in to_dict(changed).items() if value != to_dict(preset)[key]]
        assert differ == [change.stage]
    assert [change.stage for change in found if change.name == "without mosaics"] == ["yolo"] * (preset is SMALL)
    assert any(change.settings == {"training.epochs": round(1.5 * preset.rcnn.training.epochs)} for change in found)


def test_whole_patients_are_drawn_until_there_are_enough():
    images = pd.DataFrame({"image_id": list("abcdefgh"), "patient_id": [f"p{k // 2}" for k in range(8)]})
    chosen = of_patients(images, 3)
    assert len(chosen) == 4
    assert chosen.groupby("patient_id").size().tolist() == [2, 2]
    assert chosen.equals(of_patients(images, 3))
    assert len({tuple(of_patients(images, 2, seed)["patient_id"]) for seed in range(9)}) > 1
    assert of_patients(images, 8).equals(of_patients(images, 99))
    assert len(of_patients(images, 99)) == 8


def test_the_table_by_hand():
    rows = pd.DataFrame(
        [(0, "study", OWN, 0.5), (0, "study", "without x", 0.45), (0, "yolo", OWN, 0.4),
         (1, "study", OWN, 0.52), (1, "study", "without x", 0.53)],
        columns=["seed", "stage", "change", "score"],
    )  # fmt: skip
    found = changed_parts.table(rows).set_index(["stage", "change"])
    assert found.loc[("study", "without x"), [0, 1, "difference", "score"]].round(4).tolist() == [
        -0.05,
        0.01,
        -0.02,
        0.49,
    ]
    assert found.index.tolist() == [("study", OWN), ("study", "without x"), ("yolo", OWN)]
    lines = changed_parts.markdown_table(rows).splitlines()
    assert lines[0] == "| stage | change | score | difference | seed 0 | seed 1 |"
    assert lines[3] == "| study model | without x | .490 | -.020 | -.050 | +.010 |"
    assert lines[4] == f"| YOLO | {OWN} | .400 | +.000 | +.000 |  |"


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """Trials whose cross-validations write scores and empty models in a moment; `made` says which they were."""
    made = []

    def validate(images, preset, cache, start, out, *, stages, data):
        made.append((preset.seed, out.name))
        for fold in range(preset.folds):
            for name in ("images.csv", f"{stages[0]}.safetensors", f"{stages[0]}.json"):
                (out / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
                (out / f"fold_{fold}" / name).write_text(f"{name} of {fold}")
        return stages[0], preset

    def score(data, images, found, preset, out, whole):
        assert not whole  # the images are a part of the folder's
        scores = {"mean": 0.5 + preset.seed / 10, "opacity": 0.4, "negative": None}
        (out / "scores.json").write_text(json.dumps({found[0]: scores}))

    monkeypatch.setattr(cross_validation, "cross_validate", validate)
    monkeypatch.setattr(out_of_fold, "score", score)
    images = pd.DataFrame(columns=["image_id", "boxes", "study_label"])
    one = Trials(images, tmp_path, tmp_path, None, tmp_path / "out", override(SMALL, {"folds": 2}), (0, 1))
    return one, made


OWN_STUDY, OWN_YOLO = Change(OWN, "study"), Change(OWN, "yolo")


def test_what_is_there_is_not_made_again(trials):
    one, made = trials
    rows, whole = one.run([OWN_STUDY, Change("without dropout", "study", {"dropout": 0.0})])
    assert whole
    assert rows[["seed", "change", "score"]].to_numpy().tolist() == [
        [0, OWN, 0.5], [0, "without dropout", 0.5], [1, OWN, 0.6], [1, "without dropout", 0.6],
    ]  # fmt: skip
    assert len(made) == 4
    assert one.run([OWN_STUDY])[1]
    assert len(made) == 4
    other = replace(one, preset=override(one.preset, {"study.dropout": 0.1}))
    with pytest.raises(InputError, match="of a cross-validation with another preset; give this one another folder"):
        other.run([OWN_STUDY])


def test_a_detector_starts_from_the_presets_own_study_models(trials):
    one, made = trials
    rows, whole = one.run([OWN_YOLO])  # nobody has trained them yet
    assert (len(rows), whole, made) == (0, False, [])
    rows, whole = one.run([OWN_STUDY, OWN_YOLO, Change("without it", "yolo", {"study_backbone": False})])
    assert whole
    assert rows["score"].tolist() == [0.5, 0.4, 0.4, 0.6, 0.4, 0.4]
    lent = one.out / "seed_1" / OWN_YOLO.folder / "fold_1"
    assert (lent / "study.safetensors").read_text() == "study.safetensors of 1"
    assert (lent / "images.csv").is_file()
    assert weights_manifest.read_manifest(lent)["study.safetensors"]["source"].endswith("without fold 1 of 2")
    assert not (one.out / "seed_1" / "yolo_without_it" / "fold_1" / "study.safetensors").exists()


def test_another_process_has_its_change_to_itself(trials):
    one, made = trials
    with claimed(one.out / "seed_0" / OWN_STUDY.folder):
        rows, whole = one.run([OWN_STUDY])
    assert not whole
    assert rows["seed"].tolist() == [1]
    assert made == [(1, OWN_STUDY.folder)]


@pytest.mark.slow
def test_the_command_for_real(tmp_path, capsys, monkeypatch):
    flips, mosaics = {"without flips": {"augment.hflip": 0.0}}, {"without mosaics": {"augment.mosaic": 0.0}}
    monkeypatch.setattr(changed_parts, "CHANGES_OF", {"study": flips, "yolo": mosaics})
    folder = tmp_path / "competition"
    write_competition(folder, train_studies=12, test_studies=2, seed=5, scale=0.03)
    published_weights.import_weights("efficientnet_lite0", None, tmp_path / "imagenet")
    given = ["ablate", "--out", str(tmp_path / "out"), "--crossval", str(folder), "--preset", "small"]
    given += [
        "--weights",
        str(tmp_path / "imagenet"),
        "--folds",
        "2",
        "--seeds",
        "0",
        "--images",
        "10",
        "--stages",
        "study",
        "yolo",
    ]
    for key, value in TINY.items():
        given += ["--set", f"{key}={value}"]
    assert main(given) == 0
    rows = pd.read_csv(tmp_path / "out" / "changed_parts.csv")
    assert rows["change"].tolist() == [OWN, OWN, "without flips", "without mosaics", "with half as many epochs again"]
    assert rows["score"].between(0, 1).all()
    assert rows["negative"].notna().tolist() == [True, False, True, False, False]
    assert (tmp_path / "out" / "changed_parts.md").read_text() in capsys.readouterr().out
    start = json.loads((tmp_path / "out" / "seed_0" / OWN_YOLO.folder / "fold_1" / "yolo.json").read_text())["start"]
    assert start["file"] == "study.safetensors"
