"""Late fusion: the study model and the detectors correct each other's outputs.

In: model outputs and the ensemble's boxes. Out: a learned `none` confidence for each image, boxes rescored by it and by
the study model's `negative`, and study probabilities weighed by how many lungs the detectors find affected
(laterality). `LateFusionConfig` holds the numbers, `fit_ensemble` fits them on out-of-fold predictions; with its
defaults every function here returns what it was given.
"""

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from siimcovid.core.configuration import FusionConfig, LateFusionConfig, Preset
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.stage_names import stage_of
from siimcovid.inference.calibration import EDGE, calibrate, logits
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.weighted_boxes_fusion import none_confidence

#: Columns of `side_evidence`.
SIDES = ("surer side", "other side")

#: The study model's outputs that say whether an image has an opacity; not every study model has the second.
STUDY_EVIDENCE = ("negative", "none")


def none_evidence(outputs: ModelOutputs, fusion: FusionConfig, boxes: pd.DataFrame) -> pd.DataFrame:
    """A row per image, by image_id, of logits that say whether it has no opacity; nan where no model predicted it.

    Columns: each of fusion.detectors, the logit of 1 - the mean over its models of the image's highest calibrated
    score, the other detectors' mean where none of its models predicted the image; "negative" and "none", the study
    model's; and `side_evidence` of the ensemble's boxes, since one box that is sure says less than one in each lung.
    """
    ids = outputs.images["image_id"].tolist()
    found = calibrate(outputs.detections, fusion)
    highest = found.groupby(["model", "image_id"])["score"].max()
    columns = {}
    for detector in fusion.detectors:
        of_models = []
        for model_name in sorted(name for name in outputs.predicted_ids if stage_of(name) == detector):
            of_model = (
                highest.loc[model_name] if model_name in highest.index.get_level_values(0) else pd.Series(dtype=float)
            )
            predicted = list(outputs.predicted_ids[model_name])
            of_models.append(of_model.reindex(predicted, fill_value=0.0).reindex(ids))
        mean = pd.concat(of_models, axis=1).mean(axis=1) if of_models else pd.Series(np.nan, index=ids)
        columns[detector] = logits(1 - mean)
    by_image = outputs.study_probs.set_index("image_id")
    for name in STUDY_EVIDENCE:
        values = by_image[name].reindex(ids).astype(float) if name in by_image else pd.Series(np.nan, index=ids)
        columns[name] = logits(values)
    evidence = pd.DataFrame(columns, index=pd.Index(ids, name="image_id"))
    names = list(fusion.detectors)
    evidence[names] = evidence[names].apply(lambda column: column.fillna(evidence[names].mean(axis=1)))
    return evidence.join(side_evidence(boxes, evidence.index))


def image_none(outputs: ModelOutputs, boxes: pd.DataFrame, preset: Preset) -> pd.Series:
    """Confidence in [0, 1] that an image has no opacity, by image_id, of the images that a detector predicted.

    With `late_fusion.none` the logistic regression on `none_evidence`; without it, and for an image that one of the
    models did not predict, 1 - the highest score of the ensemble's `boxes`.
    """
    model_names = [name for name in outputs.predicted_ids if stage_of(name) in preset.fusion.detectors]
    predicted = {image for name in model_names for image in outputs.predicted_ids[name]}
    plain = none_confidence(boxes, [image for image in outputs.images["image_id"] if image in predicted])
    if not preset.late_fusion.none:
        return plain
    evidence = none_evidence(outputs, preset.fusion, boxes)
    intercept, *weights = preset.late_fusion.none
    used = [name for name, weight in zip(evidence, weights, strict=True) if weight]
    total = evidence[used].to_numpy() @ np.array([weight for weight in weights if weight]) + intercept
    learned = pd.Series(expit(total), index=evidence.index).reindex(plain.index)
    return learned.fillna(plain).rename(plain.name)


def rescore_boxes(
    boxes: pd.DataFrame, none: pd.Series, outputs: ModelOutputs, late_fusion: LateFusionConfig
) -> pd.DataFrame:
    """The boxes with scores times (1 - none) ** opacity_none times (1 - negative) ** opacity_negative of their image.

    An image without study probabilities, or without `none`, keeps that factor at 1. The boxes come back sorted by
    image_id and descending score.
    """
    if boxes.empty or not (late_fusion.opacity_none or late_fusion.opacity_negative):
        return boxes
    no_none, not_negative = rescoring_factors(boxes, none, outputs)
    factors = no_none**late_fusion.opacity_none * not_negative**late_fusion.opacity_negative
    changed = boxes.assign(score=boxes["score"].to_numpy() * factors)
    return changed.sort_values(["image_id", "score"], ascending=[True, False], kind="stable", ignore_index=True)


def rescoring_factors(boxes: pd.DataFrame, none: pd.Series, outputs: ModelOutputs) -> tuple[np.ndarray, np.ndarray]:
    """1 - none and 1 - negative of each box's image, two arrays (n,), at least EDGE; 1 where that is not known."""
    negative = outputs.study_probs.set_index("image_id")["negative"].astype(float)
    doubts = [(1 - values.reindex(boxes["image_id"])).fillna(1.0) for values in (none, negative)]
    return tuple(doubt.to_numpy().clip(EDGE) for doubt in doubts)


def side_evidence(boxes: pd.DataFrame, image_ids: pd.Index) -> pd.DataFrame:
    """A row per image: logits of the highest scores of boxes whose centre lies in the one and in the other half of the
    image, the higher one first. Columns: SIDES."""
    left = (boxes["x1"] + boxes["x2"]) < 1
    highest = [boxes[half].groupby("image_id")["score"].max().reindex(image_ids).fillna(0.0) for half in (left, ~left)]
    halves = np.sort(np.stack(highest, axis=1), axis=1)[:, ::-1]
    return pd.DataFrame(logits(halves), index=image_ids, columns=list(SIDES))


def laterality_evidence(boxes: pd.DataFrame, none: pd.Series) -> pd.DataFrame:
    """A row per image of `none`, by image_id: `side_evidence`, and the logit of `none`."""
    return side_evidence(boxes, none.index).assign(none=logits(none.to_numpy(dtype=float)))


def laterality_probabilities(boxes: pd.DataFrame, none: pd.Series, late_fusion: LateFusionConfig) -> pd.DataFrame:
    """A row per image of `none`: the probabilities that none, one or both halves of the image have an opacity.

    A multinomial logistic regression on `laterality_evidence` by `late_fusion.laterality`.
    """
    weights = np.array(late_fusion.laterality).reshape(3, -1)
    evidence = laterality_evidence(boxes, none)
    values = softmax(evidence.to_numpy() @ weights[:, 1:].T + weights[:, 0], axis=1)
    return pd.DataFrame(values, index=evidence.index)


def fuse_study_probs(
    study_probs: pd.DataFrame,
    boxes: pd.DataFrame,
    none: pd.Series,
    outputs: ModelOutputs,
    late_fusion: LateFusionConfig,
) -> pd.DataFrame:
    """`study_probs` (study_id, STUDY_LABELS) after `weigh_by_laterality` with `laterality_probabilities`.

    They are returned unchanged without `late_fusion.laterality`, and where no detector predicted any image.
    """
    if study_probs.empty or none.empty or not late_fusion.laterality:
        return study_probs
    return weigh_by_laterality(study_probs, laterality_probabilities(boxes, none, late_fusion), outputs, late_fusion)


def weigh_by_laterality(
    study_probs: pd.DataFrame, found: pd.DataFrame, outputs: ModelOutputs, late_fusion: LateFusionConfig
) -> pd.DataFrame:
    """Study probabilities multiplied by the likelihood of the laterality found; they still add up to 1.

    A typical study nearly always has opacities in both lungs, an indeterminate one mostly in one, a negative one in
    none. So a study label's probability, to the power `label_power`, is multiplied by the mean of `label_laterality`
    (how much more often than in all studies none, one or both sides are affected at that label), weighted with the
    probabilities of none, one and both sides.

    Args:
        study_probs: study_id and STUDY_LABELS.
        found: (images, 3) by image_id, of `laterality_probabilities`; a study has the mean over its images. Studies
            without any keep their probabilities.
    """
    study_of = outputs.images.set_index("image_id")["study_id"]
    by_study = found.groupby(study_of.reindex(found.index)).mean().reindex(study_probs["study_id"]).to_numpy()
    before = study_probs[list(STUDY_LABELS)].to_numpy(dtype=float)
    values = np.clip(before, EDGE, 1) ** late_fusion.label_power
    values *= by_study @ np.array(late_fusion.label_laterality).reshape(len(STUDY_LABELS), 3).T
    values /= values.sum(axis=1, keepdims=True)
    values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, before)
    return study_probs.assign(**dict(zip(STUDY_LABELS, values.T, strict=True)))
