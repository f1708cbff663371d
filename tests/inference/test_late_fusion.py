"""Late fusion by hand and by formula: `none`, rescored boxes, and study labels weighed by laterality."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from siimcovid.core.labels import STUDY_LABELS
from siimcovid.inference.ensemble import combine
from siimcovid.inference.late_fusion import laterality_evidence, laterality_probabilities, none_evidence
from siimcovid.inference.model_outputs import ModelOutputs
from support.three_image_predictions import LEFT, RIGHT, boxes, preset


def test_none_is_learned_of_all(outputs):
    numbers = [0.5, 2.0, 1.0, 0.25, 0.125, -0.5, -0.25]
    prediction = combine(outputs, preset(late_fusion__none=numbers))
    evidence = [logit(1 - 0.8), logit(1 - 0.6), logit(0.2), logit(0.3), logit(0.7), logit(1e-4)]
    assert prediction.none["a"] == pytest.approx(expit(0.5 + np.dot(numbers[1:], evidence)))
    assert prediction.none["c"] == pytest.approx(0.95)  # the study model said nothing of it
    without = combine(outputs, preset(late_fusion__none=[0.5, 2.0, 1.0, 0, 0, 0, -1]))
    assert without.none["c"] == pytest.approx(expit(0.5 + 2 * logit(1 - 1e-4) + logit(0.9) - logit(1e-4)))


def test_a_detector_that_did_not_look_is_taken_to_agree(outputs):
    some = ModelOutputs(
        outputs.images, outputs.detections, {"rcnn": ["a", "b", "c"], "yolo": ["a"]}, outputs.study_probs
    )
    evidence = none_evidence(some, preset().fusion, combine(some, preset()).detections)
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
