"""What models say is combined: by hand, by formula, and where some of them say nothing."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from siimcovid.apps.ablation.trained_variants import PLAIN
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.presets import load_preset
from siimcovid.core.stage_names import member, stage_of
from siimcovid.inference.calibration import calibrate
from siimcovid.inference.ensemble import combine, ensemble
from siimcovid.inference.late_fusion import laterality_evidence, laterality_probabilities, none_evidence
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.weighted_boxes_fusion import COLUMNS, fuse

LEFT, RIGHT = (0.1, 0.2, 0.4, 0.7), (0.6, 0.2, 0.9, 0.7)


def preset(**changes):
    return load_preset("small", PLAIN | {key.replace("__", "."): value for key, value in changes.items()})


def boxes(*rows):
    """Rows (image, model_name, score, box)."""
    return pd.DataFrame([(image, model_name, score, *box) for image, model_name, score, box in rows], columns=COLUMNS)


@pytest.fixture
def outputs():
    """Two studies of two and one images: "a" has a box, "b" and "c" look clear; the study model says nothing of "c"."""
    images = pd.DataFrame({"image_id": ["a", "b", "c"], "study_id": ["s", "s", "t"]})
    found = boxes(
        ("a", "rcnn", 0.8, LEFT), ("a", "yolo", 0.6, LEFT), ("b", "rcnn", 0.2, RIGHT), ("c", "yolo", 0.1, RIGHT)
    )  # fmt: skip
    study_probs = pd.DataFrame([["a", "s", 0.2, 0.5, 0.2, 0.1, 0.3], ["b", "s", 0.4, 0.3, 0.2, 0.1, 0.7]])
    study_probs.columns = ["image_id", "study_id", *STUDY_LABELS, "none"]
    return ModelOutputs(images, found, {"rcnn": ["a", "b", "c"], "yolo": ["a", "b", "c"]}, study_probs)


@pytest.mark.parametrize(
    ("model_name", "expected"),
    [("rcnn", "rcnn"), ("rcnn_hflip", "rcnn"), ("yolo.1", "yolo"), ("yolo.12_hflip", "yolo"), ("study.2", "study")],
)
def test_family(model_name, expected):
    assert stage_of(model_name) == expected


def test_a_member_belongs_to_its_stage():
    assert [member("yolo", number) for number in range(3)] == ["yolo", "yolo.1", "yolo.2"]
    assert {stage_of(member("study", number)) for number in range(12)} == {"study"}


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


def test_calibration_is_by_detector(outputs):
    found = calibrate(outputs.detections, preset(fusion__calibration=[1, -1, 2, 0.5]).fusion)
    expected = [expit(logit(0.8) - 1), expit(2 * logit(0.6) + 0.5), expit(logit(0.2) - 1), expit(2 * logit(0.1) + 0.5)]
    assert found["score"].tolist() == pytest.approx(expected)
    assert calibrate(outputs.detections, preset().fusion) is outputs.detections


def test_none_is_learned_of_all(outputs):
    numbers = [0.5, 2.0, 1.0, 0.25, 0.125]
    prediction = combine(outputs, preset(late_fusion__none=numbers))
    evidence = [logit(1 - 0.8), logit(1 - 0.6), logit(0.2), logit(0.3)]
    assert prediction.none["a"] == pytest.approx(expit(0.5 + np.dot(numbers[1:], evidence)))
    assert prediction.none["c"] == pytest.approx(0.95)  # the study model said nothing of it
    without = combine(outputs, preset(late_fusion__none=[0.5, 2.0, 1.0, 0, 0]))
    assert without.none["c"] == pytest.approx(expit(0.5 + 2 * logit(1 - 1e-4) + logit(0.9)))


def test_a_detector_that_did_not_look_is_taken_to_agree(outputs):
    some = ModelOutputs(
        outputs.images, outputs.detections, {"rcnn": ["a", "b", "c"], "yolo": ["a"]}, outputs.study_probs
    )
    evidence = none_evidence(some, preset().fusion)
    assert evidence.loc["b", "yolo"] == evidence.loc["b", "rcnn"] == pytest.approx(logit(0.8))
    assert np.isnan(evidence.loc["c", "negative"])


def test_boxes_are_rescored(outputs):
    prediction = combine(outputs, preset(late_fusion__opacity_none=0.5, late_fusion__opacity_negative=2))
    plain = combine(outputs, preset())
    expected = {"a": 0.7 * 0.7**0.5 * 0.8**2, "b": 0.1 * 0.1**0.5 * 0.6**2, "c": 0.05 * 0.05**0.5}
    assert prediction.detections.set_index("image_id")["score"].to_dict() == pytest.approx(expected)
    assert prediction.none.to_dict() == plain.none.to_dict()


#: Intercept and weights of the surer side, the other side and `none`, for none, one and both sides.
SIDES = [[0.5, -1.0, 0.0, 1.0], [0.0, 0.5, -0.5, 0.0], [-0.5, 0.5, 1.0, -1.0]]
#: How much more often none, one and both sides are affected: of negative, typical, indeterminate and atypical studies.
LABEL_LATERALITY = [[3.0, 0.1, 0.1], [0.1, 0.2, 2.0], [0.1, 3.0, 0.7], [0.6, 2.0, 0.4]]


def used(**changes):
    numbers = {
        "late_fusion__laterality": np.ravel(SIDES).tolist(),
        "late_fusion__label_laterality": np.ravel(LABEL_LATERALITY).tolist(),
    }
    return preset(**numbers | changes)


def test_sides_are_the_halves_of_the_image(outputs):
    found = boxes(("a", "ensemble", 0.2, LEFT), ("a", "ensemble", 0.7, RIGHT), ("a", "ensemble", 0.4, RIGHT),
                  ("b", "ensemble", 0.3, LEFT))  # fmt: skip
    evidence = laterality_evidence(found, pd.Series({"a": 0.3, "b": 0.9, "c": 0.8}))
    expected = [[0.7, 0.2, 0.3], [0.3, 1e-4, 0.9], [1e-4, 1e-4, 0.8]]
    assert expit(evidence.to_numpy()) == pytest.approx(np.array(expected))
    for numbers in (SIDES, [[0] * 4] * 3):
        probabilities = laterality_probabilities(
            found, pd.Series({"a": 0.3}), used(late_fusion__laterality=np.ravel(numbers).tolist()).late_fusion
        )
        odds = np.exp([row[0] + np.dot(row[1:], logit([0.7, 0.2, 0.3])) for row in numbers])
        assert probabilities.to_numpy()[0] == pytest.approx(odds / odds.sum())


def test_labels_hear_how_many_sides_are_affected(outputs):
    prediction = combine(outputs, used(late_fusion__label_power=0.5))
    plain = combine(outputs, preset())
    likelihood = (
        laterality_probabilities(plain.detections, plain.none, used().late_fusion).loc[["a", "b"]].mean()
        @ np.array(LABEL_LATERALITY).T
    )
    expected = np.array([0.3, 0.4, 0.2, 0.1]) ** 0.5 * likelihood
    assert prediction.study_probs[list(STUDY_LABELS)].to_numpy()[0] == pytest.approx(expected / expected.sum())
    assert prediction.none.to_dict() == plain.none.to_dict()
    silent = ModelOutputs(outputs.images, outputs.detections.iloc[:0], {}, outputs.study_probs)
    assert combine(silent, used()).study_probs.equals(plain.study_probs)


def test_a_study_that_no_detector_looked_at_keeps_its_labels(outputs):
    study_probs = pd.concat(
        [outputs.study_probs, outputs.study_probs[:1].assign(image_id="c", study_id="t")], ignore_index=True
    )
    some = ModelOutputs(outputs.images, outputs.detections, {"rcnn": ["a", "b"], "yolo": ["a", "b"]}, study_probs)
    prediction = combine(some, used()).study_probs.set_index("study_id")
    assert prediction.loc["t"].tolist() == pytest.approx([0.2, 0.5, 0.2, 0.1])
    assert prediction.loc["s"].tolist() != pytest.approx([0.3, 0.4, 0.2, 0.1])


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
        combine(outputs, load_preset("small", PLAIN | changes))
