"""What each step of a run costs, measured on its first images.

In: a Run whose competition and weights are known. Out: `Profile`. The first images are prepared (for good: that work is
not lost); a throwaway copy of each model that is to be trained runs two short epochs, of which the second counts; each
model predicts a few batches. All through the functions that do the work itself, so nothing is left out of the account.
"""

import io
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from siimcovid.core.configuration import validation_passes
from siimcovid.core.device import gpu_count, training_processes
from siimcovid.core.files import write_csv
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.data import folds, image_cache
from siimcovid.evaluation.ground_truth import find_ground_truth
from siimcovid.evaluation.submission_csv import write_submission
from siimcovid.inference.predictor import Predictions, predict_images
from siimcovid.kernel import earlier_sessions, stage_models
from siimcovid.kernel.kernel_inputs import priors
from siimcovid.kernel.prepare_images import missing_images, wanted_images
from siimcovid.kernel.queue_forecast import Machine
from siimcovid.kernel.run import Run
from siimcovid.kernel.step_forecast import Profile, StageProfile, guess_stage
from siimcovid.models.backbone import for_inference

#: Test images that are measured on.
IMAGES = 24

#: Training steps of each of the two trial epochs, and images where the batch is small: an epoch's first step is slower
#: than its others, and a single one tells little on a machine that others use too.
STEPS, TRIAL_IMAGES = 4, 32

#: Share of the hours that measuring preparation, or one model's predictions, may take beyond the first two samples.
SHARE = 0.01


def measure(run: Run) -> Profile:
    """Measure what the plan does; a part that fails is recorded, and a stage of which nothing is known is guessed."""
    recover = run.recovery.recover
    profile = Profile(score=find_ground_truth(run.inputs.source) is not None)
    with recover("plan", "the time of preparation is not known"):
        profile = _preparation(run, profile)
    test = _first(run, "test", IMAGES)
    images = wanted_images(run)
    whole = int((images["split"] == "test").sum())
    profile = replace(profile, test_images=whole, train_images=len(images) - whole)
    if run.mode == "finetune":
        profile = replace(profile, held_out=min(_fold(run, stage) for stage in run.plan.stages) * run.plan.members)
    with recover("plan", "all epochs count as still to be trained"):
        profile = replace(profile, trained=earlier_sessions.trained_epochs(run))
    stages, outputs, failed = {}, [], []
    for stage in run.plan.stages:
        failed.append(stage)
        with recover("plan", f"the time of stage {stage} is guessed from the other stages, or the preset"):
            stages[stage], predictions = _stage(run, stage, test)
            outputs += [predictions] if predictions else []
            failed.remove(stage)
    profile = replace(profile, stages=stages, machine=_machine())
    gpu, trains = gpu_count() > 0, run.mode == "finetune"
    guesses = {stage: guess_stage(stage, profile, run.preset, trains, gpu) for stage in failed}
    profile = replace(profile, stages={**stages, **guesses})
    with recover("plan", "the time of fusing and writing is not known"):
        return replace(profile, tables=_tables(run, outputs, test))
    return profile


def _machine() -> Machine:
    """What trainings side by side can share: GPUs, or the cores that torch uses (OMP_NUM_THREADS sets them)."""
    gpus = gpu_count()
    rehearsed = not gpus and training_processes() > 1  # each model in several processes, as on several GPUs
    return Machine(1 if rehearsed else torch.get_num_threads(), gpus)


def _preparation(run: Run, profile: Profile) -> Profile:
    todo = missing_images(run, wanted_images(run))
    test, train = todo[todo["split"] == "test"].head(IMAGES), todo[todo["split"] == "train"].head(_trial_images(run))
    begin = run.budget.now()
    image_cache.prepare(test.head(1), run.cache, run.preset.cache_size)  # starts the processes, which counts once only
    first = run.budget.now() - begin
    more = test.iloc[1 : 2 + int(SHARE * 3600 * run.budget.hours / max(first, 1e-6))]
    images, seconds = 0, 0.0
    for part in (more, train.head(len(more) * len(train))):  # none where there was time for none
        begin = run.budget.now()
        if len(part):
            image_cache.prepare(part, run.cache, run.preset.cache_size)
            images, seconds = images + len(part), seconds + run.budget.now() - begin
    if not images:
        images, seconds = len(test.head(1)), first
    left = len(missing_images(run, wanted_images(run)))
    return replace(profile, prepare=seconds / max(1, images), to_prepare=left)


def _trial_images(run: Run) -> int:
    if run.mode != "finetune":
        return 0
    return max(_trial_of(getattr(run.preset, stage)) for stage in run.plan.stages)


def _trial_of(config: Any) -> int:
    """Images of a stage's trial."""
    return max(STEPS * config.training.batch, TRIAL_IMAGES)


def _first(run: Run, split: str, count: int) -> pd.DataFrame:
    """The first prepared images of a split, `count` at most."""
    images = wanted_images(run)
    images = images[images["split"] == split].head(2 * count)
    return images[~images["image_id"].isin(missing_images(run, images)["image_id"])].head(count)


def _stage(run: Run, stage: str, test: pd.DataFrame) -> tuple[StageProfile, Predictions | None]:
    """The seconds of one model, and its predictions of the first test images (None where there is no model)."""
    profile, path = StageProfile(), stage_models.own(run, stage)
    trial = run.folder / "trial"
    try:
        if done := earlier_sessions.finished_checkpoint(run, stage):
            path = done
        elif stage in run.plan.epochs:  # also where a file lies there: it may be of other settings, or one of several
            profile, path = _training(run, stage, trial)
        if stage in run.plan.epochs and path.is_file():
            model = stage_models.read(path, stage)
        else:
            model = stage_models.load(run, stage)
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    if model is None or test.empty:
        return profile, None
    image, load, predictions = _inference(run, stage, *model, test)
    begin = run.budget.now()
    if profile.epoch and getattr(run.preset, stage).training.validate:
        for_inference(model[1])  # each validation makes such a copy
    copying = run.budget.now() - begin
    return _of_all_images(run, stage, replace(profile, image=image, load=load), copying), predictions


def _inference(
    run: Run, stage: str, config: Any, model: nn.Module, test: pd.DataFrame
) -> tuple[float, float, Predictions]:
    """Seconds of an image, seconds whatever the images, and the predictions of a few batches."""
    batch, stamps = min(config.infer_batch, -(-len(test) // 3)), [run.budget.now()]

    def stamp() -> bool:
        stamps.append(run.budget.now())
        return len(stamps) < 3 or stamps[-1] - stamps[0] < SHARE * 3600 * run.budget.hours

    changed = replace(config, infer_batch=batch)
    predictions = predict_images(stage, changed, model, test, run.cache, may_go_on=stamp)
    if len(stamps) < 3:
        return (stamps[-1] - stamps[0]) / len(test), 0.0, predictions
    image = (stamps[-1] - stamps[1]) / (min(len(test), batch * (len(stamps) - 1)) - batch)
    return image, max(0.0, stamps[1] - stamps[0] - image * batch), predictions


def _training(run: Run, stage: str, trial: Path) -> tuple[StageProfile, Path]:
    """Two short epochs on the first train images; `epoch` is the seconds an image there, without validation.

    `validation` is what the second epoch took behind its last training step, for writing: see _of_all_images. A third
    epoch is asked for and refused, so that the moment is known, before the checkpoint is written.
    """
    config = getattr(run.preset, stage)
    images = _first(run, "train", 2 * _trial_images(run))
    images = images[images["annotated"] & images["study_label"].isin(STUDY_LABELS)].head(_trial_of(config))
    epochs = 3 if training_processes() == 1 else 2  # several processes cannot ask
    changes = {"training.epochs": epochs, "training.validate": False, "training.patience": 0}
    preset = override(run.preset, {f"{stage}.{key}": value for key, value in changes.items()} | {"hold_out": False})
    begin, asked = run.budget.now(), []

    def may_start_epoch(seconds: float) -> bool:
        asked.append(run.budget.now())
        return len(asked) < 2

    with redirect_stdout(io.StringIO()):  # its epochs are no training that a reader of the notebook should take for it
        path = stage_models.fit(run, stage, preset, images, trial, may_start_epoch)
    end = run.budget.now()
    trained = pd.read_csv(trial / f"{stage}.metrics.csv")
    steps = float(trained["seconds"].iloc[-1])
    saving = max(0.0, asked[1] - asked[0] - steps) if len(asked) > 1 else 0.0
    once = max(0.0, end - begin - float(trained["seconds"].sum()) - 2 * saving)
    return StageProfile(once=once, epoch=1 / float(trained["images_per_second"].iloc[-1]), validation=saving), path


def _of_all_images(run: Run, stage: str, profile: StageProfile, copying: float) -> StageProfile:
    """Seconds of training on all images, from those of one: validation and features of a frozen backbone included.

    copying: seconds in which a validation makes the model one for inference.
    """
    if not profile.epoch:
        return profile
    config = getattr(run.preset, stage)
    images = run.competition.images
    known = images[(images["split"] == "train") & images["study_label"].isin(STUDY_LABELS)]
    held_out = _fold(run, stage)
    count = int(known["annotated"].sum()) - held_out
    once = profile.once
    views = getattr(config, "views", 0) if getattr(config, "frozen", False) else 0
    image_at_size = profile.image * (config.size / config.infer_size) ** 2
    if views:
        trial = min(count, _trial_of(config))
        once = max(0.0, once - views * trial * image_at_size) + views * count * image_at_size
    validation = profile.validation
    if config.training.validate:
        passes = validation_passes(config)
        validating = copying + profile.image * held_out * passes  # by PyTorch, which loads nothing
        validation += validating
        once += validating if passes > 1 else 0.0  # to choose the size of the best epoch's model
    return replace(profile, once=once, validation=validation, epoch=profile.epoch * count + validation)


def _fold(run: Run, stage: str) -> int:
    """About how many train images a model of a stage is not trained on."""
    images = run.competition.images
    known = images[(images["split"] == "train") & images["study_label"].isin(STUDY_LABELS)]
    count = folds.at_most(known, max(run.preset.folds, run.plan.members))
    held_out = folds.split(known, 0, count, run.preset.seed)[1] if count > 1 else known.head(0)
    chosen = run.preset.hold_out and folds.enough_to_fit(held_out)
    return len(held_out) if getattr(run.preset, stage).training.validate or chosen or run.plan.members > 1 else 0


def _tables(run: Run, outputs: list[Predictions], test: pd.DataFrame) -> float:
    """Seconds an image for fusing, for writing the tables and for a submission."""
    from siimcovid.inference.weighted_boxes_fusion import fuse  # without it the rest can be measured all the same

    found = [one.table for one in outputs if "score" in one.table]
    if not found or test.empty:
        return 0.0
    table = pd.concat(found, ignore_index=True)
    names = list(dict.fromkeys(table["model"]))
    fuse(table, names)  # numba compiles at the first call
    begin = run.budget.now()
    fused = fuse(table, names)
    write_csv(pd.concat([table, fused]), run.folder / "trial.csv")
    sample = pd.DataFrame({"id": test["image_id"] + "_image", "PredictionString": ""})
    empty = pd.DataFrame(columns=["study_id", *STUDY_LABELS])
    none = pd.Series(0.5, index=test["image_id"])
    write_submission(sample, empty, none, fused, test, run.folder / "trial.csv", priors(run.competition.images))
    seconds = run.budget.now() - begin
    (run.folder / "trial.csv").unlink()
    return seconds / len(test)
