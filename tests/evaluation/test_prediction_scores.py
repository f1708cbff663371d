"""The metric on tables gives what the metric on files gives."""

import numpy as np
import pandas as pd
import pytest

from siimcovid.core.labels import CLASSES, STUDY_COLUMNS, STUDY_LABELS
from siimcovid.evaluation import mean_average_precision
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.evaluation.prediction_scores import class_scores
from siimcovid.evaluation.submission_csv import Priors, read_table, write_submission
from siimcovid.inference.ensemble import combine
from support.random_predictions import PRESET, world


def test_class_scores_are_the_metrics(tmp_path):
    """The same answer as a file, scored as the competition scores it."""
    outputs, images, _ = world()
    prediction = combine(outputs, PRESET)
    ids = [*(images["study_id"] + "_study"), *(images["image_id"] + "_image")]
    sample = pd.DataFrame({"id": ids, "PredictionString": ""})
    path = tmp_path / "submission.csv"
    priors = Priors(dict.fromkeys(STUDY_LABELS, 0.25), 0.5)
    write_submission(sample, prediction.study_probs, prediction.none, prediction.detections, images, path, priors)
    text = {0: "none 1 0 0 1 1", 1: "opacity 1 20 20 80 70", 2: "opacity 1 20 20 80 70 opacity 1 120 20 180 70"}
    label = images["boxes"].map(len).map(text)
    truth = pd.DataFrame({"id": images["image_id"] + "_image", "label": label})
    marks = {
        c: (images["study_label"] == study_label).astype(int)
        for study_label, c in zip(STUDY_LABELS, STUDY_COLUMNS, strict=True)
    }
    official = mean_average_precision.score(
        read_table(path, ("id", "PredictionString")),
        truth,
        pd.DataFrame({"id": images["study_id"] + "_study", **marks}),
    )
    assert class_scores(prediction, images) == pytest.approx(official, abs=1e-6)


def test_a_class_without_truth_is_left_out_of_the_mean():
    outputs, images, _ = world(images=10)
    prediction = combine(outputs, PRESET)
    scores = class_scores(prediction, images.assign(study_label="typical"))
    assert np.isnan([scores[name] for name in ("negative", "indeterminate", "atypical")]).all()
    assert scores["mean"] == pytest.approx(np.mean([scores[name] for name in ("typical", "none", "opacity")]))
    assert list(scores) == [*CLASSES, "mean"]
    nothing = EnsemblePrediction(prediction.detections.iloc[:0], prediction.none, prediction.study_probs)
    assert class_scores(nothing, images)["opacity"] == 0
