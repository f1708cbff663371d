"""The outputs of all models for the same images become one prediction: fused boxes, `none`, study probabilities.

In: `ModelOutputs`. Out: an `EnsemblePrediction`, which submission_csv.py writes. All numbers come from the preset: its
`fusion` says how boxes are calibrated and fused, its `late_fusion` how the study model and the detectors correct each
other; fit_ensemble.py fits them on out-of-fold predictions. With the plain preset the boxes are fused, `none` is 1 -
the highest score, and the study probabilities are the study model's.
"""

from collections.abc import Sequence

import pandas as pd

from siimcovid.core.configuration import FusionConfig, Preset
from siimcovid.core.stage_names import stage_of
from siimcovid.evaluation.ensemble_prediction import EnsemblePrediction
from siimcovid.inference.calibration import calibrate
from siimcovid.inference.late_fusion import fuse_study_probs, image_none, rescore_boxes
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.predictor import study_probabilities
from siimcovid.inference.weighted_boxes_fusion import COLUMNS, fuse


def combine(outputs: ModelOutputs, preset: Preset) -> EnsemblePrediction:
    """Fuse the boxes, then apply late fusion, by a preset's numbers.

    A part of late fusion is left out for images that one of the models it needs did not predict. Raises InputError
    where the preset's numbers do not fit its detectors.
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


def ensemble(outputs: ModelOutputs, fusion: FusionConfig) -> pd.DataFrame:
    """The fused boxes: a detections table of the model "ensemble".

    Each model counts with its detector's weight, not at all with 0; models of detectors that `fusion.detectors` does
    not name are left out. Images that the same models predicted are fused together, so that a model which found nothing
    lowers the score of the others' boxes, and one that did not predict the image does not.
    """
    groups = fused_together(outputs, fusion)
    found = calibrate(outputs.detections, fusion)
    parts = []
    for used, images in groups.items():
        table = found if len(groups) == 1 else found[found["image_id"].isin(images)]
        weights = model_weights(used, fusion)
        parts.append(
            fuse(table, used, weights=weights, iou=fusion.iou, nms_iou=fusion.nms_iou, max_boxes=fusion.max_boxes)
        )
    if not parts:
        return pd.DataFrame(columns=COLUMNS).astype(dict.fromkeys(COLUMNS[2:], float))
    fused = pd.concat(parts, ignore_index=True)
    return fused if len(parts) == 1 else fused.sort_values("image_id", kind="stable", ignore_index=True)


def fused_together(outputs: ModelOutputs, fusion: FusionConfig) -> dict[tuple[str, ...], list[str]]:
    """Names of models -> ids of the images that these of fusion.detectors' models predicted."""
    predicted = {
        name: set(images) for name, images in outputs.predicted_ids.items() if stage_of(name) in fusion.detectors
    }
    order = {d: k for k, d in enumerate(fusion.detectors)}
    names = sorted(predicted, key=lambda name: (name.endswith("_hflip"), order[stage_of(name)], name))
    groups: dict[tuple[str, ...], list[str]] = {}
    for image in outputs.images["image_id"]:
        groups.setdefault(tuple(name for name in names if image in predicted[name]), []).append(image)
    groups.pop((), None)
    return groups


def model_weights(models: Sequence[str], fusion: FusionConfig) -> list[float]:
    """The weight of each model, its detector's; 1 each where all are 0: images of these models alone are not lost."""
    weight = {d: w for d, (w,) in fusion.of_detectors("weights", 1).items()}
    weights = [weight[stage_of(name)] for name in models]
    return weights if any(weights) else [1.0] * len(weights)
