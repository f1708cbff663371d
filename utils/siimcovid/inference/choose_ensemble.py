"""Which numbers combine the models: fitted ones, the preset's own, or those that leave one detector alone.

In: outputs of models for images that none of them was trained on, and these images' truth. Out: `ChosenEnsemble`:
overrides of the preset, with the scores of every choice that there was.

No choice is judged on images that its numbers were fitted on, and the ensemble is never worse than its best detector:
each detector's boxes are tried alone too, with late fusion fitted for them, in which the others may still say whether
an image has none. Of the choices whose opacity is not below the best lone detector's, the one with the highest mean of
the six classes is taken.

With too few images (folds.enough_to_fit) there is nothing to fit by, and the preset's numbers stay; but a detector that
is better alone in nearly all draws of a bootstrap is left alone then too, from FEWEST_OF_A_KIND images with a box on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from siimcovid.core.configuration import Preset
from siimcovid.core.overrides import override
from siimcovid.data.folds import FEWEST_OF_A_KIND, enough_to_fit
from siimcovid.evaluation.mean_average_precision import descending_order, match
from siimcovid.evaluation.paired_bootstrap import RankedClass, weighted_precision
from siimcovid.evaluation.prediction_scores import class_scores, match_arguments
from siimcovid.inference import fit_ensemble
from siimcovid.inference.ensemble import combine
from siimcovid.inference.model_outputs import ModelOutputs

#: Draws of the bootstrap, and the share of them in which a lone detector must be better where images are few.
DRAWS, SURE = 200, 0.95

#: Choices other than a lone detector.
FITTED, PRESET = "fitted", "preset"


@dataclass(frozen=True)
class ChosenEnsemble:
    """How the models are combined.

    Attributes:
        choice: FITTED, PRESET, or "<detector> alone".
        overrides: of the preset; {} where its own numbers stay.
        choices: a row for each choice there was: average precision of each class, and the mean, on the images.
        items: what each item of the fitted numbers gained, see fit_ensemble.fit; None where nothing was fitted.
        images: how many images they were.
    """

    choice: str
    overrides: Mapping[str, Any]
    choices: pd.DataFrame
    items: pd.DataFrame | None
    images: int

    def sentence(self, preset: Preset) -> str:
        """What was chosen and by which scores, and which detector is left out, in a line."""
        named = {FITTED: "fitted numbers", PRESET: f"preset {preset.name}"}
        scores = ", ".join(
            f"{named.get(name, name)} {row['mean']:.3f} ({row['opacity']:.3f})" for name, row in self.choices.iterrows()
        )
        weights = self.overrides.get("fusion.weights", preset.fusion.weights)
        out = [d for d, weight in zip(preset.fusion.detectors, weights, strict=True) if not weight]
        left_out = f" ({', '.join(out)} left out of the fusion)" if out else ""
        few = "" if self.items is not None else "; too few images to fit numbers on"
        return (
            f"The models are combined by: {named.get(self.choice, self.choice)}{left_out}. Mean (opacity) of "
            f"{self.images} images that no model was trained on: {scores}{few}."
        )


def choose(outputs: ModelOutputs, images: pd.DataFrame, folds: Mapping[str, int], preset: Preset) -> ChosenEnsemble:
    """Choose how the models are combined.

    Args:
        outputs: of models that were trained without these images' patients.
        images: the index's rows of these images.
        folds: image id -> its part, by patient: what is fitted without a part is judged on it.
        preset: whose numbers stay where no others are better.

    Raises:
        InputError: there are enough images, and all are in one part.
    """
    preset.check()
    if not enough_to_fit(images):
        return _without_fitting(outputs, images, preset)
    numbers, items = fit_ensemble.fit(outputs, images, folds, override(preset, fit_ensemble.NOTHING))
    options = {FITTED: {**fit_ensemble.NOTHING, **numbers}, PRESET: {}}
    scores = {FITTED: _last(items), PRESET: class_scores(combine(outputs, preset), images)}
    for detector in preset.fusion.detectors if len(preset.fusion.detectors) > 1 else ():
        start = {**fit_ensemble.NOTHING, **_boxes_of(detector, preset)}
        items_of_one = [item for item in fit_ensemble.ITEMS if item != "fusion"]
        numbers, table = fit_ensemble.fit(outputs, images, folds, override(preset, start), items_of_one)
        options[_alone(detector)] = {**start, **numbers}
        scores[_alone(detector)] = _last(table)
    choices = pd.DataFrame(scores).T
    floor = choices["opacity"].drop([FITTED, PRESET]).max()
    allowed = choices if np.isnan(floor) else choices[choices["opacity"] >= floor]
    choice = str(allowed["mean"].idxmax())
    return ChosenEnsemble(choice, options[choice], choices, items, len(images))


def _boxes_of(detector: str, preset: Preset) -> dict[str, Any]:
    """Overrides by which only this detector's boxes count."""
    return {"fusion.weights": [float(detector == other) for other in preset.fusion.detectors]}


def _last(table: pd.DataFrame) -> pd.Series:
    """The scores of the last item that was kept, as fit_ensemble.fit returns them."""
    return table[table["kept"]].iloc[-1].drop(["gain", "kept"]).astype(float)


def _alone(detector: str) -> str:
    return f"{detector} alone"


def _without_fitting(outputs: ModelOutputs, images: pd.DataFrame, preset: Preset) -> ChosenEnsemble:
    """The preset's numbers, or the same with the boxes of one detector where it is surely better alone."""
    detectors = preset.fusion.detectors
    changes: dict[str, dict[str, Any]] = {PRESET: {}}
    if len(detectors) > 1:
        changes |= {_alone(d): _boxes_of(d, preset) for d in detectors}
    predictions = {name: combine(outputs, override(preset, change)) for name, change in changes.items()}
    choices = pd.DataFrame({name: class_scores(found, images) for name, found in predictions.items()}).T
    choice, rival = PRESET, str(choices["opacity"].fillna(0).idxmax())
    boxes = [predictions[name].detections for name in (PRESET, rival)]
    with_boxes = int((images["boxes"].map(len) > 0).sum())  # a bootstrap of a handful always draws the same
    if (
        rival != PRESET
        and with_boxes >= FEWEST_OF_A_KIND
        and share_of_draws_better(*boxes, images, preset.seed) >= SURE
    ):
        choice = rival
    return ChosenEnsemble(choice, changes[choice], choices, None, len(images))


def share_of_draws_better(boxes: pd.DataFrame, others: pd.DataFrame, images: pd.DataFrame, seed: int) -> float:
    """In which share of DRAWS of the images' patients, with replacement, `others` have a higher opacity AP than
    `boxes`; equal ones count half."""
    patients = pd.factorize(images["patient_id"])[0]
    ranked = [_ranked(table, images) for table in (boxes, others)]
    rng, better = np.random.default_rng(seed), 0.0
    for _ in range(DRAWS):
        copies = np.bincount(rng.integers(patients.max() + 1, size=patients.max() + 1), minlength=patients.max() + 1)
        first, second = (weighted_precision(one, copies[patients].astype(float)) for one in ranked)
        better += (second > first) + 0.5 * (second == first)
    return better / DRAWS


def _ranked(boxes: pd.DataFrame, images: pd.DataFrame) -> RankedClass:
    arguments = match_arguments(boxes, images)
    rows, confidence, _, truth_rows, _ = arguments
    return RankedClass(match(*arguments).hit, rows[descending_order(confidence)], truth_rows)
