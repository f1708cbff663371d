"""Fitting how the models are combined, on the images that none of them was trained on.

In: a Run whose models are trained, in MODE finetune, where the stages held out the same fold (`hold_out`, or `validate`
of every stage; each member of a fold ensemble has a fold of its own). Out: the run's preset with the chosen numbers,
weights/ensemble.json, which later runs and `siimcovid predict` take over with the weights, and "ensemble" of run.json:

    source     where the numbers come from
    choice     "fitted", "preset" or "<detector> alone", see inference/choose_ensemble.py
    images     images that they were chosen on
    left_out   detectors whose boxes are not fused
    choices    {choice: {class: average precision, "mean"}} on images that the numbers were not fitted on
    items      [{item, gain in the mean, kept}] of the fitted numbers, [] where nothing was fitted
    overrides  the numbers, as overrides of the preset
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from siimcovid.core.stage_names import DETECTORS, member, stage_of
from siimcovid.kernel.run import Run
from siimcovid.kernel.step_forecast import FIT_ENSEMBLE

if TYPE_CHECKING:
    from siimcovid.inference.choose_ensemble import ChosenEnsemble
    from siimcovid.inference.model_outputs import ModelOutputs


def fit_ensemble(run: Run) -> pd.DataFrame | None:
    """Fit and choose the numbers by which the models are combined; None where no fold was held out, or no time is left.

    Returns a row for each choice there was: average precision of each class and their mean, on the held-out images.
    """
    if run.mode != "finetune":
        return None
    chosen = None
    with run.recovery.recover(FIT_ENSEMBLE, "the preset's own numbers combine the models"):
        _remove_earlier(run)
        folds = _held_out_by_all(run)
        if not folds:
            return None
        with run.step(FIT_ENSEMBLE, "the preset's own numbers combine the models"):
            chosen = _choose(run, folds)
            if chosen is not None:
                _take_over(run, chosen)
    run.revise()
    return None if chosen is None else chosen.choices


def _remove_earlier(run: Run) -> None:
    """An earlier run's numbers in this folder were fitted to other models."""
    from siimcovid.inference.fitted_numbers import FILE
    from siimcovid.models import weights_manifest

    weights_manifest.remove(run.folder / "weights" / FILE)


def _held_out_by_all(run: Run) -> dict[int, pd.DataFrame]:
    """Member -> the index's rows that none of its models was trained on; {} where a stage was trained on every image.

    Also {} where a model is not this run's own: what it was trained on is not known.
    """
    from siimcovid.kernel import stage_models

    names = run.plan.models(run.plan.stages)
    own = {name for name, (*_, given) in run.models.loaded.items() if not given}
    if set(run.plan.detectors) != set(run.preset.fusion.detectors) or not own.issuperset(names):
        return {}
    folds = {}
    for number in range(run.plan.members):
        rows = [stage_models.held_out(run, name) for name in _models_of_fold(run, number)]
        common = set.intersection(*(set(part["image_id"]) for part in rows)) if rows else set()
        folds[number] = rows[0][rows[0]["image_id"].isin(common)] if common else None
    return {number: rows for number, rows in folds.items() if rows is not None}


def _models_of_fold(run: Run, number: int) -> list[str]:
    """The models that a fold was held out from: a fold ensemble's members `number`, else all that the run has."""
    names = run.plan.models(run.plan.stages)
    return names if run.plan.members == 1 else [m for s in run.plan.stages if (m := member(s, number)) in names]


def _choose(run: Run, folds: dict[int, pd.DataFrame]) -> "ChosenEnsemble | None":
    """Predict the held-out images and choose; None where there is no time for it."""
    from siimcovid.data import duplicates
    from siimcovid.data.folds import assign_folds, enough_to_fit
    from siimcovid.inference import choose_ensemble, fit_ensemble

    images = pd.concat(folds.values())
    run.planner.profile = replace(run.planner.profile, held_out=len(images))
    seconds = run.planner.forecast()[FIT_ENSEMBLE]
    outputs = _predict(run, folds) if run.has_time_to_spare(FIT_ENSEMBLE, seconds) else None
    if outputs is None:
        run.record.end("no numbers are fitted to combine the models: the preset's own stay")
        return None
    images = images[images["image_id"].isin(outputs.images["image_id"])]
    parts: dict[str, int] = {}
    if enough_to_fit(images):
        copies = duplicates.find(images, run.cache) if run.preset.duplicates else []
        assigned = assign_folds(images, fit_ensemble.PARTS, run.preset.seed, copies)
        parts = dict(zip(images["image_id"], assigned, strict=True))
    return choose_ensemble.choose(outputs, images, parts, run.preset)


def _predict(run: Run, folds: dict[int, pd.DataFrame]) -> "ModelOutputs | None":
    """What each model says of the images that it was not trained on, all models of a stage under the stage's name.

    Of an image's several study models it is the mean.

    Images that a model cannot read are left out; None where the time did not suffice for all.
    """
    from siimcovid.data.image_memory import PREDICTION_BYTES, ImageMemory
    from siimcovid.inference.model_outputs import ModelOutputs
    from siimcovid.kernel import stage_models
    from siimcovid.kernel.predict_test_images import in_smaller_batches

    tables: dict[str, list[pd.DataFrame]] = {}
    predicted: dict[str, list[str]] = {}
    for number, rows in folds.items():
        memory = ImageMemory(PREDICTION_BYTES)
        for name in _models_of_fold(run, number):
            stage = stage_of(name)
            predict = partial(in_smaller_batches, run, FIT_ENSEMBLE, name, *stage_models.load(run, name))
            for hflip in (False, True) if stage in DETECTORS and run.plan.hflip_tta else (False,):
                found = predict(hflip, None, rows, memory)
                if len(found.image_ids) + len(found.unreadable) + len(found.not_finite) < len(rows):
                    return None
                model = f"{stage}_hflip" if hflip else stage
                tables.setdefault(model, []).append(found.table)
                predicted.setdefault(model, []).extend(found.image_ids)
    every = set.intersection(*map(set, predicted.values()))
    images = pd.concat(folds.values())[["image_id", "study_id"]]
    joined = {model: pd.concat(parts, ignore_index=True) for model, parts in tables.items()}
    detections = pd.concat([table.assign(model=m) for m, table in joined.items() if stage_of(m) in DETECTORS])
    seen = {model: ids for model, ids in predicted.items() if stage_of(model) in DETECTORS}
    study = joined["study"].groupby(["image_id", "study_id"], sort=False).mean().reset_index()
    return ModelOutputs(images, detections, seen, study).of_images(every)


def _take_over(run: Run, chosen: "ChosenEnsemble") -> None:
    """Combine by the chosen numbers from here on and keep them beside the weights; OVERRIDES go before them."""
    from siimcovid.inference import fitted_numbers
    from siimcovid.models import weights_manifest

    print(chosen.sentence(run.preset))
    numbers = {**chosen.overrides, **{k: v for k, v in run.parameters.overrides.items() if k in chosen.overrides}}
    folds = f"fold {run.preset.fold}" if run.plan.members == 1 else f"{run.plan.members} folds"
    source = f"{weights_manifest.data_name(run.inputs.source)}, {folds} that no model was trained on"
    run.record.ensemble = record_of(chosen, f"preset {run.preset.name}" if not numbers else source)
    run.record.ensemble["overrides"] = numbers
    if numbers:
        run.planner.combine_by(numbers)
        fitted_numbers.write(run.folder / "weights", numbers, run.preset, source)
    weights = run.preset.fusion.of_detectors("weights", 1)
    run.record.ensemble["left_out"] = [detector for detector, (weight,) in weights.items() if not weight]


def record_of(chosen: "ChosenEnsemble", source: str) -> dict[str, Any]:
    """The entry "ensemble" of run.json, but for what the OVERRIDES may change."""
    items = [] if chosen.items is None else chosen.items.reset_index()[["item", "gain", "kept"]].to_dict("records")
    return {
        "source": source,
        "choice": chosen.choice,
        "images": chosen.images,
        "choices": chosen.choices.round(4).to_dict("index"),
        "items": items[1:],  # the first is the ensemble as it came
    }
