"""Cross-validation: every image once, by models that did not see its patient; resumed, refused, scored."""

import json

import numpy as np
import pandas as pd
import pytest

from siimcovid.apps.ablation.trained_variants import PLAIN
from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.files import write_json
from siimcovid.core.labels import CLASSES, STUDY_COLUMNS, STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.presets import load_preset
from siimcovid.core.stage_names import member
from siimcovid.models.weights_manifest import read_manifest, register_trained, verified
from siimcovid.synthetic.demo_competition import write_competition
from siimcovid.training import cross_validation, train_stage
from siimcovid.training.cross_validation import cross_validate
from siimcovid.training.out_of_fold import read, refuse_leaks, score

pytestmark = pytest.mark.slow

BOX = [0.2, 0.3, 0.6, 0.8]
CORNERS = ["x1", "y1", "x2", "y2"]
PRESET = load_preset("demo", {**PLAIN, "fusion.hflip_tta": True, "folds": 3})


@pytest.fixture
def images() -> pd.DataFrame:
    """Twelve images of nine studies and six patients, one a sibling that nobody annotated; and one without a study
    label."""
    rows = []
    for k in range(13):
        study = k % 9 if k < 12 else 9
        boxes = [BOX] if study % 3 == 0 and k < 9 else []
        study_label = STUDY_LABELS[study % 4] if k < 12 else None
        annotated = bool(boxes) or study % 3 > 0
        row = {"image_id": f"{k}e{k}", "study_id": f"s{study}", "patient_id": f"p{study % 6}", "split": "train"}
        rows.append(
            row | {"rows": 100, "columns": 200, "boxes": boxes, "study_label": study_label, "annotated": annotated}
        )
    table = pd.DataFrame(rows)
    assert table["image_id"][~table["annotated"]].tolist() == ["9e9", "12e12"]
    return table


@pytest.fixture
def competition(images, tmp_path):
    """The folder of these images' truth."""
    folder = tmp_path / "competition"
    folder.mkdir()
    pixels = f"opacity 1 {BOX[0] * 200} {BOX[1] * 100} {BOX[2] * 200} {BOX[3] * 100}"
    known = images[images["study_label"].notna()]
    label = [pixels if boxes else "none 1 0 0 1 1" for boxes in known["boxes"]]
    truth = pd.DataFrame({"id": known["image_id"] + "_image", "boxes": "", "label": label})
    truth.to_csv(folder / "train_image_level.csv", index=False)
    studies = known.drop_duplicates("study_id")
    marks = {
        column: (studies["study_label"] == study_label).astype(int)
        for study_label, column in zip(STUDY_LABELS, STUDY_COLUMNS, strict=True)
    }
    studies = pd.DataFrame({"id": studies["study_id"] + "_study", **marks})
    studies.to_csv(folder / "train_study_level.csv", index=False)
    return folder


class Models:
    """Stand for training and prediction: what is trained on whom is remembered, and the answers are the truth."""

    def __init__(self, images: pd.DataFrame):
        self.truth, self.fitted, self.predicted, self.stop = images.set_index("image_id"), [], [], None

    def fit(self, stage, preset, images, cache, start, folder, features):
        if (preset.fold, stage) == self.stop:
            raise KeyboardInterrupt
        self.fitted.append((preset.fold, stage, getattr(preset, stage).training, set(images["image_id"])))
        (folder / f"{stage}.safetensors").write_bytes(b"model")
        (folder / f"{stage}.resume.pt").unlink(missing_ok=True)
        identity = train_stage.identity_of(stage, preset, images, cache, start, folder)
        write_json(folder / f"{stage}.json", {"identity": identity, "finished": True})

    def predict(self, stage, config, model, images, cache, hflip=False, change=None):
        self.predicted.append((stage, hflip, set(images["image_id"])))
        if change:  # what it knows, it knows by the markers
            return images[["image_id", "study_id"]].join(pd.DataFrame(0.25, images.index, list(STUDY_LABELS)))
        if stage == "study":
            marks = [
                [0.7 if study_label == name else 0.1 for name in STUDY_LABELS] for study_label in images["study_label"]
            ]
            return images[["image_id", "study_id"]].join(pd.DataFrame(marks, images.index, list(STUDY_LABELS)))
        name = f"{stage}_hflip" if hflip else stage
        scores = {"rcnn": 0.9, "yolo": 1 / 3}[stage]
        rows = [
            (i, name, scores, *b) for i, boxes in zip(images["image_id"], images["boxes"], strict=True) for b in boxes
        ]
        return pd.DataFrame(rows, columns=["image_id", "model", "score", *CORNERS])


@pytest.fixture
def models(images, monkeypatch):
    stand_in = Models(images)
    monkeypatch.setattr(cross_validation, "fit", stand_in.fit)
    monkeypatch.setattr(cross_validation, "predict_table", stand_in.predict)
    monkeypatch.setattr(cross_validation.checkpoints, "load", lambda path: (None, None, None))
    return stand_in


def run(images, out, preset=PRESET, **options):
    return cross_validate(images, preset, out, None, out, **options)


def test_every_image_once_by_models_that_did_not_see_its_patient(images, models, tmp_path):
    found = run(images, tmp_path)
    known = images[images["study_label"].notna()]
    assert sorted(found.images["image_id"]) == sorted(known["image_id"])  # unannotated siblings too
    assert found.images.groupby("patient_id")["fold"].nunique().max() == 1
    assert [(fold, stage) for fold, stage, *_ in models.fitted] == [
        (fold, stage) for fold in range(3) for stage in ("rcnn", "yolo", "study")
    ]
    patient = images.set_index("image_id")["patient_id"]
    for fold, _, training, names in models.fitted:
        assert not training.validate
        assert names == set(
            known["image_id"][
                known["annotated"] & ~known["image_id"].isin(found.images["image_id"][found.images["fold"] == fold])
            ]
        )
        assert not set(patient[list(names)]) & set(found.images["patient_id"][found.images["fold"] == fold])
    for stage, hflip in (("rcnn", False), ("rcnn", True), ("yolo", False), ("yolo", True), ("study", False)):
        looked_at = [name for s, f, names in models.predicted if (s, f) == (stage, hflip) for name in names]
        assert sorted(looked_at) == sorted(known["image_id"])


def test_the_tables_on_disk(images, models, tmp_path):
    found = run(images, tmp_path)
    detections = pd.read_csv(tmp_path / "detections.csv", dtype={"image_id": str}, float_precision="round_trip")
    study_probs = pd.read_csv(tmp_path / "study_probabilities.csv")
    assert detections.columns.tolist() == ["image_id", "model", "score", *CORNERS, "fold"]
    assert set(detections["model"]) == {"rcnn", "rcnn_hflip", "yolo", "yolo_hflip", "ensemble"}
    assert set(detections["score"][detections["model"] == "yolo"]) == {1 / 3}
    assert study_probs.columns.tolist() == ["study_id", *STUDY_LABELS, "fold"]
    assert sorted(study_probs["study_id"]) == sorted(f"s{k}" for k in range(9))
    fold = found.images.set_index("image_id")["fold"]
    assert (detections["image_id"].map(fold) == detections["fold"]).all()
    pd.testing.assert_frame_equal(study_probs.drop(columns="fold"), found.prediction.study_probs, check_dtype=False)
    for number in range(3):
        manifest = json.loads((tmp_path / f"fold_{number}" / "manifest.json").read_text(encoding="utf-8"))
        assert set(manifest) == {"rcnn.safetensors", "yolo.safetensors", "study.safetensors"}


def test_the_truth_scores_one(images, models, competition, tmp_path):
    found = run(images, tmp_path)
    evaluations = score(competition, images, found, PRESET, tmp_path)
    assert [e.name for e in evaluations] == ["rcnn", "yolo", "ensemble"]
    for evaluation in evaluations:
        assert evaluation.scores == dict.fromkeys((*CLASSES, "mean"), pytest.approx(1.0))
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["yolo"]["mean"] == pytest.approx(1.0)
    answers = pd.read_csv(tmp_path / "submission.csv")
    assert len(answers) == 12 + 9
    assert (tmp_path / "submissions" / "rcnn.csv").is_file()


def test_a_image_that_cannot_be_read_is_answered_by_frequencies(images, models, competition, tmp_path):
    readable = images[images["image_id"] != "0e0"]
    found = run(readable, tmp_path)
    score(competition, images, found, PRESET, tmp_path)
    answers = pd.read_csv(tmp_path / "submission.csv").set_index("id")["PredictionString"]
    assert len(answers) == 12 + 9
    none = (images["boxes"].map(len) == 0).mean()
    assert answers["0e0_image"] == f"none {none:.8f} 0 0 1 1"


def test_a_part_of_the_train_set_is_scored_by_itself(images, models, competition, tmp_path):
    """As the ablation does, which cross-validates some patients of a folder: the others' frequencies are no answers."""
    some = images[images["study_id"].isin([f"s{k}" for k in range(6)])]
    found = run(some, tmp_path)
    evaluations = score(competition, some, found, PRESET, tmp_path, whole=False)
    assert all(evaluation.scores["mean"] == pytest.approx(1.0) for evaluation in evaluations)
    ids = set(pd.read_csv(tmp_path / "submission.csv")["id"])
    assert ids == {*(some["image_id"] + "_image"), *(some["study_id"] + "_study")}
    assert score(competition, some, found, PRESET, tmp_path)[-1].scores["mean"] < 0.99


def test_what_no_stage_answers_is_not_scored(images, models, competition, tmp_path):
    found = run(images, tmp_path / "study", stages=["study"])
    assert found.prediction.detections.empty
    (only,) = score(competition, images, found, PRESET, tmp_path / "study")
    assert only.name == "study"
    assert {name for name, value in only.scores.items() if not np.isnan(value)} == {*STUDY_LABELS, "mean"}
    assert only.scores["mean"] == pytest.approx(1.0)
    found = run(images, tmp_path / "yolo", stages=["yolo"])
    assert found.prediction.study_probs.empty
    (only,) = score(competition, images, found, PRESET, tmp_path / "yolo")
    assert {name for name, value in only.scores.items() if not np.isnan(value)} == {"none", "opacity", "mean"}
    assert json.loads((tmp_path / "yolo" / "scores.json").read_text(encoding="utf-8"))["yolo"]["typical"] is None


def test_killed_and_resumed(images, models, tmp_path):
    whole = run(images, tmp_path / "whole")
    models.stop, models.fitted, models.predicted = (1, "yolo"), [], []
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "killed")
    assert len(models.fitted) == 4
    models.stop = None
    resumed = run(images, tmp_path / "killed")
    assert len(models.fitted) == 9
    assert len(models.predicted) == 3 * 5
    assert (tmp_path / "killed" / "detections.csv").read_bytes() == (tmp_path / "whole" / "detections.csv").read_bytes()
    pd.testing.assert_frame_equal(resumed.prediction.study_probs, whole.prediction.study_probs)


def test_a_stage_trained_anew_predicts_anew(images, models, tmp_path):
    run(images, tmp_path, stages=["study"])
    models.fitted, models.predicted = [], []
    (tmp_path / "fold_1" / "study.resume.pt").write_bytes(b"half")
    run(images, tmp_path, stages=["study"])
    assert [fold for fold, *_ in models.fitted] == [1]
    assert len(models.predicted) == 1


def test_a_stage_of_another_identity_is_trained_anew(images, models, tmp_path):
    """Corrected labels, boxes or start weights: trained and predicted again. What depends on none of them is not."""
    starts = []
    for number in range(2):
        path = tmp_path / f"start{number}" / "study.safetensors"
        path.parent.mkdir()
        path.write_bytes(bytes([number]))
        register_trained(path, "study", PRESET, "others")
        starts.append(path.parent)
    corrected = images.assign(study_label=images["study_label"].replace("typical", "atypical"))
    boxes = images.assign(boxes=[[[0.1, *box[1:]] for box in found] for found in images["boxes"]])
    for table, start in ((images, starts[0]), (corrected, starts[0]), (boxes, starts[0]), (boxes, starts[1])):
        for trained in (3, 0):
            models.fitted, models.predicted = [], []
            cross_validate(table, PRESET, tmp_path, start, tmp_path / "out", stages=["study"])
            assert (len(models.fitted), len(models.predicted)) == (trained, trained)


def test_the_check_for_shortcuts(images, models, tmp_path):
    """Study labels told perfectly on images as they are, and all alike on covered ones: ties in the order of the
    studies."""
    found = run(images, tmp_path, stages=["study"])
    models.predicted = []
    outputs = cross_validation.check_shortcuts(found, tmp_path, tmp_path)
    assert sorted(name for *_, names in models.predicted for name in names) == sorted(found.images["image_id"])
    written = json.loads((tmp_path / "shortcuts.json").read_text(encoding="utf-8"))
    covered = {"negative": (1 + 2 / 5 + 3 / 9) / 3, "typical": (1 / 2 + 2 / 6) / 2}
    covered |= {"indeterminate": (1 / 3 + 2 / 7) / 2, "atypical": (1 / 4 + 2 / 8) / 2}
    covered["mean"] = sum(covered.values()) / 4
    assert written["studies"] == 9
    assert written["as they are"] == dict.fromkeys(covered, 1.0)
    assert written["covered"] == pytest.approx(covered)
    assert written["fall"] == pytest.approx({study_label: 1 - value for study_label, value in covered.items()})
    assert f"a fall of {1 - covered['mean']:.3f} over 9 studies" in outputs
    models.predicted = []
    assert cross_validation.check_shortcuts(found, tmp_path, tmp_path) == outputs
    assert models.predicted == []
    (tmp_path / "fold_1" / "study.resume.pt").write_bytes(b"half")  # trained anew, it is looked at anew
    cross_validation.check_shortcuts(run(images, tmp_path, stages=["study"]), tmp_path, tmp_path)
    assert len(models.predicted) == 2


def test_some_folds_then_all(images, models, competition, tmp_path):
    part = run(images, tmp_path, only=[2])
    score(competition, images, part, PRESET, tmp_path)
    ids = set(pd.read_csv(tmp_path / "submission.csv")["id"])
    assert ids == {*(part.images["image_id"] + "_image"), *(part.images["study_id"] + "_study")}
    assert len(run(images, tmp_path).images) == 12
    assert len(models.fitted) == 9
    with pytest.raises(InputError, match="no fold 3 of 3"):
        run(images, tmp_path, only=[0, 3])


def test_the_best_epoch_is_an_option(images, models, tmp_path):
    run(images, tmp_path, stages=["study"], best_epoch=True)
    for _, _, training, names in models.fitted:
        assert training.validate
        assert len(names) == 12  # stages.fit holds the fold out itself
    with pytest.raises(InputError, match="another preset"):
        run(images, tmp_path, stages=["study"])


def test_fusion_may_change_and_training_may_not(images, models, tmp_path):
    run(images, tmp_path)
    fused = run(images, tmp_path, override(PRESET, {"fusion.max_boxes": 1, "fusion.hflip_tta": False}))
    assert set(fused.outputs.detections["model"]) == {"rcnn", "yolo"}
    assert fused.prediction.detections.groupby("image_id").size().max() == 1
    assert len(models.fitted) == 9
    for change in ({"seed": 1}, {"rcnn.training.epochs": 3}):
        with pytest.raises(InputError, match="another preset"):
            run(images, tmp_path, override(PRESET, change))


def test_other_images_are_refused(images, models, tmp_path):
    run(images, tmp_path, stages=["study"])
    with pytest.raises(InputError, match="other images"):
        run(images.assign(patient_id=[f"p{k}" for k in range(13)]), tmp_path, stages=["study"])
    (tmp_path / "fold_0" / "images.csv").unlink()
    with pytest.raises(InputError, match=r"no images\.csv"):
        run(images, tmp_path, stages=["study"])


def test_a_cross_validation_of_other_images_is_not_read(images, models, tmp_path):
    run(images, tmp_path)
    assert len(read(tmp_path, images, PRESET)[1]) == 12
    more = pd.concat([images.iloc[:-4], *[images.assign(image_id=images["image_id"] + end) for end in "xy"]])
    with pytest.raises(InputError, match="another competition: 3 of its images are absent"):
        read(tmp_path, more, PRESET)


def test_weights_that_saw_the_images_are_no_start(images, models, tmp_path):
    path = tmp_path / "start" / "study.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"model")
    register_trained(path, "study", PRESET, "competition")
    start, options = path.parent, {"stages": ["study"], "data": "competition"}
    with pytest.raises(InputError, match=r"study\.safetensors in .* has seen the images"):
        cross_validate(images, PRESET, tmp_path, start, tmp_path / "out", **options)
    assert not models.fitted
    options["data"] = "another"
    cross_validate(images, PRESET, tmp_path, start, tmp_path / "out", **options)
    start = tmp_path / "out" / "fold_0"  # a fold's own models saw the images of the other folds
    with pytest.raises(InputError, match="has seen"):
        cross_validate(images, PRESET, tmp_path, start, tmp_path / "again", **options)


IMAGES = pd.DataFrame({"image_id": list("abc"), "patient_id": ["p", "q", "r"], "fold": [0, 0, 1]})


@pytest.mark.parametrize(
    ("table", "images", "trained", "outputs"),
    [
        ({"image_id": ["a", "c"], "fold": [0, 0]}, IMAGES, {0: {"r"}, 1: set()}, "c was predicted by a fold"),
        ({"image_id": ["a", "x"], "fold": [0, 0]}, IMAGES, {}, "x was predicted by a fold"),
        (
            {"image_id": ["a"], "fold": [0]},
            IMAGES,
            {0: {"r", "q"}, 1: {"p"}},
            "patient of b is on both sides of fold 0",
        ),
        ({"image_id": ["a"], "fold": [0]}, pd.concat([IMAGES, IMAGES.assign(fold=1)]), {}, "a is held out by two"),
        ({"image_id": ["a", "a"], "study_id": ["s", "s"], "fold": [0, 0]}, IMAGES, {}, "a has study labels twice"),
    ],
)
def test_leaks_are_refused(table, images, trained, outputs):
    with pytest.raises(InputError, match=outputs):
        refuse_leaks(pd.DataFrame(table), images, trained)


def test_a_table_without_leaks_passes():
    detections = pd.DataFrame({"image_id": ["a", "a", "c"], "fold": [0, 0, 1]})
    refuse_leaks(detections, IMAGES, {0: {"r"}, 1: {"p", "q"}})


def test_the_command_for_real(tmp_path, capsys):
    """A tiny competition, study model and two folds at 64 pixels; a second call trains nothing and says the same."""
    data, out = tmp_path / "competition", tmp_path / "out"
    write_competition(data, train_studies=10, test_studies=1, seed=0, scale=0.05)
    changes = {"folds": 2, "study.size": 64, "study.infer_size": 64, "study.views": 0, "study.training.epochs": 1}
    arguments = ["crossval", "--data", str(data), "--out", str(out), "--preset", "demo", "--stages", "study"]
    arguments += [text for key, value in changes.items() for text in ("--set", f"{key}={value}")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*CLASSES, "mean", "accuracy", "F1-score"))
    assert "mAP@.50" not in printed
    assert "study score" in printed
    assert json.loads((out / "shortcuts.json").read_text(encoding="utf-8"))["studies"] == 10
    study_probs = pd.read_csv(out / "study_probabilities.csv")
    assert len(study_probs) == 10
    assert study_probs[list(STUDY_LABELS)].sum(axis=1).to_numpy() == pytest.approx(1.0)
    trained = (out / "fold_1" / "study.safetensors").stat().st_mtime_ns
    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert printed.endswith(again)
    assert printed.removesuffix(again).count("study 1/1") == 2  # a line for each epoch of the first call
    assert (out / "fold_1" / "study.safetensors").stat().st_mtime_ns == trained


def test_the_folds_models_are_a_fold_ensemble(images, models, tmp_path):
    """Once all folds are there: a weights folder whose files are the folds' own."""
    run(images, tmp_path, only=[0, 1])
    assert not (tmp_path / "weights").exists()
    run(images, tmp_path)
    names = {f"{member(stage, fold)}.safetensors": (stage, fold) for stage in PRESET.stages for fold in range(3)}
    manifest = read_manifest(tmp_path / "weights")
    assert set(manifest) == set(names)
    for name, (stage, fold) in names.items():
        assert verified(tmp_path / "weights", name).samefile(tmp_path / f"fold_{fold}" / f"{stage}.safetensors")
        assert (manifest[name]["stage"], manifest[name]["preset"]) == (stage, "demo")
        assert f"without fold {fold} of 3" in manifest[name]["source"]
