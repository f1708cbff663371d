"""Whole systems made of arms, and the items: two systems that differ in one thing.

In: a Trainer whose arms have run. Out: what a system answers to the test films, and what it costs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from siimcovid import LEVELS
from siimcovid.ablation.arms import NONE, OVERSAMPLED, Arm, Trainer
from siimcovid.combine import Combined, Said, combine
from siimcovid.overrides import override

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
    flips: bool = False  # detectors see mirrored films too
    study_flips: bool = False  # the study model does
    low_boxes: bool = True
    every_film: bool = True  # a study's level is the mean over its films, not its first one's
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
        Item("study: mean over its films", replace(plain, every_film=False), plain),
        Item("study: mirrored films", plain, replace(plain, study_flips=True)),
        Item("study: label smoothing .1", plain, replace(plain, study=("study smoothed",))),
        Item("study: focal loss, gamma 2", plain, replace(plain, study=("study focal",))),
        Item("study: rare levels weighted", plain, replace(plain, study=("study weighted",))),
        Item("study: rare levels oversampled", plain, balanced),
        Item("study: averaged weights (EMA)", plain, replace(plain, study=("study averaged",))),
        Item("study: output for `none`", plain, replace(plain, study=(NONE,))),
        Item("study: unfrozen backbone", plain, unfrozen),
        Item("study: unfrozen, boxes' map", unfrozen, replace(plain, study=("study map",))),
        Item("detectors: low boxes kept", replace(plain, low_boxes=False), plain),
        Item("detectors: mirrored films", plain, replace(plain, flips=True)),
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


def said(trainer: Trainer, system: System, arms: Mapping[str, Arm], side: str = "test") -> Said:
    """What a system's models say of the test films, or of the films held out from its (fold) arms."""
    looks = (False, True) if system.flips else (False,)
    films, tables, seen = [], [], {}
    for family, members in system.detectors.items():
        for number, name in enumerate(members):
            for flip in looks:
                voice = f"{family}{f'.{number}' if number else ''}{'_flip' if flip else ''}"
                table = trainer.said(arms[name], side, flip).assign(model=voice)
                tables.append(table if system.low_boxes else table[table["score"] >= CUT])
                images = trainer.sides(arms[name])[side]
                seen[voice] = images["image_id"].tolist()
                films.append(images[["image_id", "study_id"]])
    levels = []
    for name in system.study:
        for flip in (False, True) if system.study_flips else (False,):
            levels.append(trainer.said(arms[name], side, flip))
    mean = pd.concat(levels).groupby(["image_id", "study_id"], sort=False)[list(LEVELS)].mean().reset_index()
    if system.none:
        mean = mean.merge(trainer.said(arms[system.none], side, False)[["image_id", "none"]], on="image_id")
    if not system.every_film:
        mean = mean.drop_duplicates("study_id")
    asked = pd.concat(films).drop_duplicates("image_id").reset_index(drop=True)
    return Said(asked, pd.concat(tables, ignore_index=True), seen, mean)


def answer(trainer: Trainer, system: System, arms: Mapping[str, Arm]) -> Combined:
    """A system's answer to the test films."""
    changes = {"fusion.detectors": list(system.detectors), "fusion.weights": [1.0] * len(system.detectors)}
    return combine(said(trainer, system, arms), override(trainer.preset, {**changes, **system.changes}))


def cost(trainer: Trainer, system: System, arms: Mapping[str, Arm]) -> dict[str, float]:
    """Processor seconds of training a system's arms ("train") and of its looking at a film ("film")."""
    heard = [(name, 1 + system.flips) for members in system.detectors.values() for name in members]
    heard += [(name, 1 + system.study_flips) for name in system.study]
    heard += [(system.none, 1)] if system.none else []
    trained = [name for name, _ in heard]
    trained += [arms[name].after for name in trained if arms[name].after]  # what they go on from
    return {
        "train": sum(trainer.cost(arms[name])["train"] for name in trained),
        "film": sum(looks * trainer.cost(arms[name])["film"] for name, looks in heard),
    }
