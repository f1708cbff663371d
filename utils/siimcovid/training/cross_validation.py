"""Cross-validation: every image predicted by models that never saw its patient, in one table, and scored.

In: the index of a competition's train part, its cache, a preset and the folder of weights to start from. Out, in one
folder:

    detections.csv      the detections table (predict.py) of the images held out, detectors' and ensemble's, with folds
    image_study_probabilities.csv     what the study models say of each image: the study labels table of predict.py,
                                      with folds
    study_probabilities.csv          study_id, the four probabilities (combine.py), fold
    submission.csv      the ensemble's answer to all these images; submissions/<model>.csv each detector's
    scores.json         model -> average precision of each class and their mean, by the competition's metric
    weights/            the folds' models as members of a fold ensemble, once all are trained: a weights folder for the
                        kernel with `members`, and the place for the numbers of `siimcovid fit-ensemble`
    shortcuts.json      the study models' score on images with markers and borders covered (shortcuts.py)
    crossval.json       what all folds have in common; a preset that differs in it is refused this folder
    fold_<K>/           the stages trained without fold K with their manifest, what they predicted of it, and images.csv
                        (image_id, patient_id, side: "train" or "held out")

Whatever lies there is not made again, so a run that was killed goes on, machines that share the folder can take some
folds each, and a last call without `only` collects all. What fuses the boxes may change without training anew.

A stage keeps its last epoch, which does not depend on the images held out. With `best_epoch` it keeps the best on them,
as the report did: scores are then better than they would be on images nobody chose by.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from siimcovid.core import stage_names
from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, link, write_json
from siimcovid.core.labels import CLASSES, STUDY_COLUMNS, STUDY_LABELS
from siimcovid.core.overrides import override, to_dict
from siimcovid.core.tables import find_table, read_csv
from siimcovid.data import duplicates
from siimcovid.data.folds import split
from siimcovid.evaluation import shortcut_check, submission_csv
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.evaluation.report_tables import Evaluation, evaluate
from siimcovid.inference.ensemble import combine
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.predictor import DETECTION_COLUMNS, predict_table, study_probabilities
from siimcovid.inference.weighted_boxes_fusion import ENSEMBLE, none_confidence
from siimcovid.models import checkpoints, weights_manifest
from siimcovid.training.train_stage import fit

STUDY_PREDICTION_COLUMNS = ["image_id", "study_id", *STUDY_LABELS]

#: What folds have in common, beside their stages' configurations.
SHARED = ("cache_size", "folds", "seed")


@dataclass(frozen=True)
class OutOfFold:
    """What models said of the images that they did not see."""

    stages: tuple[str, ...]  # which models
    images: pd.DataFrame  # the index's rows that were held out, + fold
    outputs: ModelOutputs  # by each model for itself
    prediction: EnsemblePrediction  # by all of them, as the kernel combines them


def cross_validate(
    images: pd.DataFrame,
    preset: Preset,
    cache: Path,
    start: Path | None,
    out: Path,
    *,
    stages: Sequence[str] | None = None,
    only: Iterable[int] | None = None,
    best_epoch: bool = False,
    data: Path | str = "",
) -> OutOfFold:
    """Train and predict, fold by fold, what is not there yet, and write detections.csv and study_probabilities.csv.

    Args:
        images: the index; train rows with a study label whose image lies in the cache are used.
        preset: the configuration; its `folds` and `seed` say who is held out with whom.
        cache, start: as in stages.fit.
        out: the folder described above.
        stages: which models, by default the preset's; without a detector the detections are empty, without `study`
            the study labels.
        only: these folds; None takes all.
        best_epoch: choose each stage's epoch by the images held out.
        data: name of the data, as it stands in manifests.

    Raises:
        InputError: there is no such fold, `out` is of another cross-validation, or an image would be predicted by a
        model
            that saw its patient, here or in what it started from.
    """
    out, numbers = Path(out), list(range(preset.folds) if only is None else dict.fromkeys(only))
    stages = tuple(stages or preset.stages)
    known = images[(images["split"] == "train") & images["study_label"].isin(STUDY_LABELS)]
    copies = duplicates.find(known, cache) if preset.duplicates else []
    splits = {}
    for fold in numbers:  # refuses a fold there is not
        train, held_out = split(known, fold, preset.folds, preset.seed, copies)
        splits[fold] = duplicates.once(train, copies), held_out
    trainable = (*stage_names.DETECTORS, "study")
    epochs = {f"{stage}.training.validate": best_epoch for stage in trainable}
    if not best_epoch:  # patience waits for a metric
        epochs |= {f"{stage}.training.patience": 0 for stage in trainable}
    preset = override(preset, epochs)
    refuse_seen(start, stages, data)
    facts = to_dict(preset)
    _claim(out / "crossval.json", {key: facts[key] for key in (*preset.stages, *SHARED)})

    detections, study_probs, trained = [], [], {}
    for fold, (train, held_out) in splits.items():
        folder = out / f"fold_{fold}"
        trained[fold] = _patients_seen(folder, train, held_out)
        for stage in stages:
            path = folder / f"{stage}.safetensors"
            if not path.is_file() or (folder / f"{stage}.resume.pt").is_file():
                for model in (stage, f"{stage}_hflip", f"{stage}_covered"):
                    (folder / f"{model}.csv").unlink(missing_ok=True)
                shown = known if best_epoch else train
                fit(stage, override(preset, {"fold": fold}), shown, cache, start, folder)
                weights_manifest.register_trained(path, stage, preset, data, f"without fold {fold} of {preset.folds}")
            for hflip in (False, True) if preset.fusion.hflip_tta and stage in stage_names.DETECTORS else (False,):
                table = _predicted(stage, folder, held_out, cache, hflip).assign(fold=fold)
                (study_probs if stage == "study" else detections).append(table)
    if len(numbers) == preset.folds:
        _offer(out, stages, preset, data)
    held_out_images = pd.concat([held_out.assign(fold=fold) for fold, (_, held_out) in splits.items()])
    found, study_tables = _joined(detections, DETECTION_COLUMNS), _joined(study_probs, STUDY_PREDICTION_COLUMNS)
    refuse_leaks(found, held_out_images, trained)
    refuse_leaks(study_tables, held_out_images, trained)
    ends = ("", "_hflip") if preset.fusion.hflip_tta else ("",)
    model_names = [f"{stage}{end}" for stage in stages if stage != "study" for end in ends]
    outputs = ModelOutputs(
        held_out_images[["image_id", "study_id"]],
        found.drop(columns="fold"),
        {model_name: held_out_images["image_id"].tolist() for model_name in model_names},
        study_tables.drop(columns="fold"),
    )
    prediction = combine(outputs, preset)
    fold = held_out_images.set_index("image_id")["fold"]
    if len(model_names) > 1:
        found = pd.concat([found, prediction.detections.assign(fold=prediction.detections["image_id"].map(fold))])
    found = found.sort_values(["image_id", "model", "score"], ascending=[True, True, False], kind="stable")
    _write(found, out / "detections.csv")
    _write(study_tables, out / "image_study_probabilities.csv")
    _write(
        prediction.study_probs.merge(held_out_images[["study_id", "fold"]].drop_duplicates(), on="study_id"),
        out / "study_probabilities.csv",
    )
    return OutOfFold(stages, held_out_images, outputs, prediction)


def _offer(out: Path, stages: Sequence[str], preset: Preset, data: Path | str) -> None:
    """Name the folds' models as the members of a fold ensemble, in one folder."""
    for fold in range(preset.folds):
        for stage in stages:
            path = out / "weights" / f"{stage_names.member(stage, fold)}.safetensors"
            for end in (".safetensors", ".json"):
                source = out / f"fold_{fold}" / f"{stage}{end}"
                if source.is_file():
                    with atomic_path(path.with_name(path.stem + end)) as temporary:
                        link(source, temporary)
            weights_manifest.register_trained(path, stage, preset, data, f"without fold {fold} of {preset.folds}")


def refuse_seen(start: Path | None, stages: Iterable[str], data: Path | str) -> None:
    """Raise InputError where a stage would start from one trained on this data, the images to be held out among
    them."""
    manifest = weights_manifest.read_manifest(start) if start else {}
    data = weights_manifest.data_name(data)
    for stage in stages:
        source = manifest.get(f"{stage}.safetensors", {}).get("source", "")
        if data and source.split(" without fold")[0] == f"{weights_manifest.TRAINED_ON}{data}":
            raise InputError(
                f"{stage}.safetensors in {start} was trained on {data}, and has seen the images to be held out; name a "
                "folder with the weights it started from"
            )


def _claim(path: Path, facts: dict) -> None:
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if any(before[key] != facts[key] for key in before.keys() & facts.keys()):
        raise InputError(f"{path} is of a cross-validation with another preset; give this one another folder")
    write_json(path, before | facts)


def _patients_seen(folder: Path, train: pd.DataFrame, held_out: pd.DataFrame) -> set[str]:
    """The patients that a fold's stages saw, by the list beside them; it is written before the first is trained."""
    path = folder / "images.csv"
    now = pd.concat([train.assign(side="train"), held_out.assign(side="held out")])
    now = now[["image_id", "patient_id", "side"]].sort_values("image_id", ignore_index=True)
    if not path.is_file():
        if any(folder.glob("*.safetensors")):
            raise InputError(f"{folder} has trained stages and no images.csv to say on what; remove the folder")
        _write(now, path)
    then = read_csv(path, list(now))
    if then[list(now)].to_numpy().tolist() != now.to_numpy().tolist():
        raise InputError(f"{path} names other images than are at hand now; give this data another folder")
    return set(then["patient_id"][then["side"] == "train"])


def _predicted(stage: str, folder: Path, held_out: pd.DataFrame, cache: Path, hflip: bool) -> pd.DataFrame:
    """What a fold's stage says of the images held out: from the file, or from the model and into the file."""
    path = folder / (f"{stage}_hflip.csv" if hflip else f"{stage}.csv")
    if not path.is_file():
        _, config, model = checkpoints.load(folder / f"{stage}.safetensors")
        _write(predict_table(stage, config, model, held_out, cache, hflip), path)
    table = read_csv(path, STUDY_PREDICTION_COLUMNS if stage == "study" else DETECTION_COLUMNS)
    return table.astype({name: _kind(name) for name in table})


def refuse_leaks(table: pd.DataFrame, images: pd.DataFrame, trained: dict[int, set[str]]) -> None:
    """Raise InputError where a table's image was not held out by its fold, by that alone, or its patient was trained
    on.

    table: image_id and fold; one with study_id may name an image once only. images: image_id, patient_id, fold.
    trained: fold -> the patients that its stages saw.
    """
    if images["image_id"].duplicated().any():
        raise InputError(f"{images['image_id'][images['image_id'].duplicated()].iloc[0]} is held out by two folds")
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


def score(competition: Path, images: pd.DataFrame, found: OutOfFold, preset: Preset, out: Path) -> list[Evaluation]:
    """Write each model's submission, scores.json, and return an evaluation for each, the ensemble's last.

    If all folds were held out, every id of the competition's train CSVs is answered, and an image that could not be
    read by the train part's frequencies; else the ids of the folds that were. What no stage answers, boxes without a
    detector or study labels without `study`, has the score nan and is left out of the mean.
    """
    tables = {name: find_table(competition, f"train_{name}_level.csv") for name in ("image", "study")}
    if None in tables.values():
        raise InputError(
            f"{competition} lacks train_image_level.csv or train_study_level.csv: there is no truth to score by"
        )
    truth, studies = read_csv(tables["image"], ("id", "label")), read_csv(tables["study"], ("id", *STUDY_COLUMNS))
    ids = pd.concat([studies["id"], truth["id"]])
    if found.images["fold"].nunique() < preset.folds:
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
    rows = {e.name: {k: None if math.isnan(v) else v for k, v in e.scores.items()} for e in evaluations}
    write_json(out / "scores.json", rows)
    return evaluations


def check_shortcuts(found: OutOfFold, cache: Path, out: Path) -> str:
    """How much the folds' study models lose on images with markers and borders covered; see shortcuts.py.

    Writes study_covered.csv into the folds' folders and shortcuts.json, and returns the latter as text.
    """
    tables = []
    for fold, held_out in found.images.groupby("fold"):
        folder = out / f"fold_{fold}"
        path = folder / "study_covered.csv"
        if not path.is_file():
            _, config, model = checkpoints.load(folder / "study.safetensors")
            _write(predict_table("study", config, model, held_out, cache, change=shortcut_check.cover), path)
        tables.append(
            read_csv(path, STUDY_PREDICTION_COLUMNS).astype({name: _kind(name) for name in STUDY_PREDICTION_COLUMNS})
        )
    truth = found.images.drop_duplicates("study_id").set_index("study_id")["study_label"]
    comparison = shortcut_check.compare(
        study_probabilities(found.outputs.study_probs), study_probabilities(pd.concat(tables)), truth
    )
    return shortcut_check.record(comparison, out / "shortcuts.json")


def _joined(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    if parts:
        return pd.concat(parts, ignore_index=True)
    return pd.DataFrame({name: pd.Series(dtype=_kind(name)) for name in [*columns, "fold"]})


def _kind(column: str) -> type:
    return {"fold": int, **dict.fromkeys(("image_id", "study_id", "model"), str)}.get(column, float)


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def read(out: Path, images: pd.DataFrame, preset: Preset) -> tuple[ModelOutputs, dict[str, int]]:
    """What a finished cross-validation's models said, and image id -> the fold that held the image out.

    images: the index of its competition. Raises InputError where a table or a detector of the preset is missing.
    """
    found = read_csv(Path(out) / "detections.csv", [*DETECTION_COLUMNS, "fold"])
    study_tables = read_csv(Path(out) / "image_study_probabilities.csv", [*STUDY_PREDICTION_COLUMNS, "fold"])
    found, study_tables = (table.astype({name: _kind(name) for name in table}) for table in (found, study_tables))
    folds = dict(zip(study_tables["image_id"], study_tables["fold"], strict=True))
    rows = images.loc[images["image_id"].isin(folds), ["image_id", "study_id"]]
    if len(rows) < len(folds):
        raise InputError(f"{out} is of another competition: {len(folds) - len(images)} of its images are not there")
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
