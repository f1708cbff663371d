"""Presets: the report's numbers are there, overrides are checked, a configuration survives JSON."""

import json

import pytest

from siimcovid.core.configuration import STAGES, Preset, RetinanetConfig
from siimcovid.core.errors import InputError
from siimcovid.core.overrides import from_dict, leaf_keys, to_dict
from siimcovid.core.presets import FULL, PRESETS, load_preset

#: Dotted key, value, and where the report says so.
REPORT = [
    ("backbone.backbone", "resnext101_32x8d", "3.1"),
    ("backbone.size", 256, "3.1"),
    ("backbone.augment.crop", 224, "3.1"),
    ("backbone.augment.hflip", 0.5, "3.1"),
    ("backbone.augment.blur", 0.3, "3.1"),
    ("backbone.augment.shift_rotate", 1.0, "3.1"),
    ("backbone.augment.degrees", 20, "3.1"),
    ("backbone.augment.erase", 0.3, "3.1"),
    ("backbone.training.optimizer", "sgd", "3.1"),
    ("backbone.training.nesterov", True, "3.1"),
    ("backbone.training.batch", 32, "3.1"),
    ("backbone.training.epochs", 35, "3.1"),
    ("backbone.training.learning_rate", 0.001, "3.1"),
    ("backbone.training.schedule", "cosine", "3.1, equation 1"),
    ("backbone.training.floor", 0.05, "3.1, equation 1"),
    ("backbone.training.step_epochs", 2, "3.1"),
    ("rcnn.backbone", "resnext101_32x8d", "3.1"),
    ("rcnn.size", 512, "3.1"),
    ("rcnn.infer_size", 1024, "3.1"),
    ("rcnn.infer_batch", 6, "3.1"),
    ("rcnn.training.epochs", 50, "3.1"),
    ("rcnn.training.batch", 10, "3.1"),
    ("rcnn.training.learning_rate", 0.001, "3.1"),
    ("rcnn.training.optimizer", "sgd", "3.1"),
    ("rcnn.training.nesterov", True, "3.1"),
    ("rcnn.box_loss", "smooth_l1", "3.1"),
    ("rcnn.training.floor", 0.05, "3.1, equation 1"),
    ("rcnn.training.step_epochs", 2, "3.1"),
    ("rcnn.augment.hflip", 0.3, "3.1"),
    ("rcnn.augment.shift_rotate", 0.3, "3.1"),
    ("rcnn.augment.degrees", 20, "3.1"),
    ("rcnn.augment.sharpen", 0.5, "3.1"),
    ("rcnn.augment.blur", 0.25, "3.1"),
    ("rcnn.augment.brightness_contrast", 0.3, "3.1"),
    ("rcnn.augment.cutouts", 0.3, "3.1"),
    ("yolo.architecture", "yolov5l", "3.2"),
    ("yolo.size", 512, "3.2"),
    ("yolo.box_loss", "GIoU", "3.2"),
    ("yolo.box_gain", 0.075, "3.2, equation 2"),
    ("yolo.class_gain", 0.05, "3.2, equation 2"),
    ("yolo.object_gain", 0.75, "3.2, equation 2"),
    ("yolo.rsna_epochs", 30, "3.2"),
    ("yolo.training.optimizer", "sgd", "3.2"),
    ("yolo.training.schedule", "cosine", "3.2"),
    ("yolo.training.floor", 0.05, "3.2"),
    ("yolo.training.epochs", 35, "3.2"),
    ("yolo.training.learning_rate", 0.01, "3.2"),
    ("yolo.training.momentum", 0.937, "3.2"),
    ("yolo.training.weight_decay", 0.0005, "3.2"),
    ("yolo.training.batch", 3, "3.2"),
    ("yolo.training.nominal_batch", 64, "3.2"),
    ("yolo.training.warmup", 1000, "3.2"),
    ("yolo.augment.hflip", 0.5, "3.2"),
    ("yolo.augment.vflip", 0.1, "3.2"),
    ("yolo.augment.mixup", 0.5, "3.2"),
    ("study.backbone", "resnext101_32x8d", "3.4"),
    ("study.frozen", True, "3.4"),
    ("study.hidden", 1024, "3.4"),
    ("study.training.epochs", 58, "3.4"),
    ("study.training.batch", 15, "3.4"),
    ("study.training.learning_rate", 0.0005, "3.4"),
    ("study.size", 256, "3.1"),
    ("study.augment.crop", 224, "3.1"),
    ("study.augment.hflip", 0.5, "3.1"),
    ("study.augment.blur", 0.3, "3.1"),
    ("study.augment.shift_rotate", 1.0, "3.1"),
    ("study.augment.erase", 0.3, "3.1"),
    ("study.augment.degrees", 20, "3.1"),
    ("study.training.optimizer", "sgd", "3.4"),
    ("study.training.schedule", "cosine", "3.4"),
    ("fusion.iou", 0.55, "3.3"),
    ("fusion.weights", (1.0, 1.0), "3.3"),
]

#: Dotted key, value, and where Lin et al. 2017 ("Focal Loss for Dense Object Detection") say so.
PAPER = [
    ("retinanet.anchor_sides", (32, 64, 128, 256, 512), "4, Anchors"),
    ("retinanet.anchor_scales", (1, 2 ** (1 / 3), 2 ** (2 / 3)), "4, Anchors"),
    ("retinanet.anchor_ratios", (0.5, 1, 2), "4, Anchors"),
    ("retinanet.first_stage", 2, "4, Feature Pyramid Network Backbone: from study label 3, stride 8"),
    ("retinanet.pyramid_channels", 256, "4, Feature Pyramid Network Backbone"),
    ("retinanet.tower_convolutions", 4, "4, Classification Subnet"),
    ("retinanet.tower_groups", 0, "4, Classification Subnet"),
    ("retinanet.box_loss", "smooth_l1", "4.1, Optimization"),
    ("retinanet.candidates", 1000, "4.1, Inference"),
    ("retinanet.nms_iou", 0.5, "4.1, Inference"),
    ("retinanet.training.optimizer", "sgd", "4.1, Optimization"),
    ("retinanet.training.nominal_batch", 16, "4.1, Optimization"),
    ("retinanet.training.learning_rate", 0.01, "4.1, Optimization"),
    ("retinanet.training.momentum", 0.9, "4.1, Optimization"),
    ("retinanet.training.weight_decay", 0.0001, "4.1, Optimization"),
]


#: Dotted key and value of preset `best`, as the tables of docs/best.md have them.
COMPETES = [
    *(("backbone.size", 384), ("backbone.training.epochs", 6), ("backbone.training.batch", 48)),
    *(("backbone.training.learning_rate", 3e-4), ("backbone.training.schedule", "one_cycle")),
    *(("backbone.training.ema", 0.999), ("backbone.backbone", "efficientnet_v2_m")),
    *(("study.backbone", "efficientnet_v2_m"), ("study.size", 512), ("study.frozen", False), ("study.hidden", 1024)),
    *(("study.dropout", 0.5), ("study.mask", 32), ("study.none", 0.25), ("study.hflip_tta", True)),
    *(("study.training.epochs", 20), ("study.training.batch", 12), ("study.training.learning_rate", 3e-4)),
    *(("study.training.weight_decay", 0.01), ("study.training.step_epochs", 0), ("study.training.warmup", 400)),
    *(("study.training.clip_norm", 1), ("study.training.ema", 0.997), ("study.augment.mixup", 0)),
    *(("study.augment.degrees", 25), ("study.augment.crop_area", 0.5), ("study.augment.rectangle_side", 0.4)),
    *(("rcnn.backbone", "efficientnet_v2_m"), ("rcnn.size", 768), ("rcnn.anchor_sides", (72, 144, 288, 480))),
    *(("rcnn.training.epochs", 12), ("rcnn.rsna_epochs", 10), ("rcnn.training.batch", 4)),
    *(("rcnn.training.nominal_batch", 16), ("rcnn.training.learning_rate", 2e-4), ("rcnn.training.ema", 0.997)),
    *(("rcnn.augment.degrees", 10), ("rcnn.augment.rectangle_count", 8)),
    *(("yolo.architecture", "yolov5l"), ("yolo.size", 640), ("yolo.training.epochs", 30), ("yolo.rsna_epochs", 15)),
    *(("yolo.training.batch", 12), ("yolo.training.nominal_batch", 64), ("yolo.training.learning_rate", 0.01)),
    *(("yolo.training.momentum", 0.937), ("yolo.training.weight_decay", 5e-4), ("yolo.box_loss", "CIoU")),
    *(("yolo.box_gain", 0.05), ("yolo.class_gain", 0.5), ("yolo.object_gain", 1), ("yolo.augment.mosaic", 1)),
    *(("yolo.augment.mixup", 0.25), ("yolo.augment.scale", 0.5), ("yolo.augment.shift", 0.1)),
    *(("yolo.augment.value_gain", 0.4), ("members", 5), ("folds", 5), ("fusion.iou", 0.6), ("fusion.max_boxes", 30)),
    *(("fusion.hflip_tta", True), ("pseudo.epochs", 0)),
]


def value_at(preset: Preset, key: str) -> object:
    for part in key.split("."):
        preset = getattr(preset, part)
    return preset


@pytest.mark.parametrize(("key", "value", "section"), REPORT)
def test_full_holds_the_reports_numbers(key, value, section):
    assert value_at(FULL, key) == value, f"report, section {section}"


@pytest.mark.parametrize(("key", "value"), COMPETES)
def test_best_holds_its_recipes_numbers(key, value):
    assert value_at(PRESETS["best"], key) == value


def test_yolo_warms_up_for_three_epochs_of_a_fold():
    """4,900 images are four of five folds; the weights are updated after each nominal batch."""
    training = PRESETS["best"].yolo.training
    updates = 3 * 4900 / training.batch / round(training.nominal_batch / training.batch)
    assert training.warmup == pytest.approx(updates, abs=1)


@pytest.mark.parametrize(("key", "value", "section"), PAPER)
def test_full_holds_the_papers_numbers(key, value, section):
    assert value_at(FULL, key) == value, f"Lin et al. 2017, section {section}"


def test_stages_are_what_a_preset_trains():
    assert list(STAGES) == ["backbone", "rcnn", "yolo", "retinanet", "study"]
    assert STAGES["retinanet"] is RetinanetConfig


@pytest.mark.parametrize("name", PRESETS)
def test_survives_json(name):
    preset = load_preset(name)
    assert from_dict(Preset, json.loads(json.dumps(to_dict(preset)))) == preset


@pytest.mark.parametrize(
    ("key", "given", "kept"),
    [
        ("rcnn.training.epochs", 3, 3),
        ("rcnn.training.epochs", "3", 3),
        ("rcnn.training.learning_rate", "1e-3", 0.001),
        ("rcnn.training.learning_rate", 1, 1.0),
        ("study.frozen", "false", False),
        ("fusion.weights", "2,1", (2.0, 1.0)),
        ("fusion.weights", [2, 1], (2.0, 1.0)),
        ("yolo.box_loss", "CIoU", "CIoU"),
        ("yolo.backbone", "", ""),
    ],
)
def test_override(key, given, kept):
    preset = load_preset("demo", {key: given})
    assert value_at(preset, key) == kept
    assert type(value_at(preset, key)) is type(kept)
    changed = [k for k in leaf_keys(preset) if value_at(preset, k) != value_at(load_preset("demo"), k)]
    assert changed in ([key], [])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rcnn.training.epoch", 3, "did you mean 'rcnn.training.epochs'"),
        ("rcn.training.epochs", 3, "rcnn.training.epochs"),
        ("rcnn.training.epochs", 2.5, "whole number"),
        ("rcnn.training.epochs", True, "whole number"),
        ("rcnn.training.epochs", "many", "whole number"),
        ("rcnn.training.epochs.more", 1, "single value"),
        ("rcnn.training", 3, "group"),
        ("study.frozen", 1, "true or false"),
        ("yolo.box_loss", "MSE", "'GIoU'"),
        ("fusion.weights", 1, "list"),
        ("name", 3, "text"),
    ],
)
def test_override_refuses(key, value, said):
    with pytest.raises(InputError, match=said) as caught:
        load_preset("demo", {key: value})
    assert repr(key) in str(caught.value)


def test_unknown_preset_names_those_there_are():
    with pytest.raises(InputError, match="full or small"):
        load_preset("tiny")


@pytest.mark.parametrize("damage", [{"nmae": "x"}, {"name": 3}, {"rcnn": 1}, {}])
def test_from_dict_refuses(damage):
    values = to_dict(load_preset("demo")) | damage if damage else {}
    with pytest.raises(InputError):
        from_dict(Preset, values)
