"""Whole systems made of arms, and the items: two systems that differ in one thing.

In: a Trainer whose arms have run. Out: what a system answers to the test images, and what it costs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from siimcovid.apps.ablation.trained_variants import NONE, OVERSAMPLED, Arm, Trainer
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.inference.ensemble import combine
from siimcovid.inference.model_outputs import ModelOutputs

#: How the names of items end that add a detector.
THIRD = " as a third"

#: Score below which boxes are cut where low boxes are not kept: the cut of the report's own code.
CUT = 0.1


@dataclass(frozen=True)
class System:
    """Which arms are heard, and how."""

    detectors: Mapping[str, tuple[str, ...]] = field(  # family -> its members' arms
        default_factory=lambda: {"rcnn": ("rcnn",), "yolo": ("yolo",)}
    )
    study: tuple[str, ...] = ("study",)  # members
    hflip_tta: bool = False  # detectors see mirrored images too
    study_hflip_tta: bool = False  # the study model does
    low_boxes: bool = True
    every_image: bool = True  # a study's label is the mean over its images, not its first one's
    none: str = ""  # the study arm whose `none` is heard
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the plain preset: how answers are combined


@dataclass(frozen=True)
class Item:
    """A thing that can be off or on."""

    name: str
    off: System
    on: System


PLAIN_SYSTEM = System()


def items(detectors: tuple[str, ...], count: int) -> list[Item]:
    """What is compared without fitted numbers. detectors: families of which arms have run; count: folds."""
    plain = PLAIN_SYSTEM
    unfrozen = replace(plain, study=("study unfrozen",))
    members = {name: tuple(f"{name} fold {k}" for k in range(count)) for name in ("rcnn", "yolo")}
    balanced = replace(plain, study=(OVERSAMPLED,))
    found = [
        Item("study: mean over its images", replace(plain, every_image=False), plain),
        Item("study: mirrored images", plain, replace(plain, study_hflip_tta=True)),
        Item("study: label smoothing .1", plain, replace(plain, study=("study smoothed",))),
        Item("study: focal loss, gamma 2", plain, replace(plain, study=("study focal",))),
        Item("study: rare study labels weighted", plain, replace(plain, study=("study weighted",))),
        Item("study: rare study labels oversampled", plain, balanced),
        Item("study: averaged weights (EMA)", plain, replace(plain, study=("study averaged",))),
        Item("study: output for `none`", plain, replace(plain, study=(NONE,))),
        Item("study: unfrozen backbone", plain, unfrozen),
        Item("study: unfrozen, boxes' map", unfrozen, replace(plain, study=("study map",))),
        Item("detectors: low boxes kept", replace(plain, low_boxes=False), plain),
        Item("detectors: mirrored images", plain, replace(plain, hflip_tta=True)),
    ]
    for third in detectors:
        if third not in plain.detectors:
            more = replace(plain, detectors={**plain.detectors, third: (third,)})
            found.append(Item(f"detectors: {third}{THIRD}", plain, more))
    further = {name: (f"{name} pseudo",) for name in plain.detectors}
    found.append(Item("detectors: pseudo-labels", plain, replace(plain, detectors=further)))
    if count > 1:
        study = tuple(f"{OVERSAMPLED} fold {k}" for k in range(count))
        found.append(Item(f"fold ensemble of {count}", balanced, replace(plain, detectors=members, study=study)))
    return found


def outputs(trainer: Trainer, system: System, arms: Mapping[str, Arm], side: str = "test") -> ModelOutputs:
    """What a system's models say of the test images, or of the images held out from its (fold) arms."""
    looks = (False, True) if system.hflip_tta else (False,)
    id_tables, tables, seen = [], [], {}
    for stage_of, members in system.detectors.items():
        for number, name in enumerate(members):
            for hflip in looks:
                model_name = f"{stage_of}{f'.{number}' if number else ''}{'_hflip' if hflip else ''}"
                table = trainer.outputs(arms[name], side, hflip).assign(model=model_name)
                tables.append(table if system.low_boxes else table[table["score"] >= CUT])
                images = trainer.sides(arms[name])[side]
                seen[model_name] = images["image_id"].tolist()
                id_tables.append(images[["image_id", "study_id"]])
    study_probs = []
    for name in system.study:
        for hflip in (False, True) if system.study_hflip_tta else (False,):
            study_probs.append(trainer.outputs(arms[name], side, hflip))
    mean = pd.concat(study_probs).groupby(["image_id", "study_id"], sort=False)[list(STUDY_LABELS)].mean().reset_index()
    if system.none:
        mean = mean.merge(trainer.outputs(arms[system.none], side, False)[["image_id", "none"]], on="image_id")
    if not system.every_image:
        mean = mean.drop_duplicates("study_id")
    asked = pd.concat(id_tables).drop_duplicates("image_id").reset_index(drop=True)
    return ModelOutputs(asked, pd.concat(tables, ignore_index=True), seen, mean)


def prediction(trainer: Trainer, system: System, arms: Mapping[str, Arm]) -> EnsemblePrediction:
    """A system's answer to the test images."""
    changes = {"fusion.detectors": list(system.detectors), "fusion.weights": [1.0] * len(system.detectors)}
    return combine(outputs(trainer, system, arms), override(trainer.preset, {**changes, **system.changes}))


def cost(trainer: Trainer, system: System, arms: Mapping[str, Arm]) -> dict[str, float]:
    """Processor seconds of training a system's arms ("train") and of its looking at an image ("image")."""
    used = [(name, 1 + system.hflip_tta) for members in system.detectors.values() for name in members]
    used += [(name, 1 + system.study_hflip_tta) for name in system.study]
    used += [(system.none, 1)] if system.none else []
    trained = [name for name, _ in used]
    trained += [arms[name].after for name in trained if arms[name].after]  # what they go on from
    return {
        "train": sum(trainer.cost(arms[name])["train"] for name in trained),
        "image": sum(looks * trainer.cost(arms[name])["image"] for name, looks in used),
    }
