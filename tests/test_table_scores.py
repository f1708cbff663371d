"""The metric on tables gives what the metric on files gives."""

import numpy as np
import pandas as pd
import pytest

from siimcovid import CLASSES, LEVEL_COLUMNS, LEVELS, metric
from siimcovid.combine import Combined, combine
from siimcovid.submission import Priors, read_table, write_submission
from siimcovid.table_scores import class_scores
from small_world import PRESET, world


def test_class_scores_are_the_metrics(tmp_path):
    """The same answer as a file, scored as the competition scores it."""
    said, images, _ = world()
    answer = combine(said, PRESET)
    ids = [*(images["study_id"] + "_study"), *(images["image_id"] + "_image")]
    sample = pd.DataFrame({"id": ids, "PredictionString": ""})
    path = tmp_path / "submission.csv"
    priors = Priors(dict.fromkeys(LEVELS, 0.25), 0.5)
    write_submission(sample, answer.levels, answer.none, answer.detections, images, path, priors)
    text = {0: "none 1 0 0 1 1", 1: "opacity 1 20 20 80 70", 2: "opacity 1 20 20 80 70 opacity 1 120 20 180 70"}
    label = images["boxes"].map(len).map(text)
    truth = pd.DataFrame({"id": images["image_id"] + "_image", "label": label})
    marks = {c: (images["level"] == level).astype(int) for level, c in zip(LEVELS, LEVEL_COLUMNS, strict=True)}
    official = metric.score(
        read_table(path, ("id", "PredictionString")),
        truth,
        pd.DataFrame({"id": images["study_id"] + "_study", **marks}),
    )
    assert class_scores(answer, images) == pytest.approx(official, abs=1e-6)


def test_a_class_without_truth_is_left_out_of_the_mean():
    said, images, _ = world(films=10)
    answer = combine(said, PRESET)
    scores = class_scores(answer, images.assign(level="typical"))
    assert np.isnan([scores[name] for name in ("negative", "indeterminate", "atypical")]).all()
    assert scores["mean"] == pytest.approx(np.mean([scores[name] for name in ("typical", "none", "opacity")]))
    assert list(scores) == [*CLASSES, "mean"]
    nothing = Combined(answer.detections.iloc[:0], answer.none, answer.levels)
    assert class_scores(nothing, images)["opacity"] == 0
