"""Scores are calibrated by each detector's own two numbers."""

import pytest
from scipy.special import expit, logit

from siimcovid.inference.calibration import calibrate
from support.three_image_predictions import preset


def test_calibration_is_by_detector(outputs):
    found = calibrate(outputs.detections, preset(fusion__calibration=[1, -1, 2, 0.5]).fusion)
    expected = [expit(logit(0.8) - 1), expit(2 * logit(0.6) + 0.5), expit(logit(0.2) - 1), expit(2 * logit(0.1) + 0.5)]
    assert found["score"].tolist() == pytest.approx(expected)
    assert calibrate(outputs.detections, preset().fusion) is outputs.detections
