"""Shortcuts: who reads markers falls, and a run with time says so."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.presets import DEMO, override
from siimcovid.data.competition import Competition, read_index
from siimcovid.data.cover_markers import cover
from siimcovid.data.image_memory import ImageMemory
from siimcovid.evaluation import shortcut_check
from siimcovid.inference.predictor import predict_images, predict_table, study_probabilities
from siimcovid.kernel import predict_test_images, scoreboard
from siimcovid.kernel.kernel_inputs import KernelInputs
from siimcovid.kernel.notebook_parameters import Parameters
from siimcovid.kernel.run import LoadedModels, Run
from siimcovid.kernel.time_budget import TimeBudget
from support.painted_chest import chest
from support.run_folder import write_run

SIDE = 128
CONFIG = override(DEMO.study, {"infer_size": SIDE})


class Reader(nn.Module):
    """A study model that tells the study label by how bright one part of the image is: study label k at 25 + 60 k."""

    def __init__(self, rows, columns):
        super().__init__()
        self.rows, self.columns = rows, columns

    def predict(self, images: Tensor) -> Tensor:
        parts = images[..., self.rows, self.columns].float().mean((1, 2, 3))
        return -(((parts[:, None] - 25 - 60 * torch.arange(4)) / 30) ** 2)


@pytest.fixture(params=["corner"])
def cached_images(tmp_path, request):
    """Images with a spot as bright as the study label says: a marker in a corner, or something between the lungs."""
    rows, spot = [], slice(2, 6) if request.param == "corner" else slice(60, 68)
    for k in range(16):
        image = chest(SIDE, SIDE)
        image[spot, spot] = 25 + 60 * (k % 4)
        cv2.imwrite(str(tmp_path / f"f{k:02}.png"), image)
        rows.append({"image_id": f"f{k:02}", "study_id": f"s{k:02}", "boxes": [], "study_label": STUDY_LABELS[k % 4]})
    return tmp_path, pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("cached_images", "where", "fall"),
    [("corner", slice(2, 6), True), ("middle", slice(60, 68), False)],
    indirect=["cached_images"],
    ids=["marker", "middle"],
)
def test_who_reads_the_marker_falls(cached_images, where, fall):
    """On covered images the marker's reader says the same of all, so that only the order of the ties is left."""
    folder, images = cached_images
    tables = [
        study_probabilities(predict_table("study", CONFIG, Reader(where, where), images, folder, change=change))
        for change in (None, cover)
    ]
    found = shortcut_check.compare(*tables, images.set_index("study_id")["study_label"])
    assert found["as they are"] == dict.fromkeys((*STUDY_LABELS, "mean"), 1.0)
    assert (found["fall"]["mean"] > 0.5) if fall else (found["fall"] == dict.fromkeys((*STUDY_LABELS, "mean"), 0.0))


def test_the_memory_of_shared_images_is_not_disturbed(cached_images):
    folder, images = cached_images
    memory = ImageMemory(1 << 20)
    before = [memory.square(folder, name, SIDE).copy() for name in images["image_id"]]
    model = Reader(slice(None), slice(None))
    plain = predict_images("study", CONFIG, model, images, folder, memory=memory).table
    changed = predict_images(
        "study", CONFIG, model, images, folder, change=lambda image: 255 - image, memory=memory
    ).table
    assert not plain.equals(changed)
    with pytest.raises(ValueError, match="read-only"):
        predict_images(
            "study", CONFIG, model, images, folder, change=lambda image: np.clip(image, 0, 9, out=image), memory=memory
        )
    for image, name in zip(before, images["image_id"], strict=True):
        assert (memory.square(folder, name, SIDE) == image).all()
    again = predict_images("study", CONFIG, model, images, folder, memory=memory).table
    pd.testing.assert_frame_equal(again, plain)


def test_compared_are_the_studies_that_all_know():
    """Two study labels, told apart perfectly, then the wrong way round; one study not looked at again, one without
    truth."""
    sure = {"negative": [0.9, 0.1, 0.9, 0.5], "typical": [0.1, 0.9, 0.1, 0.5], "indeterminate": 0.0, "atypical": 0.0}
    before = pd.DataFrame({"study_id": ["a", "b", "c", "d"], **sure})
    after = before.assign(negative=before["typical"], typical=before["negative"])[::-1]
    truth = pd.Series({"a": "negative", "b": "typical", "c": "negative"})
    found = shortcut_check.compare(before, after[after["study_id"] != "c"], truth)
    none = dict.fromkeys(("indeterminate", "atypical"))
    assert found == {
        "studies": 2,
        "as they are": {"negative": 1.0, "typical": 1.0, **none, "mean": 1.0},
        "covered": {"negative": 0.5, "typical": 0.5, **none, "mean": 0.5},
        "fall": {"negative": 0.5, "typical": 0.5, **none, "mean": 0.5},
    }


@pytest.fixture
def run(tmp_path):
    """A run that has classified its four images, with a study model that says of each image how bright it is."""
    folder = write_run(tmp_path)
    images = read_index(folder / "index.csv")
    sample = pd.read_csv(folder / "submission.csv")
    given = Competition(tmp_path / "competition", images, sample, ())
    ended = Run(Parameters(output_dir=folder), TimeBudget(1.0), inputs=KernelInputs(given, tmp_path / "competition"))
    ended.models.loaded["study"] = (CONFIG, Reader(slice(40, 80), slice(40, 80)), False)
    study_probs = pd.read_csv(folder / "study_probabilities.csv")  # of each study, as if it were of its image
    ended.predictions.image_study_probs = ended.test[["image_id", "study_id"]].merge(study_probs, on="study_id")
    return ended


def test_a_run_prints_and_keeps_the_fall(run, capsys):
    """Its images are of one grey, 40, 80, 120 and 160, each of another level, so covering changes nothing on them."""
    outputs = predict_images("study", CONFIG, run.models.loaded["study"][1], run.test, run.cache).table
    scoreboard.check_shortcuts(run)
    found = json.loads((run.folder / "shortcuts.json").read_text(encoding="utf-8"))
    truth = pd.Series({"s0": "negative", "s1": "typical", "s2": "indeterminate", "s3": "atypical"})
    study_probs = study_probabilities(run.predictions.image_study_probs)
    assert found == shortcut_check.compare(study_probs, study_probabilities(outputs), truth)
    assert found["studies"] == 4
    assert f"a fall of {found['fall']['mean']:.3f} over 4 studies" in capsys.readouterr().out


def test_no_check_without_time_model_labels_or_answers(run, monkeypatch, tmp_path):
    def nothing(so: str) -> bool:
        scoreboard.check_shortcuts(run)
        return not (run.folder / "shortcuts.json").exists() and so in " ".join(run.record.ended)

    run.record.seconds["classify"] = 2000.0  # of the 3,240 that the hour leaves
    assert nothing("shortcuts is left out")
    run.record.seconds.clear()
    with monkeypatch.context() as patch:
        patch.setattr(run, "models", LoadedModels(unusable={"study"}))
        assert nothing("")
    with monkeypatch.context() as patch:
        patch.setattr(run.predictions, "image_study_probs", None)
        assert nothing("")
    with monkeypatch.context() as patch:
        patch.setattr(run.inputs, "source", tmp_path / "another")
        assert nothing("")
    assert not nothing("")


def test_a_fault_of_the_check_leaves_the_scoreboard(run, monkeypatch):
    from siimcovid.kernel import steps

    def broken(run):
        raise RuntimeError("no images")

    monkeypatch.setattr(predict_test_images, "classify_covered", broken)
    table = steps.score(run)
    assert table.index.tolist() == ["rcnn", "yolo", "ensemble"]
    assert [(entry["step"], entry["reason"]) for entry in run.degraded] == [("shortcuts", "no images")]
    assert (run.folder / "scores.json").is_file()


@pytest.mark.parametrize("labels", [{}, {"s": None}, {"s": "unknown"}, {"other": "typical"}])
def test_without_any_study_label_it_is_said(tmp_path, labels):
    table = pd.DataFrame([["s", 0.1, 0.2, 0.3, 0.4]], columns=["study_id", *STUDY_LABELS])
    found = shortcut_check.compare(table, table, pd.Series(labels, dtype=object))
    assert "no study has a study label" in shortcut_check.record(found, tmp_path / "shortcuts.json")
    assert json.loads((tmp_path / "shortcuts.json").read_text())["fall"]["mean"] is None
