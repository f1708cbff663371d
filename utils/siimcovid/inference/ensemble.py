"""What all models said of the same images becomes one answer: fused boxes, a confidence in `none`, the study labels.

In: a `ModelOutputs`, the tables that predict.py makes. Out: a `EnsemblePrediction`, what submission.py writes. All
numbers come from the preset, where `fusion` says how boxes become an ensemble's and `late_fusion` what the study model
and the detectors tell each other; combination.py fits them on images that the models did not see. With the plain preset
nothing crosses: the boxes are fused, `none` is 1 - the highest score, and the study labels are the study model's.

A model_name is one look of one model: "rcnn", "rcnn_hflip" on mirrored images, "rcnn.1" another member of a fold
ensemble.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.special import expit, logit, softmax

from siimcovid.core.configuration import FusionConfig, LateFusionConfig, Preset
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.inference.predictor import study_probabilities
from siimcovid.inference.weighted_boxes_fusion import COLUMNS, fuse, none_confidence
from siimcovid.models.checkpoints import stage_of

#: Probabilities are kept this far from 0 and 1 before their logit is taken.
EDGE = 1e-4

#: What is known of how many sides of an image are affected: see `laterality_evidence`.
LATERALITY_EVIDENCE = ("surer side", "other side", "none")

#: What the study model says of an image beside the four study labels, where it has the output.
NONE = "none"


@dataclass(frozen=True)
class ModelOutputs:
    """What the models said of images, each for itself."""

    images: pd.DataFrame  # image_id and study_id of all images that are to be answered
    detections: pd.DataFrame  # of all model_names, as predict.py makes them
    seen: Mapping[str, Collection[str]]  # model_name -> image ids of the images that it looked at, without a box too
    study_probs: pd.DataFrame = (
        field(  # a row per image: image_id, study_id, STUDY_LABELS and, from some models, `none`
            default_factory=lambda: pd.DataFrame(columns=["image_id", "study_id", *STUDY_LABELS])
        )
    )


@dataclass(frozen=True)
class EnsemblePrediction:
    """One answer."""

    detections: pd.DataFrame  # of the model "ensemble"
    none: (
        pd.Series
    )  # image_id -> confidence in [0, 1] that there is no opacity, of the images that a detector looked at
    study_probs: pd.DataFrame  # study_id and STUDY_LABELS, which add up to 1


def combine(outputs: ModelOutputs, preset: Preset) -> EnsemblePrediction:
    """Combine by a preset; where a model that late fusion needs said nothing, that part of it is left out.

    Raises InputError where the preset's numbers do not fit its detectors.
    """
    preset.check()
    boxes = ensemble(outputs, preset.fusion)
    none = image_none(outputs, boxes, preset)
    study_probs = study_probabilities(outputs.study_probs)
    return EnsemblePrediction(
        rescore_boxes(boxes, none, outputs, preset.late_fusion),
        none,
        fuse_study_probs(study_probs, boxes, none, outputs, preset.late_fusion),
    )


def calibrate(detections: pd.DataFrame, fusion: FusionConfig) -> pd.DataFrame:
    """The detections with scores sigmoid(slope * logit(score) + intercept), by each detector's two numbers (Platt 1999,
    Probabilistic outputs for support vector machines); as they are without `fusion.calibration`."""
    if not fusion.calibration or detections.empty:
        return detections
    numbers = fusion.of_detectors("calibration", 2)
    scores = detections["score"].to_numpy(dtype=float).copy()
    model = detections["model"].to_numpy()
    for model_name in pd.unique(detections["model"]):
        if stage_of(model_name) in numbers:
            slope, intercept = numbers[stage_of(model_name)]
            scores[model == model_name] = expit(slope * logits(scores[model == model_name]) + intercept)
    return detections.assign(score=scores)


def logits(probabilities: np.ndarray | pd.Series) -> np.ndarray:
    """Logits of probabilities, which are first brought into [EDGE, 1 - EDGE]."""
    return logit(np.clip(np.asarray(probabilities, dtype=float), EDGE, 1 - EDGE))


def ensemble(outputs: ModelOutputs, fusion: FusionConfig) -> pd.DataFrame:
    """The ensemble's boxes: images that the same model_names looked at are fused together, each model_name with the
    weight of its
    detector. Detectors that `fusion.detectors` does not name are not heard."""
    weight = {d: w for d, (w,) in fusion.of_detectors("weights", 1).items()}
    seen = {model_name: set(images) for model_name, images in outputs.seen.items() if stage_of(model_name) in weight}
    order = {d: k for k, d in enumerate(fusion.detectors)}
    model_names = sorted(
        seen, key=lambda model_name: (model_name.endswith("_hflip"), order[stage_of(model_name)], model_name)
    )
    groups: dict[tuple[str, ...], list[str]] = {}
    for image in outputs.images["image_id"]:
        groups.setdefault(tuple(model_name for model_name in model_names if image in seen[model_name]), []).append(
            image
        )
    groups.pop((), None)
    found = calibrate(outputs.detections, fusion)
    parts = []
    for used, images in groups.items():
        table = found if len(groups) == 1 else found[found["image_id"].isin(images)]
        parts.append(
            fuse(
                table,
                used,
                weights=[weight[stage_of(model_name)] for model_name in used],
                iou=fusion.iou,
                nms_iou=fusion.nms_iou,
                max_boxes=fusion.max_boxes,
            )
        )
    if not parts:
        return pd.DataFrame(columns=COLUMNS).astype(dict.fromkeys(COLUMNS[2:], float))
    fused = pd.concat(parts, ignore_index=True)
    return fused if len(parts) == 1 else fused.sort_values("image_id", kind="stable", ignore_index=True)


def none_evidence(outputs: ModelOutputs, fusion: FusionConfig) -> pd.DataFrame:
    """A row per image, by image_id, of logits that it has no opacity; nan where nobody said anything of it.

    Columns: each of fusion.detectors, 1 - the mean over its model_names of their highest (calibrated) scores, the
    others' mean where it did not look; "negative" and "none", the study model's.
    """
    ids = outputs.images["image_id"].tolist()
    found = calibrate(outputs.detections, fusion)
    highest = found.groupby(["model", "image_id"])["score"].max()
    columns = {}
    for detector in fusion.detectors:
        looks = []
        for model_name in sorted(model_name for model_name in outputs.seen if stage_of(model_name) == detector):
            of_model = (
                highest.loc[model_name] if model_name in highest.index.get_level_values(0) else pd.Series(dtype=float)
            )
            looks.append(of_model.reindex(list(outputs.seen[model_name]), fill_value=0.0).reindex(ids))
        mean = pd.concat(looks, axis=1).mean(axis=1) if looks else pd.Series(np.nan, index=ids)
        columns[detector] = logits(1 - mean)
    by_image = outputs.study_probs.set_index("image_id")
    for name in ("negative", NONE):
        values = by_image[name].reindex(ids).astype(float) if name in by_image else pd.Series(np.nan, index=ids)
        columns[name] = logits(values)
    evidence = pd.DataFrame(columns, index=pd.Index(ids, name="image_id"))
    names = list(fusion.detectors)
    evidence[names] = evidence[names].apply(lambda column: column.fillna(evidence[names].mean(axis=1)))
    return evidence


def image_none(outputs: ModelOutputs, boxes: pd.DataFrame, preset: Preset) -> pd.Series:
    """Confidence that an image has no opacity, of the images that a detector looked at.

    With `late_fusion.none` the logistic regression on `none_evidence`; for an image of which one of its models said
    nothing, and without it, 1 - the highest score of the ensemble's `boxes`.
    """
    model_names = [model_name for model_name in outputs.seen if stage_of(model_name) in preset.fusion.detectors]
    looked = {image for model_name in model_names for image in outputs.seen[model_name]}
    plain = none_confidence(boxes, [image for image in outputs.images["image_id"] if image in looked])
    if not preset.late_fusion.none:
        return plain
    evidence = none_evidence(outputs, preset.fusion)
    intercept, *weights = preset.late_fusion.none
    used = [name for name, weight in zip(evidence, weights, strict=True) if weight]
    total = evidence[used].to_numpy() @ np.array([weight for weight in weights if weight]) + intercept
    learned = pd.Series(expit(total), index=evidence.index).reindex(plain.index)
    return learned.fillna(plain).rename(plain.name)


def rescore_boxes(
    boxes: pd.DataFrame, none: pd.Series, outputs: ModelOutputs, late_fusion: LateFusionConfig
) -> pd.DataFrame:
    """The boxes with scores times (1 - none) ** opacity_none times (1 - negative) ** opacity_negative of their image.

    An image without a study model's study labels, or without `none`, keeps that factor at 1.
    """
    if boxes.empty or not (late_fusion.opacity_none or late_fusion.opacity_negative):
        return boxes
    negative = outputs.study_probs.set_index("image_id")["negative"].astype(float)
    factor = (1 - none.reindex(boxes["image_id"])).fillna(1.0).to_numpy().clip(EDGE) ** late_fusion.opacity_none
    doubt = (1 - negative.reindex(boxes["image_id"])).fillna(1.0).to_numpy().clip(EDGE)
    scores = boxes["score"].to_numpy() * factor * doubt**late_fusion.opacity_negative
    changed = boxes.assign(score=scores)
    return changed.sort_values(["image_id", "score"], ascending=[True, False], kind="stable", ignore_index=True)


def laterality_evidence(boxes: pd.DataFrame, none: pd.Series) -> pd.DataFrame:
    """A row per image of `none`, by image_id: logits of LATERALITY_EVIDENCE.

    "surer side" and "other side" are the highest scores of boxes whose centre lies in the one and in the other half of
    the image, the higher one first.
    """
    left = (boxes["x1"] + boxes["x2"]) < 1
    highest = [boxes[half].groupby("image_id")["score"].max().reindex(none.index).fillna(0.0) for half in (left, ~left)]
    halves = np.sort(np.stack(highest, axis=1), axis=1)[:, ::-1]
    values = logits(np.column_stack([halves, none.to_numpy(dtype=float)]))
    return pd.DataFrame(values, index=none.index, columns=list(LATERALITY_EVIDENCE))


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
    """The studies' labels after the detectors were heard, as `weigh_by_laterality` with the probabilities of
    `laterality_probabilities`; as they are
    without `late_fusion.laterality`, or where no detector looked at an image."""
    if study_probs.empty or none.empty or not late_fusion.laterality:
        return study_probs
    return weigh_by_laterality(study_probs, laterality_probabilities(boxes, none, late_fusion), outputs, late_fusion)


def weigh_by_laterality(
    study_probs: pd.DataFrame, found: pd.DataFrame, outputs: ModelOutputs, late_fusion: LateFusionConfig
) -> pd.DataFrame:
    """The studies' labels, weighed with what the detectors found; studies that no detector looked at keep theirs.

    A typical study nearly always has opacities in both lungs, an indeterminate one mostly in one, a negative one in
    none. So a study label's probability, to the power `label_power`, is multiplied with the likelihood of what was
    found: the mean of `label_laterality`, how much more often than of any study so many sides are affected at that
    study label, weighted with the probabilities `found` of none, one and both sides, (images, 3) by image_id, which are
    the mean over the study's images.
    """
    study_of = outputs.images.set_index("image_id")["study_id"]
    by_study = found.groupby(study_of.reindex(found.index)).mean().reindex(study_probs["study_id"]).to_numpy()
    before = study_probs[list(STUDY_LABELS)].to_numpy(dtype=float)
    values = np.clip(before, EDGE, 1) ** late_fusion.label_power
    values *= by_study @ np.array(late_fusion.label_laterality).reshape(len(STUDY_LABELS), 3).T
    values /= values.sum(axis=1, keepdims=True)
    values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, before)
    return study_probs.assign(**dict(zip(STUDY_LABELS, values.T, strict=True)))
