"""The report's two tables, curves and calibration, by hand and against scikit-learn; `siimcovid score` of several."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, precision_recall_fscore_support

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.labels import CLASSES, STUDY_COLUMNS, STUDY_LABELS
from siimcovid.evaluation.mean_average_precision import Matches, area_under_curve, compare, match_classes
from siimcovid.evaluation.report_tables import (
    POSITIVES,
    as_text,
    box_figures,
    evaluate,
    f1_by_threshold,
    precision_recall,
    reliability,
    score_table,
    study_figures,
    table_1,
    table_2,
)
from support.run_folder import write_run


def box_tables():
    """A submission, and the truth's images and studies.

    Three true boxes: found at .9, at .5, and never. False positives at .7 and .2, and at .6 a repeat.
    """
    images = pd.DataFrame(
        {
            "id": ["a_image", "b_image", "c_image"],
            "label": ["opacity 1 0 0 10 10 opacity 1 20 20 30 30", "opacity 1 0 0 10 10", "none 1 0 0 1 1"],
        }
    )
    studies = pd.DataFrame([["s_study", 1, 0, 0, 0]], columns=["id", *STUDY_COLUMNS])
    strings = [
        "negative 1 0 0 1 1",
        "opacity .9 0 0 10 10 opacity .6 0 0 10 9 opacity .2 50 50 60 60",
        "opacity .5 0 0 10 10",
        "opacity .7 0 0 10 10",
    ]
    ids = ["s_study", *images["id"]]
    return pd.DataFrame({"id": ids, "PredictionString": strings}), images, studies


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
    matches = match_classes(compare(*box_tables()))
    assert box_figures(matches["opacity"], threshold) == pytest.approx(expected)


def study_comparison(true, probabilities):
    ids = [f"{k}_study" for k in range(len(true))]
    strings = [" ".join(f"{n} {p} 0 0 1 1" for n, p in zip(STUDY_LABELS, row, strict=True)) for row in probabilities]
    studies = pd.DataFrame(np.eye(4, dtype=int)[true], columns=STUDY_COLUMNS).assign(id=ids)
    images = pd.DataFrame({"id": [], "label": []}, dtype=str)
    return compare(pd.DataFrame({"id": ids, "PredictionString": strings}), images, studies)


@pytest.mark.parametrize(
    "study_probs", [[0, 1, 2, 3], [0, 1]], ids=["all study labels", "two study labels in the truth"]
)
def test_labels_against_scikit_learn(study_probs):
    rng = np.random.default_rng(3)
    true = rng.choice(study_probs, 200)
    probabilities = rng.dirichlet(np.ones(4), 200) + 0.4 * np.eye(4)[true]
    if study_probs == [0, 1]:
        probabilities[:, 3] = 0.0  # a study label that neither truth nor predictions have
    comparison = study_comparison(true, probabilities)
    figures = study_figures(comparison, match_classes(comparison))
    guess = probabilities.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(true, guess, average="macro", zero_division=0)
    assert figures["accuracy"] == pytest.approx(accuracy_score(true, guess))
    assert figures["mean precision"] == pytest.approx(precision)
    assert figures["mean recall"] == pytest.approx(recall)
    assert figures["F1"] == pytest.approx(f1)
    assert figures["confusion"] == confusion_matrix(true, guess, labels=range(4)).tolist()
    # interpolation can only raise each precision above scikit-learn's step-wise one
    step = np.mean([average_precision_score(true == k, probabilities[:, k]) for k in study_probs])
    assert step <= figures["mAP"] < step + 0.05


def test_a_study_without_level_is_refused():
    comparison = study_comparison(np.array([0, 1]), np.eye(4)[[0, 1]])
    keep = comparison.predictions.row != 1
    predictions = type(comparison.predictions)(*(part[keep] for part in comparison.predictions))
    with pytest.raises(InputError, match="1_study has none of the study labels"):
        study_figures(comparison._replace(predictions=predictions), match_classes(comparison))


def test_text_shows_every_figure():
    text = as_text(evaluate("mine", *box_tables(), threshold=0.5))
    for part in (
        "opacity         0.5000",
        "precision 0.5000",
        "confidence 0.5 and above",
        "no typical, indeterminate, atypical",
        "accuracy 1.0000",
    ):
        assert part in text


def ranked(seed=0, count=300):
    """Predictions of one class in the order of their confidence, some with the same."""
    rng = np.random.default_rng(seed)
    confidence = np.sort(rng.integers(0, 60, count) / 60)[::-1]
    hit = rng.random(count) < confidence
    return Matches(confidence, hit, int(hit.sum()) + 7)


def test_the_curve_holds_the_area():
    matches = ranked()
    recall, precision = precision_recall(matches)
    assert precision.sum() / matches.truths == pytest.approx(area_under_curve(matches))
    assert recall[0] == 1 / matches.truths
    assert recall[-1] == matches.hit.sum() / matches.truths
    assert (np.diff(precision) <= 0).all()


def test_f1_at_every_threshold():
    matches = ranked()
    for confidence, f1 in zip(*f1_by_threshold(matches), strict=True):
        assert f1 == pytest.approx(box_figures(matches, confidence)["F1"])
    assert len(f1_by_threshold(matches)[0]) == len(set(matches.confidence))


def test_curves_of_nothing():
    nothing = Matches(np.empty(0), np.empty(0, dtype=bool), 3)
    assert [len(part) for part in (*precision_recall(nothing), *f1_by_threshold(nothing))] == [0, 0, 0, 0]
    assert np.isnan(reliability(nothing).error)


def test_calibration_by_hand():
    """In ten bins: .05 and .15 in the first two, 1.0 in the last with .95, of which one in two is true."""
    matches = Matches(np.array([1.0, 0.95, 0.15, 0.05]), np.array([True, False, True, False]), 9)
    found = reliability(matches)
    assert found.count.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found.confidence[[0, 1, 9]].tolist() == pytest.approx([0.05, 0.15, 0.975])
    assert found.frequency[[0, 1, 9]].tolist() == [0, 1, 0.5]
    assert np.isnan(found.frequency[2:9]).all()
    assert found.error == pytest.approx((0.05 + 0.85 + 2 * 0.475) / 4)


def test_confidences_that_are_no_probabilities_have_no_calibration():
    assert np.isnan(reliability(Matches(np.array([1.5, 0.5]), np.array([True, True]), 2)).error)


def test_opacity_is_calibrated_from_the_threshold_up():
    """The submission's boxes have .9, .7, .6, .5 and .2."""
    counts = [evaluate("mine", *box_tables(), threshold=t).calibration["opacity"].count.sum() for t in (0, 0.3, 0.65)]
    assert counts == [5, 4, 2]


def test_tables_side_by_side():
    evaluations = [evaluate(name, *box_tables(), threshold=t) for name, t in (("first", 0.5), ("second", 0.9))]
    scores, boxes, study_probs = score_table(evaluations), table_1(evaluations), table_2(evaluations)
    assert scores.shape == (2, 7)
    assert scores.loc["first", "opacity"] == pytest.approx(0.5)
    assert boxes.index.tolist() == ["mAP@.50", POSITIVES, "F1-score", "mean recall", "mean precision", "threshold"]
    assert boxes["second"].tolist() == pytest.approx([0.5, (1 + 2 / 3) / 3, 0.5, 1 / 3, 1.0, 0.9])
    assert study_probs.index.tolist() == ["accuracy", "mean recall", "mean precision", "F1-score", "mAP"]
    assert study_probs["first"].tolist() == [1.0] * 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("evaluate"))


def test_score_of_a_run(run, tmp_path, capsys):
    assert main(["score", str(run), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "scores.json")]) == 0
    said = capsys.readouterr().out
    assert "rcnn" in said
    assert "0.5500" in said  # opacity, worked by hand in test_report
    tables = {
        name: pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("scores", "table1", "table2", "confusion")
    }
    assert tables["scores"].columns.tolist() == ["model", *CLASSES, "mean"]
    assert tables["table1"].columns.tolist()[1:] == ["rcnn", "yolo", "ensemble"]
    assert tables["table2"]["ensemble"][0] == 0.5
    assert tables["confusion"][list(STUDY_LABELS)].to_numpy().sum() == 3 * 4
    for name in ("pr_curves", "f1", "confusion", "calibration"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert pd.read_json(tmp_path / "scores.json")["ensemble"]["opacity"] == pytest.approx(0.55)


def test_score_of_submissions_without_a_run(run, capsys):
    truth = run.parent / "competition.truth"
    where = ["--images", str(truth / "test_image_level.csv"), "--studies", str(truth / "test_study_level.csv")]
    both = [f"mine={run / 'submission.csv'}", str(run / "submissions" / "yolo.csv")]
    assert main(["score", *both, *where]) == 0
    said = capsys.readouterr().out
    assert "mine" in said
    assert "yolo" in said
    assert main(["score", both[1], *where]) == 0
    assert "confusion (truth down" in capsys.readouterr().out


def test_score_says_what_it_needs(run, tmp_path, capsys):
    truth = run.parent / "competition.truth"
    where = ["--images", str(truth / "test_image_level.csv"), "--studies", str(truth / "test_study_level.csv")]
    twice = [str(run / "submission.csv"), f"submission={run / 'submission.csv'}"]
    for arguments, said in (
        ([str(run / "submission.csv")], "--images and --studies"),
        ([str(tmp_path)], "run.json"),
        ([*twice, *where], "two submissions are called submission"),
    ):
        assert main(["score", *arguments]) == 2
        assert said in capsys.readouterr().err
