"""The report's two tables, by hand and against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, precision_recall_fscore_support

from siimcovid import LEVEL_COLUMNS, LEVELS
from siimcovid.errors import InputError
from siimcovid.evaluate import as_text, box_figures, level_figures
from siimcovid.metric import average_precisions, compare, match_classes


def box_comparison():
    """Three true boxes: found at .9, at .5, and never. False positives at .7 and .2, and at .6 a repeat."""
    images = pd.DataFrame(
        {
            "id": ["a_image", "b_image", "c_image"],
            "label": ["opacity 1 0 0 10 10 opacity 1 20 20 30 30", "opacity 1 0 0 10 10", "none 1 0 0 1 1"],
        }
    )
    studies = pd.DataFrame([["s_study", 1, 0, 0, 0]], columns=["id", *LEVEL_COLUMNS])
    strings = [
        "negative 1 0 0 1 1",
        "opacity .9 0 0 10 10 opacity .6 0 0 10 9 opacity .2 50 50 60 60",
        "opacity .5 0 0 10 10",
        "opacity .7 0 0 10 10",
    ]
    ids = ["s_study", *images["id"]]
    return compare(pd.DataFrame({"id": ids, "PredictionString": strings}), images, studies)


@pytest.mark.parametrize(
    ("threshold", "hits", "kept"), [(0.95, 0, 0), (0.9, 1, 1), (0.65, 1, 2), (0.55, 1, 3), (0.5, 2, 4), (0, 2, 5)]
)
def test_boxes_at_a_threshold(threshold, hits, kept):
    precision, recall = hits / max(kept, 1), hits / 3
    expected = {
        "mAP@.50": (1 + 2 / 4) / 3,  # whatever the threshold
        "F1": 2 * precision * recall / (precision + recall) if hits else 0,
        "recall": recall,
        "precision": precision,
    }
    matches = match_classes(box_comparison())
    assert box_figures(matches["opacity"], threshold) == pytest.approx(expected)


def level_comparison(true, probabilities):
    ids = [f"{k}_study" for k in range(len(true))]
    strings = [" ".join(f"{n} {p} 0 0 1 1" for n, p in zip(LEVELS, row, strict=True)) for row in probabilities]
    studies = pd.DataFrame(np.eye(4, dtype=int)[true], columns=LEVEL_COLUMNS).assign(id=ids)
    images = pd.DataFrame({"id": [], "label": []}, dtype=str)
    return compare(pd.DataFrame({"id": ids, "PredictionString": strings}), images, studies)


@pytest.mark.parametrize("levels", [[0, 1, 2, 3], [0, 1]], ids=["all levels", "two levels in the truth"])
def test_levels_against_scikit_learn(levels):
    rng = np.random.default_rng(3)
    true = rng.choice(levels, 200)
    probabilities = rng.dirichlet(np.ones(4), 200) + 0.4 * np.eye(4)[true]
    if levels == [0, 1]:
        probabilities[:, 3] = 0.0  # a level that neither truth nor predictions have
    comparison = level_comparison(true, probabilities)
    figures = level_figures(comparison, match_classes(comparison))
    guess = probabilities.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(true, guess, average="macro", zero_division=0)
    assert figures["accuracy"] == pytest.approx(accuracy_score(true, guess))
    assert figures["mean precision"] == pytest.approx(precision)
    assert figures["mean recall"] == pytest.approx(recall)
    assert figures["F1"] == pytest.approx(f1)
    assert figures["confusion"] == confusion_matrix(true, guess, labels=range(4)).tolist()
    # interpolation can only raise each precision above scikit-learn's step-wise one
    step = np.mean([average_precision_score(true == k, probabilities[:, k]) for k in levels])
    assert step <= figures["mAP"] < step + 0.05


def test_a_study_without_level_is_refused():
    comparison = level_comparison(np.array([0, 1]), np.eye(4)[[0, 1]])
    keep = comparison.predictions.row != 1
    predictions = type(comparison.predictions)(*(part[keep] for part in comparison.predictions))
    with pytest.raises(InputError, match="1_study has none of the levels"):
        level_figures(comparison._replace(predictions=predictions), match_classes(comparison))


def test_text_shows_every_figure():
    comparison = box_comparison()
    matches = match_classes(comparison)
    figures = box_figures(matches["opacity"], 0.5), level_figures(comparison, matches)
    text = as_text(average_precisions(matches), *figures, 0.5)
    for part in (
        "opacity         0.5000",
        "precision 0.5000",
        "no typical, indeterminate, atypical",
        "accuracy 1.0000",
    ):
        assert part in text
