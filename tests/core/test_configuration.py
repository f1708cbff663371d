"""Every setting has a range that is checked wherever a configuration comes from, and the message names setting and way
out."""

import json
from dataclasses import replace

import pytest

from siimcovid.core.configuration import Preset, Range
from siimcovid.core.errors import InputError
from siimcovid.core.overrides import check, from_dict, leaf_keys, override, to_dict
from siimcovid.core.presets import DEMO, FULL, PRESETS, load_preset

NUMBER, WHOLE = "a number, ", "a whole number, "


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "text"),
    [
        (Range(1), [1, 1e300], [0.99, 0, -1], "at least 1"),
        (Range(0, above=True), [1e-300], [0, -1], "above 0"),
        (Range(0, 1), [0, 0.5, 1], [-1e-9, 1.1], "from 0 to 1"),
        (Range(0, 1, below=True), [0, 0.99], [1, 2], "at least 0 and below 1"),
        (Range(0, 1e6, above=True), [1, 1e6], [0, 1e6 + 1], "above 0 and at most 1,000,000"),
        (Range(0, 2**32 - 1), [0, 2**32 - 1], [-1, 2**32], "from 0 to 4,294,967,295"),
    ],
)
def test_range(allowed, inside, outside, text):
    assert all(number in allowed for number in inside)
    assert not any(number in allowed for number in [*outside, float("nan")])
    assert str(allowed) == text


#: Key, values that are refused, what the message says that it must be. Values as from Python, JSON or the command line.
REFUSED = [
    ("rcnn.training.epochs", [0, -1, "0", 2.5, "", "1e3.", None, [3], {}, "nan", 1e400], WHOLE + "from 1"),
    ("yolo.training.batch", [0, -4, "0", 1.5, True], WHOLE + "from 1"),
    ("study.infer_batch", [0, "-1"], WHOLE + "from 1"),
    ("study.training.nominal_batch", [-1], WHOLE + "from 0"),
    ("study.training.learning_rate", [0, -1e-3, "0", "nan", "inf", "-inf", 1e400], NUMBER + "above 0"),
    ("study.training.momentum", [-0.1, 1, "1.0", "nan"], NUMBER + "at least 0 and below 1"),
    ("study.training.ema", [1, 1.5, -0.1], NUMBER + "at least 0 and below 1"),
    ("study.training.floor", [-0.1, 1.1], NUMBER + "from 0 to 1"),
    ("study.training.weight_decay", [-1e-9], NUMBER + "from 0"),
    ("study.training.patience", [-1], WHOLE + "from 0"),
    ("study.augment.hflip", [-0.1, 1.01, "2", "nan"], NUMBER + "from 0 to 1"),
    ("study.augment.degrees", [-1, 181], NUMBER + "from 0 to 180"),
    ("study.augment.scale", [1, -0.1], NUMBER + "at least 0 and below 1"),
    ("study.augment.crop", [-1, 10**9], WHOLE + "from 0 to 8,192"),
    ("study.size", [0, -32, 31, 10**9], WHOLE + "from 32 to 8,192"),
    ("cache_size", [0, -1, "31"], WHOLE + "from 32 to 8,192"),
    ("study.dropout", [1, -0.1], NUMBER + "at least 0 and below 1"),
    ("study.label_smoothing", [1, -0.1], NUMBER + "at least 0 and below 1"),
    ("study.hidden", [0, 10**9], WHOLE + "from 1"),
    ("study.views", [-1], WHOLE + "from 0"),
    ("rcnn.score_threshold", [-0.001, 1.5, "nan"], NUMBER + "from 0 to 1"),
    ("yolo.nms_iou", [-0.1, 2], NUMBER + "from 0 to 1"),
    ("retinanet.max_boxes", [0, -1, 10**30], WHOLE + "from 1"),
    ("rcnn.first_stage", [-1, 5], WHOLE + "from 0 to 4"),
    ("rcnn.frozen_stages", [-1, 6], WHOLE + "from 0 to 5"),
    ("rcnn.anchor_sides", [[], "", [0, 8], [32.5]], "whole number, from 1"),
    ("rcnn.anchor_ratios", ["", [0.0], [-1.0], ["nan"]], "a number, from 0.01 to 100"),
    ("retinanet.tower_convolutions", [-1, 5], WHOLE + "from 0 to 4"),
    ("fusion.iou", [-0.1, 1.1], NUMBER + "from 0 to 1"),
    ("fusion.weights", [[-1.0, 1.0], ["inf", 1]], NUMBER + "from 0"),
    ("late_fusion.label_power", [-1], NUMBER + "from 0"),
    ("pseudo.none", [0.4, 1.1], NUMBER + "from 0.5 to 1"),
    ("pseudo.learning_rate", [0], NUMBER + "above 0"),
    ("members", [0, -1], WHOLE + "from 1"),
    ("folds", [0, 1], WHOLE + "at least 2"),
    ("fold", [-1], WHOLE + "from 0"),
    ("seed", [-1, 2**32], WHOLE + "from 0 to 4,294,967,295"),
    ("yolo.architecture", ["yolov5q", "../yolov5n", ""], "one of 'yolov5n'"),
]


@pytest.mark.parametrize(("key", "value", "text"), [(k, v, text) for k, values, text in REFUSED for v in values])
def test_a_value_out_of_range_is_one_sentence(key, value, text):
    with pytest.raises(InputError) as caught:
        load_preset("demo", {key: value})
    message = str(caught.value)
    assert message.startswith(f"setting {key!r} must be ")
    assert text in message
    assert "\n" not in message
    assert len(message) < 400


#: Changes, and the message where they do not fit each other.
UNFIT = [
    ({"yolo.size": 250}, "'yolo.size' must be a multiple of 32, .* not 250: give 224 or 256"),
    ({"yolo.infer_size": 33}, "'yolo.infer_size' must be a multiple of 32, .* not 33: give 32 or 64"),
    ({"rcnn.size": 250}, "'rcnn.size' must be a multiple of 32"),
    ({"retinanet.infer_size": 100}, "'retinanet.infer_size' must be a multiple of 32"),
    (
        {"yolo.architecture": "hub/yolov5n6", "yolo.backbone": "", "yolo.size": 288},
        "'yolo.size' must be a multiple of 64, .* not 288: give 256 or 320",
    ),
    ({"yolo.architecture": "hub/yolov5n6"}, "'yolo.backbone' must be empty for hub/yolov5n6"),
    ({"study.augment.crop": 321}, "'study.augment.crop' must be at most study.size, which is 320"),
    ({"backbone.augment.crop": 257}, "'backbone.augment.crop' must be at most backbone.size"),
    ({"rcnn.augment.crop": 224}, "'rcnn.augment.crop' must be 0, not 224"),
    ({"study.augment.mosaic": 0.5}, "'study.augment.mosaic' must be 0, not 0.5"),
    ({"backbone.augment.mosaic": 1}, "'backbone.augment.mosaic' must be 0"),
    ({"retinanet.tower_groups": 7}, "'retinanet.tower_groups' must divide retinanet.pyramid_channels, which is 96"),
    ({"study.mask": 0.4}, "'study.mask' teaches the backbone"),
    ({"fold": 5}, "'fold' must be below folds, which is 5"),
    ({"fusion.detectors": ["rcnn", "rcnn"]}, "'fusion.detectors' must name one or more detectors, each once"),
    ({"fusion.detectors": ""}, "'fusion.detectors' must name one or more detectors, each once"),
    ({"fusion.weights": "0,0"}, "'fusion.weights' must hold a number above 0"),
]


@pytest.mark.parametrize(("changes", "message"), UNFIT)
def test_values_that_do_not_fit_each_other(changes, message):
    with pytest.raises(InputError, match=f"^setting {message}"):
        load_preset("demo", changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"study.size": 250, "study.infer_size": 100},  # a classifier's map is pooled, whatever its size
        {"study.frozen": False, "study.mask": 0.4},
        {"study.mask": 0.4, "study.frozen": False},  # the order does not matter
        {"yolo.architecture": "hub/yolov5n6", "yolo.backbone": "", "yolo.size": 320},
        {"folds": 9, "fold": 8},
        {"fold": 8, "folds": 9},
    ],
)
def test_values_that_fit_each_other(changes):
    load_preset("demo", changes)


@pytest.mark.parametrize("text", ["8,16,32,64", " 8, 16,32 ,64", "[8, 16, 32, 64]", "(8,16,32,64)", "8,16,32,64,"])
def test_a_list_as_a_text(text):
    assert load_preset("small", {"rcnn.anchor_sides": text}).rcnn.anchor_sides == (8, 16, 32, 64)


@pytest.mark.parametrize("text", ["[8,16,32,64", "[]", "8;16;32;64", "[[8,16],[32,64]]"])
def test_a_text_that_is_no_list(text):
    with pytest.raises(InputError, match="anchor_sides"):
        load_preset("small", {"rcnn.anchor_sides": text})


def test_a_tree_built_in_code_is_checked():
    with pytest.raises(InputError, match=r"'study\.training\.epochs' must be"):
        replace(DEMO, study=replace(DEMO.study, training=replace(DEMO.study.training, epochs=0))).check()
    with pytest.raises(InputError, match=r"'rcnn' must be a RcnnConfig"):
        replace(DEMO, rcnn=None).check()
    with pytest.raises(InputError, match="'size' must be a multiple of 32"):
        override(DEMO.yolo, {"size": 250})


def test_a_configuration_from_json_is_checked():
    values = json.loads(json.dumps(to_dict(DEMO)))
    values["yolo"]["training"]["batch"] = 0
    with pytest.raises(InputError, match=r"'yolo\.training\.batch' must be"):
        from_dict(Preset, values)
    values["yolo"]["training"]["batch"], values["yolo"]["size"] = 4, 250
    with pytest.raises(InputError, match=r"'yolo\.size' must be a multiple of 32"):
        from_dict(Preset, values)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_pass(preset):
    assert preset.check() is preset
    check(preset)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("study.epochs", "'study.training.epochs'"),
        ("study.trainig.epochs", "'study.training.epochs'"),
        ("yolo.epoch", "'yolo.training.epochs'"),
        ("yolo.bach", "'yolo.training.batch'"),
        ("rcnn.mixup", "'rcnn.augment.mixup'"),
        ("pseudo.epoch", "'pseudo.epochs'"),
        ("studdy.dropout", "'study.dropout'"),
        ("learning_rate", "'backbone.training.learning_rate' or 'rcnn.training.learning_rate' or"),
        ("Seed", "'seed'"),
    ],
)
def test_an_unknown_key_suggests_what_was_meant(key, meant):
    with pytest.raises(InputError, match=f"no setting {key!r}; did you mean {meant}"):
        load_preset("full", {key: 1})


@pytest.mark.parametrize("key", ["", ".", "study.", "..", "ä" * 200, 3, None, ("study",)])
def test_a_key_that_is_none(key):
    with pytest.raises(InputError, match=r"no setting|a setting's name must be a text"):
        override(FULL, {key: 1})


def test_the_largest_stride_is_that_of_the_package():
    from siimcovid.models.yolo import build

    for name in ("yolov5n", "hub/yolov5n6"):
        config = replace(DEMO.yolo, architecture=name, backbone="")
        assert int(build(config).model.stride.max()) == config.largest_stride


def test_every_number_has_a_range():
    """What a preset holds is refused when it is not finite, so no setting was forgotten."""
    for key in leaf_keys(DEMO):
        value = DEMO
        for part in key.split("."):
            value = getattr(value, part)
        if isinstance(value, int | float) and not isinstance(value, bool):
            for wrong in ("nan", "inf", -1e12):
                with pytest.raises(InputError, match=f"setting {key!r} must be "):
                    override(DEMO, {key: wrong})


def test_a_number_of_too_many_digits():
    with pytest.raises(InputError, match="not a number of more than"):
        override(DEMO, {"seed": 10**5000})
