"""`siimcovid.load`: three lines of Python from a weights folder to boxes in pixels, and a picture of them."""

import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torch

import siimcovid
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.presets import DEMO, load_preset
from siimcovid.models import checkpoints, weights_manifest
from siimcovid.models.out_of_distribution import SENTENCE
from support.tiny_weights import SIDE, write_weights

PIXELS = np.random.default_rng(0).integers(0, 256, (150, 200), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return siimcovid.load(write_weights(tmp_path_factory.mktemp("weights")))


def test_importing_the_package_imports_nothing_else():
    code = "import sys, siimcovid; print([name for name in ('torch', 'numpy', 'pandas') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_script_without_main_guard_may_predict(tmp_path):
    """No process is started that would import the script again."""
    write_weights(tmp_path / "weights")
    cv2.imwrite(str(tmp_path / "image.png"), PIXELS)
    script = tmp_path / "script.py"
    script.write_text("import siimcovid\nprint(len(siimcovid.load('weights').predict('image.png').study_probs))\n")
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "4\n", done.stderr


def test_an_image_and_its_file_are_predicted_alike(model, tmp_path):
    cv2.imwrite(str(tmp_path / "image.png"), PIXELS)
    one, two = model.predict(PIXELS, threshold=0.0), model.predict(tmp_path / "image.png", threshold=0.0)
    assert (one.boxes, one.none, one.study_probs) == (two.boxes, two.none, two.study_probs)
    assert (one.rows, one.columns) == PIXELS.shape
    assert one.name == "image 1"
    assert two.name == str(tmp_path / "image.png")
    assert set(one.study_probs) == set(STUDY_LABELS)
    assert one.label == max(one.study_probs, key=one.study_probs.get)
    assert len(one.boxes) > 1
    assert [box.score for box in one.boxes] == sorted((box.score for box in one.boxes), reverse=True)
    for _, xmin, ymin, xmax, ymax in one.boxes:
        assert 0 <= xmin < xmax <= 200
        assert 0 <= ymin < ymax <= 150
    limit = one.boxes[1].score
    assert model.predict(PIXELS, threshold=limit).boxes == tuple(box for box in one.boxes if box.score >= limit)


def test_a_study_has_the_mean_of_its_images(model):
    other = 255 - PIXELS
    together = model.predict_study([PIXELS, other])
    assert together[0].study_probs == together[1].study_probs
    singles = [list(model.predict(image).study_probs.values()) for image in (PIXELS, other)]
    assert list(together[0].study_probs.values()) == pytest.approx(np.mean(singles, axis=0), abs=1e-6)


def test_the_plot_has_the_boxes_in_pixels(model):
    matplotlib.use("Agg")
    prediction = model.predict(PIXELS, threshold=0.0)
    axes = prediction.plot()
    assert [patch.get_xy() for patch in axes.patches] == [(box.xmin, box.ymin) for box in prediction.boxes]
    assert axes.get_xlim() == (0, 200)
    assert axes.get_ylim() == (150, 0)
    assert "not for diagnosis" in axes.get_xlabel()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("absent.png", "absent.png cannot be read .No such file or directory.; name an image file"),
        (PIXELS.astype(np.uint16), "an image is uint16 .150, 200.; give uint8"),
        (np.stack([PIXELS] * 3, axis=2), "an image is uint8 .150, 200, 3.; give uint8"),
        (PIXELS[:0], "an image is uint8 .0, 200.; give uint8"),
    ],
)
def test_what_is_no_image_is_one_sentence(model, image, words):
    with pytest.raises(InputError, match=words):
        model.predict(image)


def test_a_detector_alone(tmp_path):
    alone = siimcovid.load(write_weights(tmp_path / "weights", ("yolo",))).predict(PIXELS, threshold=0.0)
    assert alone.study_probs == {}
    assert alone.label == ""
    assert 0 <= alone.none <= 1
    study = siimcovid.load(write_weights(tmp_path / "study", ("study",))).predict(PIXELS)
    assert sum(study.study_probs.values()) == pytest.approx(1)
    assert study.boxes == ()
    assert np.isnan(study.none)


def spoil(folder: Path, how: str) -> None:
    path = folder / "yolo.safetensors"
    if how == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "stage":
        path.write_bytes((folder / "rcnn.safetensors").read_bytes())
        weights_manifest.register_trained(path, "yolo", load_preset("demo"), "nothing")
    elif how == "nan":
        _, config, model = checkpoints.load(path)
        next(model.parameters()).data.fill_(torch.nan)
        checkpoints.save(path, model, "yolo", config)
        weights_manifest.register_trained(path, "yolo", load_preset("demo"), "nothing")
    elif how == "none":
        for stage in ("rcnn", "yolo", "study"):
            (folder / f"{stage}.safetensors").unlink()
        (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", r"yolo\.safetensors is damaged: its checksum"),
        ("stage", r"yolo\.safetensors holds stage rcnn, not yolo"),
        ("nan", r"yolo\.safetensors: the weights .* not finite; train stage yolo again"),
        (
            "none",
            r"holds no trained model .yolo\.safetensors, rcnn\.safetensors, study\.safetensors.: name the weights/",
        ),
    ],
)
def test_wrong_weights_are_one_sentence(tmp_path, how, words):
    spoil(write_weights(tmp_path), how)
    with pytest.raises(InputError, match=words):
        siimcovid.load(tmp_path)


def test_the_preset_and_the_fitted_numbers_are_used(tmp_path, model):
    """ensemble.json changes the prediction and the identity by which finished work is known."""
    from siimcovid.inference import fitted_numbers

    folder = write_weights(tmp_path)
    fitted_numbers.write(folder, {"fusion.calibration": [1.0, 3.0, 1.0, 3.0]}, DEMO, "nothing")
    changed = siimcovid.load(folder)
    assert changed.preset.fusion.calibration == (1.0, 3.0, 1.0, 3.0)
    assert changed.identity != model.identity
    assert changed.predict(PIXELS).none < model.predict(PIXELS).none
    assert changed.models["rcnn"][0].infer_size == SIDE


def test_an_image_unlike_those_of_training_has_a_notice_more(tmp_path):
    """The limit is put below every distance, then above; the sentence is the only difference."""
    config = override(DEMO.study, {"size": SIDE, "infer_size": SIDE, "typical_images": 2})
    found = []
    for limit in (-60.0, 60.0):
        torch.manual_seed(0)
        network = checkpoints.build_model("study", config)
        network.unlike.limit.fill_(limit)
        folder = tmp_path / str(limit)
        checkpoints.save(folder / "study.safetensors", network, "study", config)
        weights_manifest.register_trained(folder / "study.safetensors", "study", DEMO, "nothing")
        found.append(siimcovid.load(folder).predict(PIXELS))
    assert found[0].notices == (*found[1].notices, SENTENCE)
    assert found[0].study_probs == found[1].study_probs
