"""Cross-validation: every image predicted by models that never saw its patient, in one table, and scored.

In: the index of a competition's train part, its cache, a preset and the folder of weights to start from. Out, in one
folder:

    detections.csv      detections (see predictor.py) of the images held out, detectors' and ensemble's, with folds
    image_study_probabilities.csv     the study models' probabilities for each image (predictor.py), with folds
    study_probabilities.csv          study_id, the four probabilities (predictor.py), fold
    submission.csv      the ensemble's answer to all these images; submissions/<model>.csv each detector's
    scores.json         model -> average precision of each class and their mean, by the competition's metric
    weights/            the folds' models as members of a fold ensemble, once all are trained: a weights folder for the
                        kernel with `members`, and the place for the numbers of `siimcovid fit-ensemble`
    shortcuts.json      the study models' score on images with markers and borders covered (shortcut_check.py)
    crossval.json       what all folds have in common; a preset that differs in it is refused this folder
    fold_<K>/           the stages trained without fold K with their manifest, what they predicted of it, and images.csv
                        (image_id, patient_id, side: "train" or "held out")

Whatever lies there is not made again, so a run that was killed goes on, machines that share the folder can take some
folds each, and a last call without `only` collects all. What fuses the boxes may change without training anew.

A stage keeps its last epoch, which does not depend on the images held out. With `best_epoch` it keeps the best on them,
as the report did: scores are then better than they would be on images nobody chose by.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from siimcovid.core import stage_names
from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, link, write_csv, write_json
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override, to_dict
from siimcovid.core.tables import read_csv
from siimcovid.data import duplicates
from siimcovid.data.cover_markers import cover
from siimcovid.data.folds import split
from siimcovid.evaluation import shortcut_check
from siimcovid.inference.predictor import predict_table, study_probabilities
from siimcovid.models import checkpoints, weights_manifest
from siimcovid.training import out_of_fold
from siimcovid.training.frozen_features import FeatureCache
from siimcovid.training.out_of_fold import OutOfFold, read_predictions
from siimcovid.training.train_stage import fit, identity_of
from siimcovid.training.training_identity import is_finished

#: What folds have in common, beside their stages' configurations.
SHARED = ("cache_size", "folds", "seed")


@dataclass(frozen=True)
class Setting:
    """What the folds of a cross-validation have in common."""

    preset: Preset
    cache: Path
    start: Path | None
    out: Path
    data: Path | str
    features: FeatureCache

    def folder(self, fold: int) -> Path:
        """Where a fold's stages and tables lie."""
        return self.out / f"fold_{fold}"

    def register(self, path: Path, stage: str, fold: int) -> None:
        """Enter a fold's model into the manifest beside it."""
        part = f"without fold {fold} of {self.preset.folds}"
        weights_manifest.register_trained(path, stage, self.preset, self.data, part)


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

    A stage that is finished is trained again only where its identity (training_identity.py) has changed.

    Args:
        images: the index; train rows with a study label whose image lies in the cache are used.
        preset: the configuration; its `folds` and `seed` say who is held out with whom.
        cache, start: as in train_stage.fit.
        out: the folder described above.
        stages: which models, by default the preset's; without a detector the detections are empty, without `study`
            the study labels.
        only: these folds; None takes all.
        best_epoch: choose each stage's epoch by the images held out.
        data: name of the data, as it stands in manifests.

    Raises:
        InputError: there is no such fold, `out` is of another cross-validation, or an image would be predicted by a
            model that saw its patient, here or in what it started from.
    """
    stages = tuple(stages or preset.stages)
    known = images[(images["split"] == "train") & images["study_label"].isin(STUDY_LABELS)]
    splits = split_folds(known, preset, cache, range(preset.folds) if only is None else only)
    preset = override(preset, epoch_rule(best_epoch))
    setting = Setting(preset, cache, start, Path(out), data, FeatureCache())
    refuse_seen(start, stages, data)
    facts = to_dict(preset)
    claim_folder(setting.out / "crossval.json", {key: facts[key] for key in (*preset.stages, *SHARED)})
    detections, study_probs, patients_seen = [], [], {}
    for fold, (train, held_out) in splits.items():
        patients_seen[fold] = _patients_seen(setting.folder(fold), train, held_out)
        for stage in preset.training_order(stages):
            train_fold(setting, fold, stage, known if best_epoch else train)
            tables = predict_fold(setting, fold, stage, held_out)
            (study_probs if stage == "study" else detections).extend(tables)
    if len(splits) == preset.folds:
        _offer(setting, stages)
    all_held_out = pd.concat([held_out.assign(fold=fold) for fold, (_, held_out) in splits.items()])
    return out_of_fold.collect(detections, study_probs, all_held_out, patients_seen, stages, preset, setting.out)


def split_folds(
    images: pd.DataFrame, preset: Preset, cache: Path, folds: Iterable[int]
) -> dict[int, tuple[pd.DataFrame, pd.DataFrame]]:
    """Fold -> the rows to train on, each image once, and the rows held out. Raises InputError for no such fold."""
    copies = duplicates.find(images, cache) if preset.duplicates else []
    splits = {}
    for fold in dict.fromkeys(folds):
        train, held_out = split(images, fold, preset.folds, preset.seed, copies)
        splits[fold] = duplicates.once(train, copies), held_out
    return splits


def epoch_rule(best_epoch: bool) -> dict[str, object]:
    """The overrides by which every stage keeps its best epoch on the images held out, or its last."""
    stages = (*stage_names.DETECTORS, "study")
    changes: dict[str, object] = {f"{stage}.training.validate": best_epoch for stage in stages} | {"hold_out": False}
    if not best_epoch:  # patience waits for a metric
        changes |= {f"{stage}.training.patience": 0 for stage in stages}
    return changes


def train_fold(setting: Setting, fold: int, stage: str, images: pd.DataFrame) -> None:
    """Train a stage without a fold, where that is not done; its predictions by an older model are removed."""
    folder, preset = setting.folder(fold), override(setting.preset, {"fold": fold})
    path = folder / f"{stage}.safetensors"
    identity = identity_of(stage, preset, images, setting.cache, setting.start, folder)
    if is_finished(path, identity) and not (folder / f"{stage}.resume.pt").is_file():
        return
    for model in (stage, f"{stage}_hflip", f"{stage}_covered"):
        (folder / f"{model}.csv").unlink(missing_ok=True)
    fit(stage, preset, images, setting.cache, setting.start, folder, features=setting.features)
    setting.register(path, stage, fold)


def predict_fold(setting: Setting, fold: int, stage: str, held_out: pd.DataFrame) -> list[pd.DataFrame]:
    """Predictions for the images held out, of mirrored ones too where the preset asks for it: from file, or made.

    Each table has the column `fold` added.
    """
    folder, tables = setting.folder(fold), []
    mirrored = setting.preset.fusion.hflip_tta and stage in stage_names.DETECTORS
    for hflip in (False, True) if mirrored else (False,):
        path = folder / (f"{stage}_hflip.csv" if hflip else f"{stage}.csv")
        if not path.is_file():
            _, config, model = checkpoints.load(folder / f"{stage}.safetensors")
            write_csv(predict_table(stage, config, model, held_out, setting.cache, hflip), path)
        tables.append(read_predictions(path, stage).assign(fold=fold))
    return tables


def _offer(setting: Setting, stages: Sequence[str]) -> None:
    """Name the folds' models as the members of a fold ensemble, in one folder."""
    for fold in range(setting.preset.folds):
        for stage in stages:
            path = setting.out / "weights" / f"{stage_names.member(stage, fold)}.safetensors"
            for end in (".safetensors", ".json"):
                source = setting.folder(fold) / f"{stage}{end}"
                if source.is_file():
                    with atomic_path(path.with_name(path.stem + end)) as temporary:
                        link(source, temporary)
            setting.register(path, stage, fold)


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


def claim_folder(path: Path, facts: Mapping[str, object]) -> None:
    """Make a folder that of these facts, which a JSON file in it holds. Raises InputError where it is of others."""
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
        write_csv(now, path)
    then = read_csv(path, list(now))
    if then[list(now)].to_numpy().tolist() != now.to_numpy().tolist():
        raise InputError(f"{path} names other images than are at hand now; give this data another folder")
    return set(then["patient_id"][then["side"] == "train"])


def check_shortcuts(found: OutOfFold, cache: Path, out: Path) -> str:
    """How much the folds' study models lose on images with markers and borders covered; see shortcut_check.py.

    Writes study_covered.csv into the folds' folders and shortcuts.json, and returns the latter as text.
    """
    tables = []
    for fold, held_out in found.images.groupby("fold"):
        folder = out / f"fold_{fold}"
        path = folder / "study_covered.csv"
        if not path.is_file():
            _, config, model = checkpoints.load(folder / "study.safetensors")
            write_csv(predict_table("study", config, model, held_out, cache, change=cover), path)
        tables.append(read_predictions(path, "study"))
    truth = found.images.drop_duplicates("study_id").set_index("study_id")["study_label"]
    comparison = shortcut_check.compare(
        study_probabilities(found.outputs.study_probs), study_probabilities(pd.concat(tables)), truth
    )
    return shortcut_check.record(comparison, out / "shortcuts.json")
