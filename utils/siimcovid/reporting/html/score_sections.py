"""The sections about how good the predictions are: official score, Table 1, Table 2, curves and calibration."""

from collections.abc import Mapping, Sequence

import pandas as pd

from siimcovid.core.labels import CLASSES, STUDY_LABELS
from siimcovid.evaluation.report_tables import (
    POSITIVES,
    REPORT_TABLE_1,
    REPORT_TABLE_2,
    Evaluation,
    f1_by_threshold,
    score_table,
    table_1,
    table_2,
)
from siimcovid.reporting import figures
from siimcovid.reporting.html.inline_svg import inline
from siimcovid.reporting.html.page_blocks import Beside, Note, Picture, Pictures, Section, Table, number_table


def result_sections(evaluations: Sequence[Evaluation]) -> list[Section]:
    """Scores, boxes, study labels and calibration of a run's evaluations, at least one."""
    return [_scores(evaluations), _boxes(evaluations), _study_labels(evaluations), _calibration(evaluations)]


def model_name(name: str) -> str:
    """A model's name as people write it."""
    return "study model" if name == "study" else figures.MODEL_NAMES.get(name, name)


def _scores(evaluations: Sequence[Evaluation]) -> Section:
    table = number_table(
        "Average precision of each model",
        score_table(evaluations).rename(index=model_name),
        "PASCAL VOC 2010, at IoU above 0.5, over all images and studies of the test part. The competition's score is "
        "the mean of the six classes.",
        "model",
        best="column",
    )
    curves = [
        Picture(
            inline(figures.precision_recall(evaluations, [name]), f"pr-{name}", _curve_alt(evaluations, name)),
        )
        for name in CLASSES
    ]
    return Section("scores", "Official score", [table, Pictures(curves, "Precision and recall of the six classes")])


def _curve_alt(evaluations: Sequence[Evaluation], name: str) -> str:
    scores = ", ".join(f"{model_name(e.name)} {e.scores[name]:.3f}" for e in evaluations)
    return f"Precision-recall curve of {name}; average precision: {scores}"


def _boxes(evaluations: Sequence[Evaluation]) -> Section:
    threshold = evaluations[0].threshold
    table = _beside_the_report(
        "Table 1: boxes of the detectors and the ensemble",
        table_1(evaluations).drop(index="threshold"),
        f"Boxes of confidence {threshold:g} and above on all test images, those without opacity too; opacity is the "
        "only class of boxes, so the means are its own. The threshold is fixed beforehand, the same for all models. "
        "The report scored its own held-out images, and of these those with opacity.",
        {name: {POSITIVES: row["mAP@.50"]} for name, row in REPORT_TABLE_1.items()},
        "row",
    )
    best = {e.name: max(zip(*_f1(e), strict=True), key=lambda pair: pair[1], default=(0, 0)) for e in evaluations}
    highest = "; ".join(f"{model_name(name)} {f1:.3f} from {at:.2f}" for name, (at, f1) in best.items())
    caption = (
        f"How F1 depends on the threshold. Highest on this ground truth: {highest}. Those thresholds are fitted to "
        "the ground truth they are measured on, so they are upper bounds and not results."
    )
    picture = Picture(inline(figures.f1_curves(evaluations), "f1", f"F1 over the threshold. {highest}"), caption)
    return Section("boxes", "Boxes", [table, Pictures([picture])])  # seven columns leave no room beside them


def _f1(evaluation: Evaluation) -> tuple[list[float], list[float]]:
    confidence, f1 = f1_by_threshold(evaluation.matches["opacity"])
    return confidence.tolist(), f1.tolist()


def _study_labels(evaluations: Sequence[Evaluation]) -> Section:
    note = (
        "Study label: the most confident one; means are over the study labels that the truth or the predictions "
        "have. The report's study model was scored on other images, its own held-out ones."
    )
    same = all(e.study_labels == evaluations[0].study_labels for e in evaluations)
    shown = evaluations[-1:] if same else evaluations
    numbers = table_2(shown)
    if same:
        numbers.columns = ["study"]
    pictures = []
    for evaluation in shown:
        title = "Confusion of the study labels" if same else f"Confusion: {model_name(evaluation.name)}"
        matrix = evaluation.study_labels["confusion"]
        right = sum(matrix[place][place] for place in range(len(STUDY_LABELS)))
        alt = f"Confusion matrix of the study labels; {right} of {sum(map(sum, matrix))} studies are right"
        picture = inline(figures.confusion(matrix, title), f"confusion-{evaluation.name}", alt)
        pictures.append(
            Picture(picture, "Studies by true study label (rows) and predicted study label, with the row's share.")
        )
    title, best = "Table 2: study labels of the studies", "" if same else "row"
    table = _beside_the_report(title, numbers, note, {"study": REPORT_TABLE_2}, best)
    return Section("study_labels", "Study labels", [Beside(table, Pictures(pictures))])


def _beside_the_report(
    title: str, ours: pd.DataFrame, note: str, report: Mapping[str, Mapping[str, float]], best: str
) -> Table:
    """A table of ours (a column per model) with the report's own columns at its right, which are not compared."""
    theirs = pd.DataFrame(report).reindex(index=ours.index, columns=list(report))
    left = number_table(title, ours.rename(columns=model_name), note, best=best)
    right = number_table("", theirs.rename(columns=lambda name: f"{model_name(name)}, report"))
    rows = [[*row, *other[1:]] for row, other in zip(left.rows, right.rows, strict=True)]
    return Table(title, [*left.head, *right.head[1:]], rows, note, left.best)


def _calibration(evaluations: Sequence[Evaluation]) -> Section:
    pictures = []
    for name in CLASSES:
        errors = ", ".join(f"{model_name(e.name)} {e.calibration[name].error:.3f}" for e in evaluations)
        alt = f"Reliability diagram of {name}; expected calibration error: {errors}"
        pictures.append(Picture(inline(figures.calibration(evaluations, [name]), f"calibration-{name}", alt)))
    lead = (
        "How often predictions of a confidence are right. On the dotted line a confidence is a probability; above it "
        "the model is underconfident, below it overconfident. The dot's area is the number of predictions. ECE, the "
        "expected calibration error, is the mean distance from the line over ten bins. Opacity counts boxes from "
        f"confidence {evaluations[0].threshold:g} up. Average precision depends on the ranking only, not on this."
    )
    return Section("calibration", "Calibration", [Pictures(pictures)], lead)


def recorded_scores(scores: dict[str, dict[str, float | None]]) -> Table:
    """The scoreboard of scores.json, for a run whose ground truth is not at hand any more."""
    rows = []
    for name, row in scores.items():
        values = [row.get(column) for column in (*CLASSES, "mean")]
        rows.append([model_name(name), *("–" if value is None else f"{value:.3f}" for value in values)])
    note = "As the run recorded it; the ground truth is not at hand now, so there are no curves."
    return Table("Average precision of each model", ["model", *CLASSES, "mean"], rows, note)


def no_scores(reason: str) -> Section:
    """What stands in place of the scores."""
    return Section("scores", "Official score", [Note(reason)])
