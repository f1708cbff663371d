"""Stages: which images are trained on, what is computed once, how a model is measured; predictions as tables."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from siimcovid.core.configuration import Augment
from siimcovid.core.errors import InputError
from siimcovid.core.labels import NIH_FINDINGS
from siimcovid.core.overrides import override
from siimcovid.core.presets import DEMO, load_preset
from siimcovid.data import folds
from siimcovid.data.datasets import ImageDataset
from siimcovid.inference.predictor import predict_table, study_probabilities
from siimcovid.models import checkpoints, weights_manifest
from siimcovid.training import train_stage
from siimcovid.training.frozen_features import FeatureCache, FrozenFeatures
from siimcovid.training.training_identity import differences
from support.tiny_stages import BOX, Fixed, eight_images

pytestmark = pytest.mark.slow


@pytest.fixture
def cached_images(tmp_path) -> tuple:
    return eight_images(tmp_path)


def test_detections_table(cached_images):
    folder, images = cached_images
    table = predict_table("rcnn", DEMO.rcnn, Fixed([(BOX, 0.9), ([0.0, 0.0, 0.1, 0.1], 0.2)]), images.head(3), folder)
    assert table.columns.tolist() == ["image_id", "model", "score", "x1", "y1", "x2", "y2"]
    assert table["image_id"].tolist() == ["image0", "image0", "image1", "image1", "image2", "image2"]
    assert table.iloc[0, 2:].tolist() == pytest.approx([0.9, *BOX])


def test_mirrored_images_give_boxes_of_the_images_themselves(cached_images):
    folder, images = cached_images
    table = predict_table("rcnn", DEMO.rcnn, Fixed([(BOX, 0.9)]), images.head(1), folder, hflip=True)
    assert table["model"].tolist() == ["rcnn_hflip"]
    assert table.iloc[0, 3:].tolist() == pytest.approx([1 - BOX[2], BOX[1], 1 - BOX[0], BOX[3]])


def test_labels_are_the_mean_over_a_studys_images(cached_images):
    folder, images = cached_images
    two = images.head(2).assign(study_id="one")
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.2, 0.3, 0.4, 0.1]]))
    table = predict_table("study", DEMO.study, Fixed(logits), two, folder)
    study, *probabilities = study_probabilities(table).iloc[0]
    assert study == "one"
    assert probabilities == pytest.approx([0.3, 0.3, 0.3, 0.1])


def test_measure_detector_counts_boxes_on_all_images(cached_images):
    """Two of eight images have the box; it is found on all with one score. Equal scores keep the images' order, so the
    two hits stand at ranks 2 and 6 and the area is (1/2 + 2/6) / 2."""
    folder, images = cached_images
    value = train_stage.measure("rcnn", DEMO.rcnn, Fixed([(BOX, 0.5)]), images, folder)
    assert value == pytest.approx((1 / 2 + 2 / 6) / 2)


def test_measure_study_is_the_mean_ap_of_the_labels(cached_images):
    folder, images = cached_images
    four = images.head(4)
    assert train_stage.measure("study", DEMO.study, Fixed(torch.eye(4) * 9), four, folder) == 1.0
    wrong = torch.eye(4)[[1, 0, 3, 2]] * 9  # each study label's own image ties for the last three places
    assert train_stage.measure("study", DEMO.study, Fixed(wrong), four, folder) < 0.6


def test_features_are_what_the_backbone_says(cached_images):
    folder, images = cached_images
    config = replace(DEMO.study, size=64)
    model = checkpoints.build_model("study", config).eval()
    dataset = ImageDataset(images, folder, 64, Augment(hflip=1.0))
    features = FrozenFeatures(dataset, model, views=2, batch=3)
    plain, flipped = torch.stack([ImageDataset(images, folder, 64)[k]["images"] for k in range(8)]), None
    flipped = plain.flip(-1)
    with torch.no_grad():
        for view, pixels in enumerate((plain, flipped)):
            for k, expected in enumerate(model.features(pixels)):
                for epoch in (view, view + 2):
                    sample = features[epoch * 8 + k]
                    assert torch.allclose(sample["features"], expected, atol=1e-5)
    assert features[3]["study_labels"] == 3


def test_fit_leaves_out_what_nobody_annotated(cached_images, tmp_path, monkeypatch):
    folder, images = cached_images
    seen = {}
    monkeypatch.setattr(
        train_stage, "train", lambda stage, config, model, dataset, out, **options: seen.update(options, n=dataset)
    )
    preset = load_preset("demo", {"rcnn.size": 64, "rcnn.training.balance": "oversample"})
    train_stage.fit("rcnn", preset, images, folder, None, tmp_path)
    assert seen["n"].image_ids == [f"image{k}" for k in range(7)]
    assert seen["sampling_weights"] == [1 / 2, 1 / 2, 1 / 2, 1, 1 / 2, 1 / 2, 1 / 2]
    assert seen["evaluate"] is None


def test_fit_holds_a_fold_of_patients_out(cached_images, tmp_path, monkeypatch):
    folder, images = cached_images
    seen = {}
    monkeypatch.setattr(
        train_stage, "train", lambda stage, config, model, dataset, out, **options: seen.update(options, n=dataset)
    )
    measured = []
    monkeypatch.setattr(train_stage, "measure", lambda *arguments: measured.append(arguments[3]) or 0.0)
    preset = load_preset("demo", {"rcnn.size": 64, "rcnn.training.validate": True, "folds": 2})
    train_stage.fit("rcnn", preset, images, folder, None, tmp_path)
    assert seen["evaluate"](None) == 0.0
    held_out = measured[0]
    patient = images.set_index("image_id")["patient_id"]
    assert len(held_out) > 0
    assert not set(held_out["patient_id"]) & set(patient[seen["n"].image_ids])


@pytest.mark.parametrize(
    ("metrics", "side", "metric"),
    [
        ({64: 0.2, 32: 0.5}, 32, 0.5),
        ({64: 0.5, 32: 0.2}, 64, 0.5),
        ({64: 0.3, 32: 0.3}, 64, 0.3),
        ({64: float("nan"), 32: float("nan")}, 64, None),
    ],
)
def test_a_model_predicts_at_the_better_size(cached_images, tmp_path, monkeypatch, capsys, metrics, side, metric):
    """Trained at 32 pixels to predict at 64, as the report's Faster R-CNN is at 512 and 1024: the fold held out chooses
    each epoch's metric and, in the end, the checkpoint's size. It changes nothing of the identity."""
    folder, images = cached_images
    monkeypatch.setattr(train_stage, "measure", lambda stage, config, *arguments: metrics[config.infer_size])
    preset = load_preset("demo", SETTINGS | {"study.infer_size": 64, "study.training.validate": True})
    path = train_stage.fit("study", preset, images, folder, None, tmp_path)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert checkpoints.load(path)[1] == replace(preset.study, infer_size=side)
    assert facts["epochs"][0]["metric"] == metric
    assert f"study predicts at {side} pixels" in capsys.readouterr().out
    assert train_stage.fit("study", preset, images, folder, None, tmp_path) == path
    assert "predicts at" not in capsys.readouterr().out


@pytest.mark.parametrize("settings", [{"study.infer_size": 64}, {"study.training.validate": True}])
def test_a_model_of_one_size_or_without_a_fold_keeps_its_size(cached_images, tmp_path, monkeypatch, settings):
    folder, images = cached_images
    monkeypatch.setattr(train_stage, "measure", lambda *arguments: 0.5)
    preset = load_preset("demo", SETTINGS | settings)
    path = train_stage.fit("study", preset, images, folder, None, tmp_path)
    assert checkpoints.load(path)[1] == preset.study


@pytest.mark.parametrize(
    ("patients", "said"), [(3, "there are 3"), (1, "no fold is held out and the last epoch is kept")]
)
def test_fewer_patients_than_folds(cached_images, tmp_path, patients, said):
    """A handful of images trains all the same: with a fold for each patient, or without one."""
    folder, images = cached_images
    images = images.assign(patient_id=[f"patient{k % patients}" for k in range(len(images))])
    warnings = []
    preset = load_preset("demo", SETTINGS | {"study.training.validate": True, "folds": 5})
    path = train_stage.fit("study", preset, images, folder, None, tmp_path, warn=warnings.append)
    assert warnings == [f"study has images of {patients} patients, which do not make 5 folds, so {said}"]
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["finished"]
    assert (facts["epochs"][0]["metric"] is None) == (patients == 1)
    assert len(train_stage.held_out_fold("study", preset, images, folder)) == (0 if patients == 1 else 3)


def test_fit_without_images(cached_images, tmp_path):
    folder, images = cached_images
    with pytest.raises(InputError, match="no images"):
        train_stage.fit("rcnn", DEMO, images.assign(split="test"), folder, tmp_path, tmp_path)


def test_measure_backbone_is_the_mean_auc_of_findings_that_vary(cached_images):
    """One finding told perfectly, one the wrong way round, one no better than chance; twelve that no image has."""
    folder, images = cached_images
    truth, logits = np.zeros((8, 15), int), np.zeros((8, 15))
    truth[:4, 0] = truth[:4, 1] = truth[:4, 2] = 1
    logits[:4, 0], logits[:4, 1] = 1, -1
    table = images.join(pd.DataFrame(truth, columns=list(NIH_FINDINGS)))
    config = replace(DEMO.backbone, size=64, infer_size=64)
    assert train_stage.measure("backbone", config, Fixed(torch.tensor(logits)), table, folder) == pytest.approx(0.5)
    perfect = np.where(truth == 1, 3.0, -3.0)
    assert train_stage.measure("backbone", config, Fixed(torch.tensor(perfect)), table, folder) == 1.0


def test_balance_by_weights(cached_images, tmp_path, monkeypatch):
    """Seven annotated images, two of each study label but one atypical: weights 7 / 4 / number, whose mean over
    images is 1."""
    folder, images = cached_images
    seen = {}
    monkeypatch.setattr(
        train_stage, "train", lambda stage, config, model, dataset, out, **options: seen.update(model=model)
    )
    settings = {"study.size": 32, "study.views": 0, "study.training.balance": "weights"}
    train_stage.fit("study", load_preset("demo", settings), images, folder, None, tmp_path)
    assert seen["model"].label_weights.tolist() == pytest.approx([7 / 8, 7 / 8, 7 / 8, 7 / 4])


def test_features_are_computed_once_for_all_models_on_them(cached_images):
    """A cache passed on gives the next model the same table; another backbone, other images or views a new one."""
    folder, images = cached_images
    torch.manual_seed(0)
    one, other = (checkpoints.build_model("study", replace(DEMO.study, size=64)).eval() for _ in range(2))
    samples, cache = ImageDataset(images, folder, 64), FeatureCache()
    first = FrozenFeatures(samples, one, 1, 3, cache).table
    assert FrozenFeatures(samples, one, 1, 4, cache).table is first
    assert FrozenFeatures(samples, one, 1, 3).table is not first
    assert FrozenFeatures(samples, other, 1, 3, cache).table is not first
    for changed in (ImageDataset(images.head(4), folder, 64), ImageDataset(images, folder, 64, seed=1)):
        before = FrozenFeatures(samples, one, 1, 3, cache).table
        assert FrozenFeatures(changed, one, 1, 3, cache).table is not before
    assert samples.augment is None


SETTINGS = {"study.size": 32, "study.infer_size": 32, "study.views": 0, "study.training.epochs": 1, "folds": 3}


def test_a_stage_is_trained_anew_where_its_identity_is_another(cached_images, tmp_path, capsys):
    """Another fold, corrected labels or boxes, other start weights or another cache: anew. All as before: not."""
    folder, images = cached_images
    images = images[images["study_label"].notna()]
    preset = load_preset("demo", SETTINGS | {"study.training.validate": True})
    starts = []
    for seed in range(2):
        torch.manual_seed(seed)
        path = tmp_path / f"start{seed}" / "study.safetensors"
        path.parent.mkdir()
        checkpoints.save(path, checkpoints.build_model("study", preset.study), "study", preset.study)
        weights_manifest.register_trained(path, "study", preset, "others")
        starts.append(path.parent)
    labels = images["study_label"].where(images["image_id"] != "image0", "atypical")
    boxes = images["boxes"].map(lambda found: [[0.1, *box[1:]] for box in found])
    cases = [
        (preset, images, starts[0]),
        (override(preset, {"fold": 1}), images, starts[0]),
        (preset, images.assign(study_label=labels), starts[0]),
        (preset, images.assign(boxes=boxes), starts[0]),
        (preset, images, starts[1]),
        (preset, images, None),
        (override(preset, {"cache_size": 300}), images, starts[0]),
        (override(preset, {"seed": 1}), images, starts[0]),
        (preset, images, starts[0]),
    ]
    for given in cases:
        for trained in (True, False):
            out = tmp_path / "out"
            train_stage.fit("study", given[0], given[1], folder, given[2], out)
            assert ("study 1/1" in capsys.readouterr().out) == trained


def test_identities_know_nothing_of_places_and_memory(cached_images, tmp_path):
    """The same in a copy of the cache, and with half the batch at the same images per update."""
    folder, images = cached_images
    preset = load_preset("demo", SETTINGS | {"study.training.batch": 8})
    half = override(preset, {"study.training.batch": 4, "study.training.nominal_batch": 8})
    (tmp_path / "copy").mkdir()
    one = train_stage.identity_of("study", preset, images, folder, None, tmp_path)
    assert train_stage.identity_of("study", half, images, tmp_path / "copy", None, tmp_path / "out") == one
    fewer = override(preset, {"study.training.batch": 4})
    assert differences(one, train_stage.identity_of("study", fewer, images, folder, None)) == [
        "config.training.nominal_batch"
    ]
    assert str(tmp_path) not in json.dumps(one)


def test_the_same_command_with_its_own_folder_of_weights(cached_images, tmp_path, capsys):
    """A stage that is trained into the folder it starts from does not start from itself the second time."""
    folder, images = cached_images
    out = tmp_path / "out"
    preset = load_preset("demo", SETTINGS)
    torch.manual_seed(0)
    model = checkpoints.build_model("study", preset.study).backbone
    out.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, out / f"{preset.study.backbone}.safetensors")
    entry = {"stage": "backbone", "architecture": preset.study.backbone, "source": "", "licence": "", "preset": "demo"}
    weights_manifest.register(out / f"{preset.study.backbone}.safetensors", **entry)
    for trained in (True, False):
        path = train_stage.fit("study", preset, images, folder, out, out)
        weights_manifest.register_trained(path, "study", preset, "competition")
        assert ("study 1/1" in capsys.readouterr().out) == trained


def test_a_fold_is_held_out_by_all_stages_where_it_is_large_enough(cached_images, monkeypatch):
    folder, images = cached_images
    holds = override(DEMO, {"hold_out": True, "folds": 2, "duplicates": False})
    for stage in ("rcnn", "yolo", "study"):
        everything = train_stage.split_images(stage, DEMO, images, folder)[0]
        assert train_stage.split_images(stage, holds, images, folder)[0].equals(everything)  # too few to fit on
        assert train_stage.held_out_fold(stage, holds, images, folder).empty
    monkeypatch.setattr(folds, "FEWEST", 2)
    monkeypatch.setattr(folds, "FEWEST_OF_A_KIND", 0)
    held = []
    for stage in ("rcnn", "yolo", "study"):
        chosen, by_which_an_epoch_is_chosen = train_stage.split_images(stage, holds, images, folder)
        held_out = train_stage.held_out_fold(stage, holds, images, folder)
        assert by_which_an_epoch_is_chosen is None
        assert len(held_out)
        assert not set(held_out["patient_id"]) & set(chosen["patient_id"])
        held.append(held_out["image_id"].tolist())
    assert held[0] == held[1] == held[2]
    validates = override(DEMO, {"rcnn.training.validate": True, "folds": 2, "duplicates": False})
    chosen, held_out = train_stage.split_images("rcnn", validates, images, folder)
    assert held_out.equals(train_stage.held_out_fold("rcnn", validates, images, folder))
