"""Whole systems made of variants, and the comparisons: two systems that differ in one thing.

In: a VariantTrainer whose variants have run. Out: what a system answers to the test images, and what it costs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from siimcovid.apps.ablation.trained_variants import NONE, OVERSAMPLED, Variant, VariantTrainer
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.inference.ensemble import combine
from siimcovid.inference.model_outputs import ModelOutputs

#: How the names of items end that add a detector.
THIRD = " as a third"

#: Score below which boxes are cut where low boxes are not kept: the cut of the report's own code.
SCORE_THRESHOLD = 0.1


@dataclass(frozen=True)
class SystemSetup:
    """Which variants are used, and how."""

    detectors: Mapping[str, tuple[str, ...]] = field(  # family -> its members' variants
        default_factory=lambda: {"rcnn": ("rcnn",), "yolo": ("yolo",)}
    )
    study: tuple[str, ...] = ("study",)  # members
    hflip_tta: bool = False  # detectors see mirrored images too
    study_hflip_tta: bool = False  # the study model does
    low_boxes: bool = True
    every_image: bool = True  # a study's label is the mean over its images, not its first one's
    none: str = ""  # the study variant whose `none` is used
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the plain preset: how answers are combined


@dataclass(frozen=True)
class Comparison:
    """A part of the system off and on: two setups that differ in it."""

    name: str
    off: SystemSetup
    on: SystemSetup


PLAIN_SYSTEM = SystemSetup()


def comparisons(detectors: tuple[str, ...], count: int) -> list[Comparison]:
    """What is compared without fitted numbers. detectors: stages of which variants are trained; count: folds."""
    plain = PLAIN_SYSTEM
    unfrozen = replace(plain, study=("study unfrozen",))
    members = {name: tuple(f"{name} fold {k}" for k in range(count)) for name in ("rcnn", "yolo")}
    balanced = replace(plain, study=(OVERSAMPLED,))
    found = [
        Comparison("study: mean over its images", replace(plain, every_image=False), plain),
        Comparison("study: mirrored images", plain, replace(plain, study_hflip_tta=True)),
        Comparison("study: label smoothing .1", plain, replace(plain, study=("study smoothed",))),
        Comparison("study: focal loss, gamma 2", plain, replace(plain, study=("study focal",))),
        Comparison("study: rare study labels weighted", plain, replace(plain, study=("study weighted",))),
        Comparison("study: rare study labels oversampled", plain, balanced),
        Comparison("study: averaged weights (EMA)", plain, replace(plain, study=("study averaged",))),
        Comparison("study: output for `none`", plain, replace(plain, study=(NONE,))),
        Comparison("study: unfrozen backbone", plain, unfrozen),
        Comparison("study: unfrozen, boxes' map", unfrozen, replace(plain, study=("study map",))),
        Comparison("detectors: low boxes kept", replace(plain, low_boxes=False), plain),
        Comparison("detectors: mirrored images", plain, replace(plain, hflip_tta=True)),
    ]
    for third in detectors:
        if third not in plain.detectors:
            more = replace(plain, detectors={**plain.detectors, third: (third,)})
            found.append(Comparison(f"detectors: {third}{THIRD}", plain, more))
    further = {name: (f"{name} pseudo",) for name in plain.detectors}
    found.append(Comparison("detectors: pseudo-labels", plain, replace(plain, detectors=further)))
    if count > 1:
        study = tuple(f"{OVERSAMPLED} fold {k}" for k in range(count))
        found.append(Comparison(f"fold ensemble of {count}", balanced, replace(plain, detectors=members, study=study)))
    return found


def outputs(
    trainer: VariantTrainer, system: SystemSetup, variants: Mapping[str, Variant], part: str = "test"
) -> ModelOutputs:
    """What a system's models predict for the test images, or for the images held out from its (fold) variants."""
    passes = (False, True) if system.hflip_tta else (False,)
    id_tables, tables, seen = [], [], {}
    for stage, members in system.detectors.items():
        for number, name in enumerate(members):
            for hflip in passes:
                model_name = f"{stage}{f'.{number}' if number else ''}{'_hflip' if hflip else ''}"
                table = trainer.outputs(variants[name], part, hflip).assign(model=model_name)
                tables.append(table if system.low_boxes else table[table["score"] >= SCORE_THRESHOLD])
                images = trainer.parts_of(variants[name])[part]
                seen[model_name] = images["image_id"].tolist()
                id_tables.append(images[["image_id", "study_id"]])
    study_probs = []
    for name in system.study:
        for hflip in (False, True) if system.study_hflip_tta else (False,):
            study_probs.append(trainer.outputs(variants[name], part, hflip))
    mean = pd.concat(study_probs).groupby(["image_id", "study_id"], sort=False)[list(STUDY_LABELS)].mean().reset_index()
    if system.none:
        mean = mean.merge(trainer.outputs(variants[system.none], part, False)[["image_id", "none"]], on="image_id")
    if not system.every_image:
        mean = mean.drop_duplicates("study_id")
    requested = pd.concat(id_tables).drop_duplicates("image_id").reset_index(drop=True)
    return ModelOutputs(requested, pd.concat(tables, ignore_index=True), seen, mean)


def prediction(trainer: VariantTrainer, system: SystemSetup, variants: Mapping[str, Variant]) -> EnsemblePrediction:
    """A system's answer to the test images."""
    changes = {"fusion.detectors": list(system.detectors), "fusion.weights": [1.0] * len(system.detectors)}
    return combine(outputs(trainer, system, variants), override(trainer.preset, {**changes, **system.changes}))


def cost(trainer: VariantTrainer, system: SystemSetup, variants: Mapping[str, Variant]) -> dict[str, float]:
    """Processor seconds of training a system's variants ("train") and of predicting an image ("image")."""
    used = [(name, 1 + system.hflip_tta) for members in system.detectors.values() for name in members]
    used += [(name, 1 + system.study_hflip_tta) for name in system.study]
    used += [(system.none, 1)] if system.none else []
    trained = [name for name, _ in used]
    trained += [variants[name].after for name in trained if variants[name].after]  # what they go on from
    return {
        "train": sum(trainer.cost(variants[name])["train"] for name in trained),
        "image": sum(passes * trainer.cost(variants[name])["image"] for name, passes in used),
    }
