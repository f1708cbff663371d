"""The ensemble's prediction: the plain preset, images that only some models predicted, and numbers that do not fit."""

import pandas as pd
import pytest

from siimcovid.apps.ablation.trained_variants import PLAIN
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.presets import load_preset
from siimcovid.inference.ensemble import combine, ensemble
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.weighted_boxes_fusion import fuse
from support.three_image_predictions import LEFT, boxes, preset


def test_nothing_crosses_in_the_plain_preset(outputs):
    prediction = combine(outputs, preset())
    pd.testing.assert_frame_equal(prediction.detections, fuse(outputs.detections, ["rcnn", "yolo"], nms_iou=0.5))
    assert prediction.none.to_dict() == pytest.approx({"a": 0.3, "b": 0.9, "c": 0.95})  # 1 - mean score of both
    assert prediction.study_probs["study_id"].tolist() == ["s"]
    assert prediction.study_probs[list(STUDY_LABELS)].to_numpy()[0] == pytest.approx([0.3, 0.4, 0.2, 0.1])


def test_a_image_is_fused_of_those_who_looked(outputs):
    """Silence counts against the other's boxes only of a detector that looked."""
    some = ModelOutputs(outputs.images, outputs.detections, {"rcnn": ["a", "b", "c"], "yolo": ["a"]})
    scores = ensemble(some, preset().fusion).set_index("image_id")["score"]
    assert scores["b"] == pytest.approx(0.2)
    assert scores["a"] == pytest.approx(0.7)
    assert "c" not in scores  # YOLO's box there is of an image that it is said not to have seen
    nobody = ModelOutputs(outputs.images, outputs.detections.iloc[:0], {})
    assert ensemble(nobody, preset().fusion).empty
    assert combine(nobody, preset()).none.empty


def test_members_and_mirrored_images_have_their_detectors_weight(outputs):
    found = boxes(("a", "rcnn", 0.8, LEFT), ("a", "rcnn.1_hflip", 0.6, LEFT), ("a", "yolo", 0.4, LEFT))
    more = ModelOutputs(
        outputs.images, found, {"rcnn": ["a"], "rcnn.1_hflip": ["a"], "yolo": ["a"], "retinanet": ["a"]}
    )
    score = ensemble(more, preset(fusion__weights=[3, 1]).fusion)["score"].item()
    # the mean of the weighted scores, times model_names over the sum of their weights (report, equations 3 and 6)
    assert score == pytest.approx((3 * 0.8 + 3 * 0.6 + 0.4) / 3 * 3 / (3 + 3 + 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fusion.weights": [1]}, "fusion.weights has 1 numbers; it needs 1 for each of the detectors rcnn, yolo"),
        ({"late_fusion.laterality": [1.0] * 11}, "late_fusion.laterality has 11 numbers; it needs an intercept"),
        (
            {"late_fusion.laterality": [1.0] * 12},
            "late_fusion.label_laterality has 0 numbers; it needs three for each study label",
        ),
        ({"fusion.calibration": [1, 0, 1]}, "fusion.calibration has 3 numbers; it needs 2 for each of the detectors"),
        (
            {"late_fusion.none": [1, 2]},
            "late_fusion.none has 2 numbers; it needs an intercept and a weight for each of rcnn",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_named(outputs, changes, words):
    with pytest.raises(InputError, match=words):
        combine(outputs, load_preset("demo", PLAIN | changes))
