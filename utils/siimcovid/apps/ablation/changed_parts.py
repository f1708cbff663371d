"""What each part of a preset is worth on a folder's own images: one change at a time, cross-validated.

In: the index of a competition's train part, a preset and the folder of weights to start from. Out, in one folder:
seed_<S>/<change>/, a cross-validation (training/cross_validation.py) each, in which only the changed stage is trained,
and a table of its score with and without the change.

A stage is scored by itself: `study` by the mean average precision of the four study labels, a detector by its average
precision of opacity. A seed moves both the folds and the training. Where a change's cross-validation is whole, it is
not made again; several processes may share the folder, each takes a change that no other is at.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from siimcovid.apps.ablation.ablation_table import markdown, short
from siimcovid.core.configuration import Preset
from siimcovid.core.files import atomic_path, link
from siimcovid.core.overrides import override, to_dict
from siimcovid.models import weights_manifest
from siimcovid.reporting.figures import MODEL_NAMES
from siimcovid.training import cross_validation, out_of_fold
from siimcovid.training.hyperparameter_search import claimed
from siimcovid.training.training_identity import table_hash


@dataclass(frozen=True)
class Change:
    """A stage trained with other settings than the preset's; without any, as the preset has it."""

    name: str
    stage: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the stage

    @property
    def folder(self) -> str:
        """The folder's name."""
        return "_".join([self.stage, *"".join(c if c.isalnum() else " " for c in self.name).split()])


#: Parts of the study model that are taken out, and others that are put in.
STUDY_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "without the boxes' map": {"mask": 0.0},
    "without the output for none": {"none": 0.0},
    "without averaged weights": {"training.ema": 0.0},
    "without rotation, shift and scale": {"augment.shift_rotate": 0.0},
    "without flips": {"augment.hflip": 0.0},
    "without brightness and contrast": {"augment.brightness_contrast": 0.0},
    "without mirrored images when it predicts": {"hflip_tta": False},
    "without dropout": {"dropout": 0.0},
    "with one learning rate for head and backbone": {"training.head_rate": 1.0},
    "with a frozen backbone, 40 epochs": {
        "frozen": True,
        "mask": 0.0,
        "views": 2,
        "training.epochs": 40,
        "training.learning_rate": 1e-3,
    },
    "with label smoothing .1": {"label_smoothing": 0.1},
    "with focal loss, gamma 2": {"focal": 2.0},
    "with rare study labels oversampled": {"training.balance": "oversample"},
    "with rare study labels weighted": {"training.balance": "weights"},
}

#: The same of every detector, and of one.
DETECTOR_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "without the study model's backbone": {"study_backbone": False},
    "without averaged weights": {"training.ema": 0.0},
    "without rotation, shift and scale": {"augment.shift_rotate": 0.0},
    "with all layers learning": {"frozen_stages": 0},
}
CHANGES_OF: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "study": STUDY_CHANGES,
    "rcnn": DETECTOR_CHANGES,
    "yolo": {
        **DETECTOR_CHANGES,
        "without mosaics": {"augment.mosaic": 0.0},
        "with GIoU for the boxes' loss": {"box_loss": "GIoU"},
    },
    "retinanet": DETECTOR_CHANGES,
}

#: The change that is none.
OWN = "as the preset has it"


def changes(preset: Preset, stages: Sequence[str]) -> list[Change]:
    """What is tried: of each stage first the preset itself, then each change that changes something there."""
    found = [Change(OWN, stage) for stage in stages]
    for stage in stages:
        config = getattr(preset, stage)
        for name, settings in CHANGES_OF[stage].items():
            if any(attrgetter(key)(config) != value for key, value in settings.items()):
                found.append(Change(name, stage, settings))
        if stage != "study":
            longer = {"training.epochs": round(1.5 * config.training.epochs)}
            found.append(Change("with half as many epochs again", stage, longer))
    return found


def of_patients(images: pd.DataFrame, count: int, seed: int = 0) -> pd.DataFrame:
    """The images of patients drawn at random, until there are at least `count`; all where there are not so many."""
    patients = np.random.default_rng(seed).permutation(sorted(images["patient_id"].unique()))
    sizes = images.groupby("patient_id").size().loc[patients].cumsum()
    return images[images["patient_id"].isin(patients[: int((sizes < count).sum()) + 1])]


@dataclass(frozen=True)
class Trials:
    """Cross-validations of changes on the same images."""

    images: pd.DataFrame  # index rows that are trained on and predicted, their images in the cache
    data: Path
    cache: Path
    start: Path | None
    out: Path
    preset: Preset
    seeds: Sequence[int]

    def run(self, wanted: Iterable[Change]) -> tuple[pd.DataFrame, bool]:
        """Make what is not there yet; returns a row for each seed and change, and whether none is missing.

        Columns: seed, stage, change, score, and what the stage answers of CLASSES. Raises InputError where the folder
        is of another preset or of other images.
        """
        facts = {"preset": to_dict(self.preset), "images": table_hash(self.images)}
        cross_validation.claim_folder(self.out / "changed_parts.json", facts)
        rows, whole, wanted = [], True, list(wanted)
        for seed in self.seeds:
            for change in wanted:
                with claimed(self._folder(seed, change)) as ours:
                    scores = self._scores(seed, change) if ours else None
                whole &= scores is not None
                if scores is not None:
                    rows.append({"seed": seed, "stage": change.stage, "change": change.name, **scores})
        return pd.DataFrame(rows), whole

    def _folder(self, seed: int, change: Change) -> Path:
        return self.out / f"seed_{seed}" / change.folder

    def _scores(self, seed: int, change: Change) -> dict[str, float] | None:
        """The stage's scores; None where it waits for a study model that another process trains."""
        folder, stage = self._folder(seed, change), change.stage
        if not (folder / "scores.json").is_file():
            settings = {f"{stage}.{key}": value for key, value in change.settings.items()}
            preset = override(self.preset, {**settings, "seed": seed}).check()
            if getattr(getattr(preset, stage), "study_backbone", False) and not self._lend_study(seed, folder, preset):
                return None
            found = cross_validation.cross_validate(
                self.images, preset, self.cache, self.start, folder, stages=(stage,), data=self.data
            )
            out_of_fold.score(self.data, self.images, found, preset, folder, whole=False)
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))[stage]
        known = {name: value for name, value in scores.items() if value is not None and name != "mean"}
        return {"score": scores["mean"] if stage == "study" else scores["opacity"], **known}

    def _lend_study(self, seed: int, folder: Path, preset: Preset) -> bool:
        """Put the preset's own study models where the detectors of a change start from; False without them."""
        own = self._folder(seed, Change(OWN, "study"))
        if not (own / "scores.json").is_file():
            return False
        for fold in range(preset.folds):
            source, target = own / f"fold_{fold}", folder / f"fold_{fold}"
            for name in ("images.csv", "study.safetensors", "study.json"):
                with atomic_path(target / name) as temporary:
                    link(source / name, temporary)
            weights_manifest.register_trained(
                target / "study.safetensors", "study", preset, self.data, f"without fold {fold} of {preset.folds}"
            )
        return True


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each change: its mean score, and how it differs from the preset's own, in the mean and for each seed.

    It is the mean over the seeds for which both are there.
    """
    scores = rows.pivot_table(index=["stage", "change"], columns="seed", values="score")
    scores = scores.reindex(pd.MultiIndex.from_frame(rows[["stage", "change"]].drop_duplicates()))
    own = scores.xs(OWN, level="change").reindex(scores.index.get_level_values("stage"))
    differences = scores - own.to_numpy()
    return differences.assign(difference=differences.mean(axis=1), score=scores.mean(axis=1)).reset_index()


def markdown_table(rows: pd.DataFrame) -> str:
    """`table` as people read it."""
    found = table(rows)
    seeds = list(rows["seed"].unique())
    shown = pd.DataFrame({"stage": found["stage"].replace({**MODEL_NAMES, "study": "study model"})})
    shown = shown.assign(change=found["change"], score=[short(value, ".3f") for value in found["score"]])
    for name in ("difference", *seeds):
        title = f"seed {name}" if name in seeds else name
        shown[title] = ["" if math.isnan(value) else short(value, "+.3f") for value in found[name]]
    return markdown(shown) + "\n"
