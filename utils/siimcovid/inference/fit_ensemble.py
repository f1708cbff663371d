"""The numbers of calibration, box fusion and late fusion, fitted on out-of-fold predictions.

In: `ModelOutputs` of models that were trained without the images' folds (cross_validation.py), the index with these
images' truth, and the fold of each. Out: overrides of a preset, `fusion.…` and `late_fusion.…`, which fitted_numbers.py
keeps in a weights folder, and a table of what each item gains.

Items are fitted one after the other, each on top of those that were kept. To measure an item's gain it is fitted
without each fold in turn and applied to that fold, so no number is judged on images that it was fitted on; an item that
does not raise the mean of the six classes is left out. Only what is kept is fitted on all images in the end.

    calibration   each detector's scores by the odds that its boxes are hits: a logistic regression (Platt 1999)
    fusion        the detectors' weights, the IoU of fusion and that of suppression, each searched in turn
    none          a logistic regression on the detectors' highest scores and the study model's outputs
    laterality    study labels by how many lungs are affected: a logistic regression, frequencies and a search
    opacity       the exponents of `none` and of `negative` by which boxes are rescored, a search
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from siimcovid.core.configuration import FusionConfig, Preset
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.stage_names import stage_of
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.evaluation.mean_average_precision import average_precision, match, study_precisions
from siimcovid.evaluation.prediction_scores import class_scores, match_arguments, true_study_labels
from siimcovid.inference.calibration import calibrate, logits
from siimcovid.inference.ensemble import combine, ensemble, fused_together, model_weights
from siimcovid.inference.late_fusion import (
    image_none,
    laterality_evidence,
    none_evidence,
    rescoring_factors,
    weigh_by_laterality,
)
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.predictor import study_probabilities
from siimcovid.inference.weighted_boxes_fusion import fuse_boxes, usable_boxes

#: Overrides that switch calibration and late fusion off: what is fitted starts from these.
NOTHING: Mapping[str, Any] = {
    "fusion.calibration": [],
    "late_fusion.none": [],
    "late_fusion.laterality": [],
    "late_fusion.label_laterality": [],
    "late_fusion.opacity_none": 0.0,
    "late_fusion.opacity_negative": 0.0,
}

#: Values that the searches try.
WEIGHTS = (0.0, 0.25, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0)
IOUS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
NMS_IOUS = (0.3, 0.4, 0.5, 0.6)
EXPONENTS = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)
POWERS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.5)

#: Times that weights and IoUs are searched in turn, at most.
ROUNDS = 2

#: An item is kept from this gain in the mean of the six classes on; a smaller one is chance.
LEAST = 0.001

#: Folds of the regression's own cross-validation, where a search uses its predictions.
PARTS = 5

#: Inverse strength of the penalty of the logistic regressions: few images against a handful of numbers.
PENALTY = 0.3


def fit_calibration(outputs: ModelOutputs, images: pd.DataFrame, preset: Preset) -> dict[str, Any]:
    """Slope and intercept of each detector's logits, by whether a box is a hit; 1 and 0 where all are or none is."""
    numbers: list[float] = []
    for detector in preset.fusion.detectors:
        scores, hits = [], []
        for model_name in (model_name for model_name in outputs.predicted_ids if stage_of(model_name) == detector):
            matches = match(*match_arguments(outputs.detections[outputs.detections["model"] == model_name], images))
            scores.append(matches.confidence)
            hits.append(matches.hit)
        score, hit = (np.concatenate([*parts, []]) for parts in (scores, hits))
        if hit.all() or not hit.any():
            numbers += [1.0, 0.0]
            continue
        model = LogisticRegression(C=PENALTY * 100).fit(logits(score)[:, None], hit.astype(bool))
        numbers += [max(0.05, float(model.coef_[0, 0])), float(model.intercept_[0])]
    return {"fusion.calibration": _rounded(numbers)}


def fit_fusion(outputs: ModelOutputs, images: pd.DataFrame, preset: Preset) -> dict[str, Any]:
    """The detectors' weights, the IoU of fusion and of suppression: each searched in turn, as long as one improves.

    A weight of 0 leaves a detector out. What the search does not change, as calibrated scores, is made once.
    """
    score = _fusion_score(outputs, images, preset.fusion)
    detectors = len(preset.fusion.detectors)
    chosen = _of_unit_weights(preset.fusion)
    tried = {chosen: score(chosen)}

    def try_all(candidates: Iterable[FusionConfig]) -> bool:
        nonlocal chosen
        before = chosen
        for candidate in candidates:
            if candidate not in tried:
                tried[candidate] = score(candidate)
            if tried[candidate] > tried[chosen] + 1e-6:
                chosen = candidate
        return chosen != before

    try_all(replace(chosen, weights=one) for one in _one_hot(detectors))
    for _ in range(ROUNDS):
        better = [try_all(_with_weight(chosen, place, value) for value in WEIGHTS) for place in range(detectors)]
        better.append(try_all(replace(chosen, iou=value) for value in IOUS))
        better.append(try_all(replace(chosen, nms_iou=value) for value in NMS_IOUS))
        if not any(better):
            break
    values = {"weights": list(chosen.weights), "iou": chosen.iou, "nms_iou": chosen.nms_iou}
    return {f"fusion.{name}": value for name, value in values.items()}


def _fusion_score(outputs: ModelOutputs, images: pd.DataFrame, fusion: FusionConfig) -> Callable[[FusionConfig], float]:
    """A function: opacity's average precision with other weights and IoUs than `fusion` has."""
    found, groups = calibrate(outputs.detections, fusion), fused_together(outputs, fusion)
    parts = []
    for models, names in groups.items():
        table = found if len(groups) == 1 else found[found["image_id"].isin(names)]
        boxes = usable_boxes(table, models)
        parts.append((models, boxes, pd.Index(images["image_id"]).get_indexer(boxes.names)))
    *_, truth_rows, truth_boxes = match_arguments(found[:0], images)

    def score(changed: FusionConfig) -> float:
        rows, scores, corners = [], [], []
        for models, boxes, numbers in parts:
            weights = model_weights(models, changed)
            fused = fuse_boxes(boxes, models, weights, changed.iou, changed.nms_iou, changed.max_boxes)
            scores.append(fused[0])
            corners.append(fused[1])
            rows.append(numbers[fused[2]])
        arrays = [np.concatenate(values) for values in (rows, scores, corners)]
        return average_precision(*arrays, truth_rows, truth_boxes)

    return score


def _of_unit_weights(fusion: FusionConfig) -> FusionConfig:
    """The same fusion with weights of which the highest is 1: only their ratios count."""
    highest = max(fusion.weights)
    return replace(fusion, weights=tuple(round(weight / highest, 4) for weight in fusion.weights))


def _with_weight(fusion: FusionConfig, place: int, value: float) -> FusionConfig:
    """With another weight of one detector; where the others have none, nothing is changed."""
    weights = (*fusion.weights[:place], value, *fusion.weights[place + 1 :])
    return _of_unit_weights(replace(fusion, weights=weights)) if any(weights) else fusion


def _one_hot(detectors: int) -> list[tuple[float, ...]]:
    """The weights with which each detector is alone."""
    return [tuple(float(k == place) for k in range(detectors)) for place in range(detectors)]


def fit_none(outputs: ModelOutputs, images: pd.DataFrame, preset: Preset) -> dict[str, Any]:
    """The logistic regression of `late_fusion.image_none`, on the images that every model predicted."""
    evidence = none_evidence(outputs, preset.fusion, ensemble(outputs, preset.fusion))
    used = [name for name in evidence if evidence[name].notna().any()]
    rows = evidence[used].dropna()
    empty = images.set_index("image_id")["boxes"].map(len).reindex(rows.index) == 0
    if rows.empty or empty.nunique() < 2:
        return {}
    model = LogisticRegression(C=PENALTY).fit(rows.to_numpy(), empty.to_numpy())
    weight = dict(zip(used, model.coef_[0], strict=True))
    return {"late_fusion.none": _rounded([model.intercept_[0], *(weight.get(name, 0.0) for name in evidence)])}


def fit_laterality(outputs: ModelOutputs, images: pd.DataFrame, preset: Preset) -> dict[str, Any]:
    """The numbers of `late_fusion.weigh_by_laterality`; {} where fewer than PARTS images have 0, 1 or 2 sides affected.

    A logistic regression on the annotated images; how often 0, 1 and 2 sides are affected at each study label, half an
    image added everywhere so that nothing is impossible; and the power with the highest mean average precision of the
    study labels. The power is searched with out-of-fold predictions of the regression: in-sample ones would be too sure
    and leave the study model no weight.
    """
    boxes = ensemble(outputs, preset.fusion)
    none = image_none(outputs, boxes, preset)
    evidence = laterality_evidence(boxes, none)
    known = images.set_index("image_id").reindex(evidence.index)
    known = known[known["annotated"].astype(bool)]
    affected = known["boxes"].map(affected_sides).astype(int)
    if affected.value_counts().reindex([0, 1, 2], fill_value=0).min() < PARTS:
        return {}
    model, given = LogisticRegression(C=PENALTY, max_iter=2000), evidence.loc[known.index].to_numpy()
    out_of_fold = pd.DataFrame(
        cross_val_predict(model, given, affected.to_numpy(), cv=PARTS, method="predict_proba"), index=known.index
    )
    model.fit(given, affected.to_numpy())
    counts = (
        pd.crosstab(known["study_label"], affected).reindex(index=list(STUDY_LABELS), columns=[0, 1, 2], fill_value=0)
        + 0.5
    )
    ratios = counts.div(counts.sum(axis=1), axis=0) / (counts.sum() / counts.to_numpy().sum())
    weights = np.column_stack([model.intercept_, model.coef_])
    numbers = {"late_fusion.laterality": _rounded(weights.ravel())}
    numbers |= {"late_fusion.label_laterality": _rounded(ratios.to_numpy().ravel())}
    study_probs, truth = study_probabilities(outputs.study_probs), true_study_labels(images)

    def score(changes: dict[str, Any]) -> float:
        changed = weigh_by_laterality(study_probs, out_of_fold, outputs, override(preset, changes).late_fusion)
        return study_precisions(changed, truth)["mean"]

    return _best([{**numbers, "late_fusion.label_power": power} for power in POWERS], score)


def affected_sides(boxes: Sequence[Sequence[float]]) -> int:
    """In how many halves of an image the centres of its boxes lie: 0, 1 or 2."""
    return len({x1 + x2 < 1 for x1, _, x2, _ in boxes})


def fit_opacity(outputs: ModelOutputs, images: pd.DataFrame, preset: Preset) -> dict[str, Any]:
    """The exponents by which boxes are rescored."""
    boxes = ensemble(outputs, preset.fusion)
    none = image_none(outputs, boxes, preset)
    candidates = [
        {"late_fusion.opacity_none": a, "late_fusion.opacity_negative": b}
        for a, b in itertools.product(EXPONENTS, EXPONENTS)
    ]
    no_none, not_negative = rescoring_factors(boxes, none, outputs)
    rows, confidence, *rest = match_arguments(boxes, images)

    def score(exponents: dict[str, float]) -> float:
        a, b = exponents.values()
        return average_precision(rows, confidence * no_none**a * not_negative**b, *rest)

    return _best(candidates, score)


def _best(candidates: list[dict[str, Any]], score: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """The candidate with the highest score, the first among equals."""
    scores = [score(candidate) for candidate in candidates]
    return candidates[int(np.nanargmax(scores))] if np.isfinite(scores).any() else {}


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in values]


Fit = Callable[[ModelOutputs, pd.DataFrame, Preset], dict[str, Any]]

#: What is fitted, in this order: each stands on those before it.
ITEMS: dict[str, Fit] = {
    "calibration": fit_calibration,
    "fusion": fit_fusion,
    "none": fit_none,
    "laterality": fit_laterality,
    "opacity": fit_opacity,
}


def join(predictions: Sequence[EnsemblePrediction]) -> EnsemblePrediction:
    """Predictions for different images as one."""
    return EnsemblePrediction(
        pd.concat([prediction.detections for prediction in predictions], ignore_index=True),
        pd.concat([prediction.none for prediction in predictions]),
        pd.concat([prediction.study_probs for prediction in predictions], ignore_index=True),
    )


def fit(
    outputs: ModelOutputs,
    images: pd.DataFrame,
    folds: Mapping[str, int],
    preset: Preset,
    items: Sequence[str] = tuple(ITEMS),
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Fit the numbers of calibration, fusion and late fusion.

    Args:
        outputs: for every image, of models that were trained without its patient.
        images: the index's rows of these images.
        folds: image id -> the fold that held it out.
        preset: where to start from, usually with NOTHING; what no item sets stays.
        items: of ITEMS, in its order.

    Returns:
        The overrides, and a table with a row for the preset as it came and for each item: average precisions of images
        that the numbers were not fitted on, "gain" in the mean, and "kept".

    Raises:
        InputError: fewer than two folds, or an unknown item.
    """
    if unknown := set(items) - set(ITEMS):
        raise InputError(f"no item {', '.join(sorted(unknown))} to fit; choose of {', '.join(ITEMS)}")
    numbers = sorted({folds[name] for name in outputs.images["image_id"]})
    if len(numbers) < 2:
        raise InputError(
            "an ensemble is fitted without each fold in turn: give out-of-fold predictions of at least two folds"
        )
    held_out = {k: {name for name in outputs.images["image_id"] if folds[name] == k} for k in numbers}
    every = set(outputs.images["image_id"])
    test = {k: outputs.of_images(ids) for k, ids in held_out.items()}
    rest = {k: outputs.of_images(every - ids) for k, ids in held_out.items()}
    images = images[images["image_id"].isin(every)]

    fitted: dict[int, dict[str, Any]] = {k: {} for k in numbers}  # without that fold
    whole: dict[str, Any] = {}

    def scores(of_fold: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
        return class_scores(join([combine(test[k], override(preset, of_fold[k])) for k in numbers]), images)

    before = scores(fitted)
    rows = [{"item": "as it came", **before, "gain": np.nan, "kept": True}]
    for item in (item for item in ITEMS if item in items):
        candidate = {
            k: {
                **fitted[k],
                **ITEMS[item](rest[k], images[~images["image_id"].isin(held_out[k])], override(preset, fitted[k])),
            }
            for k in numbers
        }
        after = scores(candidate)
        gain = after["mean"] - before["mean"]
        rows.append({"item": item, **after, "gain": gain, "kept": bool(gain > LEAST)})
        if gain > LEAST:
            fitted, before = candidate, after
            whole |= ITEMS[item](outputs, images, override(preset, whole))
    return whole, pd.DataFrame(rows).set_index("item")
