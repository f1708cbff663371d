"""Out-of-fold tables: predictions for images by models that did not see their patients; read, joined and scored.

In: a table of predictions per fold and model, as cross_validation.py makes them, with the column `fold` added. Out: one
table of each kind for all images, the ensemble's predictions, and scores by the competition's metric.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from siimcovid.core import stage_names
from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.files import nan_to_null, write_csv, write_json
from siimcovid.core.labels import CLASSES, STUDY_COLUMNS, STUDY_LABELS
from siimcovid.core.tables import find_table, read_csv
from siimcovid.evaluation import submission_csv
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.evaluation.report_tables import Evaluation, evaluate
from siimcovid.inference.ensemble import combine
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.predictor import DETECTION_COLUMNS, study_probabilities
from siimcovid.inference.weighted_boxes_fusion import ENSEMBLE, none_confidence

STUDY_PREDICTION_COLUMNS = ["image_id", "study_id", *STUDY_LABELS]


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of models for the images that were held out from their training."""

    stages: tuple[str, ...]  # which models
    images: pd.DataFrame  # the index's rows that were held out, + fold
    outputs: ModelOutputs  # of each model for itself
    prediction: EnsemblePrediction  # of all of them, as the kernel combines them


def read_predictions(path: Path, stage: str) -> pd.DataFrame:
    """A table that `write_csv` has written: detections of a detector, image-level probabilities of `study`."""
    table = read_csv(path, STUDY_PREDICTION_COLUMNS if stage == "study" else DETECTION_COLUMNS)
    return typed(table)


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """A table of text with its columns' types: ids and model names stay text, `fold` is int, the rest float."""
    return table.astype({name: column_type(name) for name in table})


def column_type(column: str) -> type:
    """The type of a column of the tables here."""
    return {"fold": int, **dict.fromkeys(("image_id", "study_id", "model"), str)}.get(column, float)


def joined(parts: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """The folds' tables one after the other; without any, an empty table of these columns and `fold`."""
    if parts:
        return pd.concat(parts, ignore_index=True)
    return pd.DataFrame({name: pd.Series(dtype=column_type(name)) for name in [*columns, "fold"]})


def collect(
    detections: Sequence[pd.DataFrame],
    study_probs: Sequence[pd.DataFrame],
    held_out: pd.DataFrame,
    patients_seen: Mapping[int, set[str]],
    stages: Sequence[str],
    preset: Preset,
    out: Path,
) -> OutOfFold:
    """Join the folds' tables, let the ensemble predict, and write detections.csv and the two study tables to `out`.

    Args:
        detections: the detectors' tables, of mirrored images too, a fold after the other, with `fold`.
        study_probs: the same of the study models.
        held_out: the index's rows that were held out, with `fold`.
        patients_seen: fold -> the patients that its stages were trained on.
        stages: which models.
        preset: how the kernel combines them.
        out: the cross-validation's folder.

    Raises:
        InputError: an image was predicted by a model that saw its patient.
    """
    found, study_tables = joined(detections, DETECTION_COLUMNS), joined(study_probs, STUDY_PREDICTION_COLUMNS)
    refuse_leaks(found, held_out, patients_seen)
    refuse_leaks(study_tables, held_out, patients_seen)
    ends = ("", "_hflip") if preset.fusion.hflip_tta else ("",)
    model_names = [f"{stage}{end}" for stage in stages if stage != "study" for end in ends]
    outputs = ModelOutputs(
        held_out[["image_id", "study_id"]],
        found.drop(columns="fold"),
        {model_name: held_out["image_id"].tolist() for model_name in model_names},
        study_tables.drop(columns="fold"),
    )
    prediction = combine(outputs, preset)
    if len(model_names) > 1:
        fold = prediction.detections["image_id"].map(held_out.set_index("image_id")["fold"])
        found = pd.concat([found, prediction.detections.assign(fold=fold)])
    found = found.sort_values(["image_id", "model", "score"], ascending=[True, True, False], kind="stable")
    write_csv(found, out / "detections.csv")
    write_csv(study_tables, out / "image_study_probabilities.csv")
    folds = held_out[["study_id", "fold"]].drop_duplicates()
    write_csv(prediction.study_probs.merge(folds, on="study_id"), out / "study_probabilities.csv")
    return OutOfFold(tuple(stages), held_out, outputs, prediction)


def refuse_leaks(table: pd.DataFrame, images: pd.DataFrame, trained: dict[int, set[str]]) -> None:
    """Raise InputError where a table's image was not held out by its fold, by that alone, or its patient was trained
    on.

    table: image_id and fold; one with study_id may name an image once only. images: image_id, patient_id, fold.
    trained: fold -> the patients that its stages saw.
    """
    if images["image_id"].duplicated().any():
        name = images["image_id"][images["image_id"].duplicated()].iloc[0]
        raise InputError(f"{name} is held out by two folds; remove the folder of one of them")
    by_image = images.set_index("image_id")
    fold = table["image_id"].map(by_image["fold"])
    if (wrong := table["image_id"][fold != table["fold"]]).size:
        raise InputError(f"{wrong.iloc[0]} was predicted by a fold that did not hold it out; remove that fold's folder")
    for number, patients in trained.items():
        held_out = by_image[by_image["fold"] == number]
        if (seen := held_out.index[held_out["patient_id"].isin(patients)]).size:
            raise InputError(f"the patient of {seen[0]} is on both sides of fold {number}; remove that fold's folder")
    if "study_id" in table and table["image_id"].duplicated().any():
        name = table["image_id"][table["image_id"].duplicated()].iloc[0]
        raise InputError(f"{name} has study labels twice; remove study.csv in the folds' folders")


def score(
    competition: Path, images: pd.DataFrame, found: OutOfFold, preset: Preset, out: Path, whole: bool = True
) -> list[Evaluation]:
    """Write each model's submission, scores.json, and return an evaluation for each, the ensemble's last.

    If all folds were held out, every id of the competition's train CSVs is answered, and an image that could not be
    read by the train part's frequencies; else, or where `whole` is false since `images` are part of the train set, the
    ids of the folds that were. What no stage answers, boxes without a detector or study labels without `study`, has the
    score nan and is left out of the mean.
    """
    tables = {name: find_table(competition, f"train_{name}_level.csv") for name in ("image", "study")}
    if None in tables.values():
        raise InputError(
            f"{competition} lacks train_image_level.csv or train_study_level.csv: there is no truth to score by"
        )
    truth, studies = read_csv(tables["image"], ("id", "label")), read_csv(tables["study"], ("id", *STUDY_COLUMNS))
    ids = pd.concat([studies["id"], truth["id"]])
    if not whole or found.images["fold"].nunique() < preset.folds:
        ids = ids[ids.isin([*(found.images["study_id"] + "_study"), *(found.images["image_id"] + "_image")])]
    sample = pd.DataFrame({"id": ids, "PredictionString": ""})
    priors = submission_csv.train_priors(images)
    detectors = [stage for stage in found.stages if stage != "study"]
    models = [*detectors, *([ENSEMBLE] if len(detectors) > 1 else [])] or ["study"]
    answered = [*(STUDY_LABELS if "study" in found.stages else ()), *(("none", "opacity") if detectors else ())]

    evaluations = []
    for model in models:
        path = out / "submission.csv" if model == models[-1] else out / "submissions" / f"{model}.csv"
        boxes, none, study_probs = found.prediction.detections, found.prediction.none, found.prediction.study_probs
        if model != ENSEMBLE:
            boxes = found.outputs.detections[found.outputs.detections["model"] == model]
            none = none_confidence(boxes, found.images["image_id"] if detectors else ())
            study_probs = study_probabilities(found.outputs.study_probs)
        submission_csv.write_submission(sample, study_probs, none, boxes, images, path, priors)
        answers = submission_csv.read_table(path, ("id", "PredictionString"))
        evaluation = evaluate(model, answers, truth, studies, subset=True)
        scores = {name: evaluation.scores[name] if name in answered else math.nan for name in CLASSES}
        known = [value for value in scores.values() if not math.isnan(value)]
        scores["mean"] = float(np.mean(known)) if known else math.nan
        evaluations.append(replace(evaluation, scores=scores))
    write_json(out / "scores.json", nan_to_null({e.name: e.scores for e in evaluations}))
    return evaluations


def read(out: Path, images: pd.DataFrame, preset: Preset) -> tuple[ModelOutputs, dict[str, int]]:
    """A finished cross-validation's out-of-fold outputs, and image id -> the fold that held the image out.

    images: the index of its competition. Raises InputError where a table or a detector of the preset is missing.
    """
    found = read_csv(Path(out) / "detections.csv", [*DETECTION_COLUMNS, "fold"])
    study_tables = read_csv(Path(out) / "image_study_probabilities.csv", [*STUDY_PREDICTION_COLUMNS, "fold"])
    found, study_tables = typed(found), typed(study_tables)
    folds = dict(zip(study_tables["image_id"], study_tables["fold"], strict=True))
    rows = images.loc[images["image_id"].isin(folds), ["image_id", "study_id"]]
    if len(rows) < len(folds):
        raise InputError(
            f"{out} is of another competition: {len(folds) - len(rows)} of its images are absent; give its own --data"
        )
    model_names = [
        model_name
        for model_name in dict.fromkeys(found["model"])
        if stage_names.stage_of(model_name) in preset.fusion.detectors
    ]
    if lacking := set(preset.fusion.detectors) - set(model_names):
        raise InputError(f"{out} lacks {', '.join(sorted(lacking))}: run `siimcovid crossval` with it")
    found = found[found["model"].isin(model_names)].drop(columns="fold")
    return ModelOutputs(
        rows, found, {model_name: list(folds) for model_name in model_names}, study_tables.drop(columns="fold")
    ), folds
