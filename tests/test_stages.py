"""Stages: which films are trained on, what is computed once, how a model is measured; predictions as tables."""

from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from siimcovid import LEVELS, checkpoint, stages, weights
from siimcovid.configs import Augment
from siimcovid.data import Films
from siimcovid.errors import InputError
from siimcovid.nih import LABELS
from siimcovid.predict import predict, study_levels
from siimcovid.presets import SMALL, load_preset

BOX = [0.2, 0.3, 0.6, 0.8]


@pytest.fixture
def films(tmp_path) -> tuple:
    """Eight train films of different grey, four levels, one of them a sibling that nobody annotated."""
    rng, rows = np.random.default_rng(0), []
    for k in range(8):
        cv2.imwrite(str(tmp_path / f"film{k}.png"), rng.integers(0, 256, (48, 40), dtype=np.uint8))
        row = {"image_id": f"film{k}", "study_id": f"study{k % 7}", "patient_id": f"patient{k % 5}", "split": "train"}
        boxed = [BOX] if k % 4 == 1 else []
        rows.append(row | {"boxes": boxed, "level": LEVELS[k % 4], "annotated": k != 7, "rows": 48, "columns": 40})
    return tmp_path, pd.DataFrame(rows)


class Fixed(nn.Module):
    """A detector that says the same of every film, or a classifier that says what it is given."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def predict(self, images):
        if torch.is_tensor(self.answer):
            return self.answer[: len(images)]
        return [(torch.tensor([box for box, _ in self.answer]), torch.tensor([s for _, s in self.answer]))] * len(
            images
        )


def test_detections_table(films):
    folder, images = films
    table = predict("rcnn", SMALL.rcnn, Fixed([(BOX, 0.9), ([0.0, 0.0, 0.1, 0.1], 0.2)]), images.head(3), folder)
    assert table.columns.tolist() == ["image_id", "model", "score", "x1", "y1", "x2", "y2"]
    assert table["image_id"].tolist() == ["film0", "film0", "film1", "film1", "film2", "film2"]
    assert table.iloc[0, 2:].tolist() == pytest.approx([0.9, *BOX])


def test_mirrored_films_give_boxes_of_the_films_themselves(films):
    folder, images = films
    table = predict("rcnn", SMALL.rcnn, Fixed([(BOX, 0.9)]), images.head(1), folder, flip=True)
    assert table["model"].tolist() == ["rcnn_flip"]
    assert table.iloc[0, 3:].tolist() == pytest.approx([1 - BOX[2], BOX[1], 1 - BOX[0], BOX[3]])


def test_levels_are_the_mean_over_a_studys_films(films):
    folder, images = films
    two = images.head(2).assign(study_id="one")
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.2, 0.3, 0.4, 0.1]]))
    table = predict("study", SMALL.study, Fixed(logits), two, folder)
    study, *probabilities = study_levels(table).iloc[0]
    assert study == "one"
    assert probabilities == pytest.approx([0.3, 0.3, 0.3, 0.1])


def test_measure_detector_counts_boxes_on_all_films(films):
    """Two of eight films have the box; it is found on all with one score. Equal scores keep the films' order, so the
    two hits stand at ranks 2 and 6 and the area is (1/2 + 2/6) / 2."""
    folder, images = films
    value = stages.measure("rcnn", SMALL.rcnn, Fixed([(BOX, 0.5)]), images, folder)
    assert value == pytest.approx((1 / 2 + 2 / 6) / 2)


def test_measure_study_is_the_mean_ap_of_the_levels(films):
    folder, images = films
    four = images.head(4)
    assert stages.measure("study", SMALL.study, Fixed(torch.eye(4) * 9), four, folder) == 1.0
    wrong = torch.eye(4)[[1, 0, 3, 2]] * 9  # each level's own film ties for the last three places
    assert stages.measure("study", SMALL.study, Fixed(wrong), four, folder) < 0.6


def test_features_are_what_the_backbone_says(films):
    folder, images = films
    config = replace(SMALL.study, size=64)
    model = checkpoint.build_model("study", config).eval()
    dataset = Films(images, folder, 64, Augment(flip=1.0))
    features = stages.Features(dataset, model, views=2, batch=3)
    plain, flipped = torch.stack([Films(images, folder, 64)[k]["images"] for k in range(8)]), None
    flipped = plain.flip(-1)
    with torch.no_grad():
        for view, pixels in enumerate((plain, flipped)):
            for k, expected in enumerate(model.features(pixels)):
                for epoch in (view, view + 2):
                    sample = features[epoch * 8 + k]
                    assert torch.allclose(sample["features"], expected, atol=1e-5)
    assert features[3]["levels"] == 3


def test_fit_leaves_out_what_nobody_annotated(films, tmp_path, monkeypatch):
    folder, images = films
    seen = {}
    monkeypatch.setattr(
        stages, "train", lambda stage, config, model, dataset, out, **options: seen.update(options, n=dataset)
    )
    monkeypatch.setattr(weights, "start", lambda *arguments: {})
    preset = load_preset("small", {"rcnn.size": 64, "rcnn.training.balance": "oversample"})
    stages.fit("rcnn", preset, images, folder, tmp_path, tmp_path)
    assert seen["n"].image_ids == [f"film{k}" for k in range(7)]
    assert seen["chances"] == [1 / 2, 1 / 2, 1 / 2, 1, 1 / 2, 1 / 2, 1 / 2]
    assert seen["evaluate"] is None


def test_fit_holds_a_fold_of_patients_out(films, tmp_path, monkeypatch):
    folder, images = films
    seen = {}
    monkeypatch.setattr(
        stages, "train", lambda stage, config, model, dataset, out, **options: seen.update(options, n=dataset)
    )
    monkeypatch.setattr(stages, "measure", lambda stage, config, model, held_out, cache: held_out)
    monkeypatch.setattr(weights, "start", lambda *arguments: {})
    preset = load_preset("small", {"rcnn.size": 64, "rcnn.training.validate": True, "folds": 2})
    stages.fit("rcnn", preset, images, folder, tmp_path, tmp_path)
    held_out = seen["evaluate"](None)
    patient = images.set_index("image_id")["patient_id"]
    assert len(held_out) > 0
    assert not set(held_out["patient_id"]) & set(patient[seen["n"].image_ids])


def test_fit_without_films(films, tmp_path):
    folder, images = films
    with pytest.raises(InputError, match="no films"):
        stages.fit("rcnn", SMALL, images.assign(split="test"), folder, tmp_path, tmp_path)


def test_measure_backbone_is_the_mean_auc_of_findings_that_vary(films):
    """One finding told perfectly, one the wrong way round, one no better than chance; twelve that no film has."""
    folder, images = films
    truth, logits = np.zeros((8, 15), int), np.zeros((8, 15))
    truth[:4, 0] = truth[:4, 1] = truth[:4, 2] = 1
    logits[:4, 0], logits[:4, 1] = 1, -1
    table = images.join(pd.DataFrame(truth, columns=list(LABELS)))
    config = replace(SMALL.backbone, size=64, infer_size=64)
    assert stages.measure("backbone", config, Fixed(torch.tensor(logits)), table, folder) == pytest.approx(0.5)
    perfect = np.where(truth == 1, 3.0, -3.0)
    assert stages.measure("backbone", config, Fixed(torch.tensor(perfect)), table, folder) == 1.0


def test_balance_by_weights(films, tmp_path, monkeypatch):
    """Seven annotated films, two of each level but one atypical: weights 7 / 4 / number, whose mean over films is 1."""
    folder, images = films
    seen = {}
    monkeypatch.setattr(stages, "train", lambda stage, config, model, dataset, out, **options: seen.update(model=model))
    settings = {"study.size": 32, "study.views": 0, "study.training.balance": "weights"}
    stages.fit("study", load_preset("small", settings), images, folder, None, tmp_path)
    assert seen["model"].level_weights.tolist() == pytest.approx([7 / 8, 7 / 8, 7 / 8, 7 / 4])
