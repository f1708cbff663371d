"""Cross-validation: every film predicted by models that never saw its patient, in one table, and scored.

In: the index of a competition's train part, its cache, a preset and the folder of weights to start from. Out, in one
folder:

    detections.csv      the detections table (predict.py) of the films held out, detectors' and ensemble's, with folds
    film_levels.csv     what the study models say of each film: the levels table of predict.py, with folds
    levels.csv          study_id, the four probabilities (combine.py), fold
    submission.csv      the ensemble's answer to all these films; submissions/<model>.csv each detector's
    scores.json         model -> average precision of each class and their mean, by the competition's metric
    weights/            the folds' models as members of a fold ensemble, once all are trained: a weights folder for the
                        kernel with `members`, and the place for the numbers of `siimcovid combine`
    shortcuts.json      the study models' score on films with markers and borders covered (shortcuts.py)
    crossval.json       what all folds have in common; a preset that differs in it is refused this folder
    fold_<K>/           the stages trained without fold K with their manifest, what they predicted of it, and films.csv
                        (image_id, patient_id, side: "train" or "held out")

Whatever lies there is not made again, so a run that was killed goes on, machines that share the folder can take some
folds each, and a last call without `only` collects all. What fuses the boxes may change without training anew.

A stage keeps its last epoch, which does not depend on the films held out. With `best_epoch` it keeps the best on them,
as the report did: scores are then better than they would be on films nobody chose by.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from siimcovid import CLASSES, LEVEL_COLUMNS, LEVELS, checkpoint, duplicates, shortcuts, submission, weights
from siimcovid.combine import Combined, Said, combine
from siimcovid.configs import Preset
from siimcovid.errors import InputError
from siimcovid.evaluate import Evaluation, evaluate
from siimcovid.files import atomic_path, link, write_json
from siimcovid.folds import split
from siimcovid.fuse import ENSEMBLE, none_confidence
from siimcovid.overrides import override, to_dict
from siimcovid.predict import DETECTION_COLUMNS, predict, study_levels
from siimcovid.stages import fit
from siimcovid.tables import find_table, read_csv

LEVEL_TABLE = ["image_id", "study_id", *LEVELS]

#: What folds have in common, beside their stages' configurations.
SHARED = ("cache_size", "folds", "seed")


@dataclass(frozen=True)
class OutOfFold:
    """What models said of the films that they did not see."""

    stages: tuple[str, ...]  # which models
    films: pd.DataFrame  # the index's rows that were held out, + fold
    said: Said  # by each model for itself
    answer: Combined  # by all of them, as the kernel combines them


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
    data: str = "",
) -> OutOfFold:
    """Train and predict, fold by fold, what is not there yet, and write detections.csv and levels.csv.

    Args:
        images: the index; train rows with a level whose film lies in the cache are used.
        preset: the configuration; its `folds` and `seed` say who is held out with whom.
        cache, start: as in stages.fit.
        out: the folder described above.
        stages: which models, by default the preset's; without a detector the detections are empty, without `study`
            the levels.
        only: these folds; None takes all.
        best_epoch: choose each stage's epoch by the films held out.
        data: name of the data, as it stands in manifests.

    Raises:
        InputError: there is no such fold, `out` is of another cross-validation, or a film would be predicted by a model
            that saw its patient, here or in what it started from.
    """
    out, numbers = Path(out), list(range(preset.folds) if only is None else dict.fromkeys(only))
    stages = tuple(stages or preset.stages)
    known = images[(images["split"] == "train") & images["level"].isin(LEVELS)]
    copies = duplicates.find(known, cache) if preset.duplicates else []
    sides = {}
    for fold in numbers:  # refuses a fold there is not
        train, held_out = split(known, fold, preset.folds, preset.seed, copies)
        sides[fold] = duplicates.once(train, copies), held_out
    trainable = (*checkpoint.DETECTORS, "study")
    epochs = {f"{stage}.training.validate": best_epoch for stage in trainable}
    if not best_epoch:  # patience waits for a metric
        epochs |= {f"{stage}.training.patience": 0 for stage in trainable}
    preset = override(preset, epochs)
    refuse_seen(start, stages, data)
    facts = to_dict(preset)
    _claim(out / "crossval.json", {key: facts[key] for key in (*preset.stages, *SHARED)})

    detections, levels, trained = [], [], {}
    for fold, (train, held_out) in sides.items():
        folder = out / f"fold_{fold}"
        trained[fold] = _patients_seen(folder, train, held_out)
        for stage in stages:
            path = folder / f"{stage}.safetensors"
            if not path.is_file() or (folder / f"{stage}.resume.pt").is_file():
                for model in (stage, f"{stage}_flip", f"{stage}_covered"):
                    (folder / f"{model}.csv").unlink(missing_ok=True)
                shown = known if best_epoch else train
                fit(stage, override(preset, {"fold": fold}), shown, cache, start, folder)
                weights.register_trained(path, stage, preset, f"{data} without fold {fold} of {preset.folds}".strip())
            for flip in (False, True) if preset.fusion.flips and stage in checkpoint.DETECTORS else (False,):
                table = _predicted(stage, folder, held_out, cache, flip).assign(fold=fold)
                (levels if stage == "study" else detections).append(table)
    if len(numbers) == preset.folds:
        _offer(out, stages, preset, data)
    films = pd.concat([held_out.assign(fold=fold) for fold, (_, held_out) in sides.items()])
    found, graded = _joined(detections, DETECTION_COLUMNS), _joined(levels, LEVEL_TABLE)
    refuse_leaks(found, films, trained)
    refuse_leaks(graded, films, trained)
    ends = ("", "_flip") if preset.fusion.flips else ("",)
    voices = [f"{stage}{end}" for stage in stages if stage != "study" for end in ends]
    said = Said(
        films[["image_id", "study_id"]],
        found.drop(columns="fold"),
        {voice: films["image_id"].tolist() for voice in voices},
        graded.drop(columns="fold"),
    )
    answer = combine(said, preset)
    fold = films.set_index("image_id")["fold"]
    if len(voices) > 1:
        found = pd.concat([found, answer.detections.assign(fold=answer.detections["image_id"].map(fold))])
    found = found.sort_values(["image_id", "model", "score"], ascending=[True, True, False], kind="stable")
    _write(found, out / "detections.csv")
    _write(graded, out / "film_levels.csv")
    _write(answer.levels.merge(films[["study_id", "fold"]].drop_duplicates(), on="study_id"), out / "levels.csv")
    return OutOfFold(stages, films, said, answer)


def _offer(out: Path, stages: Sequence[str], preset: Preset, data: str) -> None:
    """Name the folds' models as the members of a fold ensemble, in one folder."""
    for fold in range(preset.folds):
        for stage in stages:
            path = out / "weights" / f"{checkpoint.member(stage, fold)}.safetensors"
            for end in (".safetensors", ".json"):
                source = out / f"fold_{fold}" / f"{stage}{end}"
                if source.is_file():
                    with atomic_path(path.with_name(path.stem + end)) as temporary:
                        link(source, temporary)
            weights.register_trained(path, stage, preset, f"{data} without fold {fold} of {preset.folds}".strip())


def refuse_seen(start: Path | None, stages: Iterable[str], data: str) -> None:
    """Raise InputError where a stage would start from one trained on this data, the films to be held out among them."""
    manifest = weights.read_manifest(start) if start else {}
    for stage in stages:
        source = manifest.get(f"{stage}.safetensors", {}).get("source", "")
        if data and source.split(" without fold")[0] == f"trained by siimcovid on {data}":
            raise InputError(
                f"{stage}.safetensors in {start} was trained on {data}, and has seen the films to be held out; name a "
                "folder with the weights it started from"
            )


def _claim(path: Path, facts: dict) -> None:
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if any(before[key] != facts[key] for key in before.keys() & facts.keys()):
        raise InputError(f"{path} is of a cross-validation with another preset; give this one another folder")
    write_json(path, before | facts)


def _patients_seen(folder: Path, train: pd.DataFrame, held_out: pd.DataFrame) -> set[str]:
    """The patients that a fold's stages saw, by the list beside them; it is written before the first is trained."""
    path = folder / "films.csv"
    now = pd.concat([train.assign(side="train"), held_out.assign(side="held out")])
    now = now[["image_id", "patient_id", "side"]].sort_values("image_id", ignore_index=True)
    if not path.is_file():
        if any(folder.glob("*.safetensors")):
            raise InputError(f"{folder} has trained stages and no films.csv to say on what; remove the folder")
        _write(now, path)
    then = read_csv(path, list(now))
    if then[list(now)].to_numpy().tolist() != now.to_numpy().tolist():
        raise InputError(f"{path} names other films than are at hand now; give this data another folder")
    return set(then["patient_id"][then["side"] == "train"])


def _predicted(stage: str, folder: Path, held_out: pd.DataFrame, cache: Path, flip: bool) -> pd.DataFrame:
    """What a fold's stage says of the films held out: from the file, or from the model and into the file."""
    path = folder / (f"{stage}_flip.csv" if flip else f"{stage}.csv")
    if not path.is_file():
        _, config, model = checkpoint.load(folder / f"{stage}.safetensors")
        _write(predict(stage, config, model, held_out, cache, flip), path)
    table = read_csv(path, LEVEL_TABLE if stage == "study" else DETECTION_COLUMNS)
    return table.astype({name: _kind(name) for name in table})


def refuse_leaks(table: pd.DataFrame, films: pd.DataFrame, trained: dict[int, set[str]]) -> None:
    """Raise InputError where a table's film was not held out by its fold, by that alone, or its patient was trained on.

    table: image_id and fold; one with study_id may name a film once only. films: image_id, patient_id, fold.
    trained: fold -> the patients that its stages saw.
    """
    if films["image_id"].duplicated().any():
        raise InputError(f"{films['image_id'][films['image_id'].duplicated()].iloc[0]} is held out by two folds")
    by_image = films.set_index("image_id")
    fold = table["image_id"].map(by_image["fold"])
    if (wrong := table["image_id"][fold != table["fold"]]).size:
        raise InputError(f"{wrong.iloc[0]} was predicted by a fold that did not hold it out; remove that fold's folder")
    for number, patients in trained.items():
        held_out = by_image[by_image["fold"] == number]
        if (seen := held_out.index[held_out["patient_id"].isin(patients)]).size:
            raise InputError(f"the patient of {seen[0]} is on both sides of fold {number}; remove that fold's folder")
    if "study_id" in table and table["image_id"].duplicated().any():
        name = table["image_id"][table["image_id"].duplicated()].iloc[0]
        raise InputError(f"{name} has levels twice; remove study.csv in the folds' folders")


def score(competition: Path, images: pd.DataFrame, found: OutOfFold, preset: Preset, out: Path) -> list[Evaluation]:
    """Write each model's submission, scores.json, and return an evaluation for each, the ensemble's last.

    If all folds were held out, every id of the competition's train CSVs is answered, and a film that could not be read
    by the train part's frequencies; else the ids of the folds that were. What no stage answers, boxes without a
    detector or levels without `study`, has the score nan and is left out of the mean.
    """
    tables = {name: find_table(competition, f"train_{name}_level.csv") for name in ("image", "study")}
    if None in tables.values():
        raise InputError(
            f"{competition} lacks train_image_level.csv or train_study_level.csv: there is no truth to score by"
        )
    truth, studies = read_csv(tables["image"], ("id", "label")), read_csv(tables["study"], ("id", *LEVEL_COLUMNS))
    ids = pd.concat([studies["id"], truth["id"]])
    if found.films["fold"].nunique() < preset.folds:
        ids = ids[ids.isin([*(found.films["study_id"] + "_study"), *(found.films["image_id"] + "_image")])]
    sample = pd.DataFrame({"id": ids, "PredictionString": ""})
    priors = submission.train_priors(images)
    detectors = [stage for stage in found.stages if stage != "study"]
    models = [*detectors, *([ENSEMBLE] if len(detectors) > 1 else [])] or ["study"]
    answered = [*(LEVELS if "study" in found.stages else ()), *(("none", "opacity") if detectors else ())]

    evaluations = []
    for model in models:
        path = out / "submission.csv" if model == models[-1] else out / "submissions" / f"{model}.csv"
        boxes, none, levels = found.answer.detections, found.answer.none, found.answer.levels
        if model != ENSEMBLE:
            boxes = found.said.detections[found.said.detections["model"] == model]
            none = none_confidence(boxes, found.films["image_id"] if detectors else ())
            levels = study_levels(found.said.levels)
        submission.write_submission(sample, levels, none, boxes, images, path, priors)
        answers = submission.read_table(path, ("id", "PredictionString"))
        evaluation = evaluate(model, answers, truth, studies, subset=True)
        scores = {name: evaluation.scores[name] if name in answered else math.nan for name in CLASSES}
        known = [value for value in scores.values() if not math.isnan(value)]
        scores["mean"] = float(np.mean(known)) if known else math.nan
        evaluations.append(replace(evaluation, scores=scores))
    rows = {e.name: {k: None if math.isnan(v) else v for k, v in e.scores.items()} for e in evaluations}
    write_json(out / "scores.json", rows)
    return evaluations


def check_shortcuts(found: OutOfFold, cache: Path, out: Path) -> str:
    """How much the folds' study models lose on films with markers and borders covered; see shortcuts.py.

    Writes study_covered.csv into the folds' folders and shortcuts.json, and returns the latter as text.
    """
    tables = []
    for fold, held_out in found.films.groupby("fold"):
        folder = out / f"fold_{fold}"
        path = folder / "study_covered.csv"
        if not path.is_file():
            _, config, model = checkpoint.load(folder / "study.safetensors")
            _write(predict("study", config, model, held_out, cache, change=shortcuts.cover), path)
        tables.append(read_csv(path, LEVEL_TABLE).astype({name: _kind(name) for name in LEVEL_TABLE}))
    truth = found.films.drop_duplicates("study_id").set_index("study_id")["level"]
    comparison = shortcuts.compare(study_levels(found.said.levels), study_levels(pd.concat(tables)), truth)
    return shortcuts.record(comparison, out / "shortcuts.json")


def _joined(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    if parts:
        return pd.concat(parts, ignore_index=True)
    return pd.DataFrame({name: pd.Series(dtype=_kind(name)) for name in [*columns, "fold"]})


def _kind(column: str) -> type:
    return {"fold": int, **dict.fromkeys(("image_id", "study_id", "model"), str)}.get(column, float)


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def read(out: Path, images: pd.DataFrame, preset: Preset) -> tuple[Said, dict[str, int]]:
    """What a finished cross-validation's models said, and image id -> the fold that held the film out.

    images: the index of its competition. Raises InputError where a table or a detector of the preset is missing.
    """
    found = read_csv(Path(out) / "detections.csv", [*DETECTION_COLUMNS, "fold"])
    graded = read_csv(Path(out) / "film_levels.csv", [*LEVEL_TABLE, "fold"])
    found, graded = (table.astype({name: _kind(name) for name in table}) for table in (found, graded))
    folds = dict(zip(graded["image_id"], graded["fold"], strict=True))
    films = images.loc[images["image_id"].isin(folds), ["image_id", "study_id"]]
    if len(films) < len(folds):
        raise InputError(f"{out} is of another competition: {len(folds) - len(films)} of its films are not there")
    voices = [voice for voice in dict.fromkeys(found["model"]) if checkpoint.family(voice) in preset.fusion.detectors]
    if lacking := set(preset.fusion.detectors) - set(voices):
        raise InputError(f"{out} lacks {', '.join(sorted(lacking))}: run `siimcovid crossval` with it")
    found = found[found["model"].isin(voices)].drop(columns="fold")
    return Said(films, found, {voice: list(folds) for voice in voices}, graded.drop(columns="fold")), folds
