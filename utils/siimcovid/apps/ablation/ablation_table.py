"""Every item's average precisions over several competitions, their spread and their cost.

In: trainers whose variants have run. Out: a row per item, competition and state (off, on), and the same as one table.

Numbers by which answers are combined are fitted on out-of-fold predictions of the other competitions' train parts (of
its own, where there is but one): not on the images that they are scored on, nor on any image of that competition. So
the combined system costs no more training than the plain one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from siimcovid.apps.ablation.compared_systems import (
    PLAIN_SYSTEM,
    THIRD,
    Comparison,
    SystemSetup,
    comparisons,
    cost,
    outputs,
    prediction,
)
from siimcovid.apps.ablation.trained_variants import NONE, OVERSAMPLED, Variant, VariantTrainer
from siimcovid.core.configuration import Preset
from siimcovid.core.labels import CLASSES
from siimcovid.core.overrides import override
from siimcovid.evaluation.prediction_scores import class_scores, opacity_score
from siimcovid.inference import fit_ensemble
from siimcovid.inference.model_outputs import ModelOutputs

#: What all fitted numbers stand on, and what the small preset ships.
FITTED = SystemSetup(study=(OVERSAMPLED,))

#: The last row: all that is kept against the plain system.
TOGETHER = "all that is kept, together"

Variants = Mapping[str, Variant]


def out_of_fold(
    trainer: VariantTrainer, variants: Variants, system: SystemSetup = FITTED
) -> tuple[ModelOutputs, pd.DataFrame]:
    """What the fold variants predict for their own fold's images, and the index of these images with "fold"."""
    parts, images = [], []
    for fold in range(trainer.folds):
        detectors = {stage: (f"{stage} fold {fold}",) for stage in system.detectors}
        study, none = (
            tuple(f"{name} fold {fold}" for name in system.study),
            system.none and f"{system.none} fold {fold}",
        )
        members = replace(system, detectors=detectors, study=study, none=none)
        parts.append(outputs(trainer, members, variants, "held_out"))
        held_out = trainer.parts_of(variants[members.study[0]])["held_out"]
        images.append(held_out.assign(fold=fold))
    return _joined(parts), pd.concat(images, ignore_index=True)


def _joined(parts: Sequence[ModelOutputs]) -> ModelOutputs:
    predicted_ids: dict[str, list[str]] = {}
    for part in parts:
        for model_name, names in part.predicted_ids.items():
            predicted_ids.setdefault(model_name, []).extend(names)
    tables = ("images", "detections", "study_probs")
    return ModelOutputs(
        predicted_ids=predicted_ids,
        **{t: pd.concat([getattr(part, t) for part in parts], ignore_index=True) for t in tables},
    )


def fit_on_other_competitions(
    name: str, folds_of: Mapping[str, tuple[ModelOutputs, pd.DataFrame]], preset: Preset
) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """For each item of fit_ensemble.ITEMS (name, numbers before it, numbers with it), fitted without competition
    `name`.

    folds_of: competition -> what `out_of_fold` returns. What does not help images that it was not fitted on, whole
    competitions where there are several, is not among the numbers of the items after it.
    """
    data, images, folds = other_competitions(name, folds_of)
    _, table = fit_ensemble.fit(data, images, folds, preset)
    steps, kept = [], {}
    for item, fit in fit_ensemble.ITEMS.items():
        numbers = kept | fit(data, images, override(preset, kept))
        steps.append((item, kept, numbers))
        kept = numbers if table.loc[item, "kept"] else kept
    return [*steps, (TOGETHER, {}, kept)]


def fit_on_all_competitions(
    trainers: Mapping[str, tuple[VariantTrainer, Variants]], compare: Sequence[str]
) -> dict[str, Any]:
    """The numbers to ship: fitted on what the fold variants of all these competitions predicted."""
    folds_of = {name: out_of_fold(*trainers[name]) for name in compare}
    fitted = override(trainers[compare[0]][0].preset, {"fusion.hflip_tta": FITTED.hflip_tta})
    return fit_on_other_competitions("", folds_of, fitted)[-1][2]


def other_competitions(
    name: str, folds_of: Mapping[str, tuple[ModelOutputs, pd.DataFrame]]
) -> tuple[ModelOutputs, pd.DataFrame, dict[str, int]]:
    """What the fold variants of the other competitions (its own, where it is the only one) predicted, the index of
    these images,
    and image id -> the competition, or where it is one the fold, that is held out together."""
    others = [other for other in folds_of if other != name] or [name]
    images = pd.concat([folds_of[other][1].assign(place=k) for k, other in enumerate(others)], ignore_index=True)
    folds = dict(zip(images["image_id"], images["place" if len(others) > 1 else "fold"], strict=True))
    return _joined([folds_of[other][0] for other in others]), images, folds


def rows(
    trainers: Mapping[str, tuple[VariantTrainer, Variants]], detectors: Sequence[str], compare: Sequence[str]
) -> pd.DataFrame:
    """A row per item, competition and state: item, competition, state, CLASSES, mean, image, train (seconds).

    trainers: competition -> its trainer and its variants by name. compare: the competitions on which every item is
    compared; on the others only the plain system and all that is kept.
    """
    folds_of = {name: out_of_fold(*trainers[name]) for name in trainers}
    own_none = replace(FITTED, none=NONE)
    none_folds = {name: out_of_fold(*trainers[name], own_none) for name in compare}
    found = []

    def add(item: Comparison, name: str) -> None:
        trainer, variants = trainers[name]
        for state, system in (("off", item.off), ("on", item.on)):
            scores = class_scores(prediction(trainer, system, variants), trainer.data.test)
            found.append(
                {"item": item.name, "competition": name, "state": state, **scores, **cost(trainer, system, variants)}
            )

    for name, (trainer, _) in trainers.items():
        rest = {other: folds_of[other] for other in (*compare, name)}
        if name in compare:
            for item in comparisons(tuple(detectors), trainer.folds):
                add(item, name)
        fitted = override(trainer.preset, {"fusion.hflip_tta": FITTED.hflip_tta})
        for item, before, after in fit_on_other_competitions(name, rest, fitted):
            if item == TOGETHER:
                add(Comparison(item, PLAIN_SYSTEM, replace(FITTED, changes=after)), name)
            elif name in compare:
                add(
                    Comparison(f"fitted: {item}", replace(FITTED, changes=before), replace(FITTED, changes=after)), name
                )
            if item == "none" and name in compare:
                data, images, _ = other_competitions(name, none_folds)
                own = before | fit_ensemble.fit_none(data, images, override(fitted, before))
                without, used = replace(FITTED, changes=after), replace(own_none, changes=own)
                add(Comparison("fitted: none, the study model's output too", without, used), name)
        if name not in compare:
            ((_, _, own),) = fit_on_other_competitions(name, {name: folds_of[name]}, fitted)[-1:]
            add(Comparison(f"{TOGETHER}, fitted on its own folds", PLAIN_SYSTEM, replace(FITTED, changes=own)), name)
    return pd.DataFrame(found)


def detectors_alone(trainers: Mapping[str, tuple[VariantTrainer, Variants]], detectors: Sequence[str]) -> pd.DataFrame:
    """Opacity AP of each detector alone, a row per competition."""
    table = {}
    for name, (trainer, variants) in trainers.items():
        images = trainer.data.test
        table[name] = {
            d: opacity_score(trainer.outputs(variants[d], "test", False), images) for d in detectors if d in variants
        }
    return pd.DataFrame(table).T


def ensembles_beside_detectors(alone: pd.DataFrame, found: pd.DataFrame) -> str:
    """A table of the opacity AP of `detectors_alone`, of the plain ensemble, of it with each third detector, and of all
    that is
    kept."""
    table = alone
    for item in (TOGETHER, *(name for name in found["item"].unique() if name.endswith(THIRD))):
        both = found[found["item"] == item].pivot_table("opacity", "competition", "state")
        table = table.join(
            both.rename(columns={"on": item, "off": "plain ensemble"}).drop(columns=table, errors="ignore")
        )
    table = table.map(lambda value: "" if pd.isna(value) else short(value, ".3f"))
    return markdown(table.reset_index(names="competition"))


def gains_table(found: pd.DataFrame) -> str:
    """A table of what each item adds: off, and the gain in the mean and in each class over the competitions, each with
    its spread (standard deviation); and what it costs, on / off."""
    parts_of = {state: part.set_index(["item", "competition"]) for state, part in found.groupby("state")}
    gain = parts_of["on"][SCORES] - parts_of["off"][SCORES]
    cells = _cells(gain, "+.3f")
    cells.insert(0, "off", parts_of["off"]["mean"].groupby("item", sort=False).mean().map(lambda v: short(v, ".3f")))
    for name, title in COSTS.items():
        cells[title] = (
            (parts_of["on"][name] / parts_of["off"][name]).groupby("item", sort=False).mean().map("{:.2f}".format)
        )
    return markdown(cells.reset_index())


def precision_table(found: pd.DataFrame) -> str:
    """A table of the average precisions themselves: two lines an item, mean and spread over the competitions."""
    return markdown(_cells(found.set_index(["item", "state"])[SCORES], ".3f").reset_index())


#: Columns of both tables, the mean first; and titles of the costs.
SCORES = ["mean", *CLASSES]
COSTS = {"image": "image x", "train": "training x"}


def _cells(values: pd.DataFrame, style: str) -> pd.DataFrame:
    """Mean and spread over the last index level but the item (and state), as text."""
    keys = [name for name in values.index.names if name != "competition"]
    groups = values.groupby(level=keys, sort=False)
    mean, spread = groups.mean(), groups.std(ddof=0)
    alone = bool((groups.size() == 1).all())
    texts = {}
    for name in values:
        pairs = zip(mean[name], spread[name], strict=True)
        texts[name] = [short(m, style) + ("" if alone else f" ±{short(s, '.3f')}") for m, s in pairs]
    return pd.DataFrame(texts, index=mean.index)


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, its cells as they print."""
    rows = [table.columns, ["---"] * table.shape[1], *table.to_numpy()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def short(value: float, style: str) -> str:
    """A number without the nought before its point."""
    return format(value, style).replace("0.", ".", 1)
