"""What each step of a run costs, measured on its first images.

In: a Run whose competition and weights are known. Out: `Profile`. The first images are prepared (for good: that work is
not lost); a throwaway copy of each model that is to be trained runs two short epochs, of which the second counts; each
model predicts a few batches. All through the functions that do the work itself, so nothing is left out of the account.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core.files import write_csv
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.data import image_cache
from siimcovid.evaluation.ground_truth import find_ground_truth
from siimcovid.evaluation.submission_csv import write_submission
from siimcovid.inference.predictor import Predictions, predict_images
from siimcovid.kernel import stage_models
from siimcovid.kernel.run import Run
from siimcovid.kernel.time_budget import Profile, StageProfile

#: Test images that are measured on.
IMAGES = 24

#: Training steps of each of the two trial epochs, and images where the batch is small: an epoch's first step is slower
#: than its others, and a single one tells little on a machine that others use too.
STEPS, TRIAL_IMAGES = 4, 32

#: Share of the hours that measuring preparation, or one model's predictions, may take beyond the first two samples.
SHARE = 0.01


def wanted(run: Run) -> pd.DataFrame:
    """The images to prepare, in their order: those that the submission must answer, then those that are trained on."""
    images = run.competition.images
    test, train = images[(images["split"] == "test") & images["in_sample"]], images[images["split"] == "train"]
    return (pd.concat([test, train]) if run.mode == "finetune" else test).drop_duplicates("image_id")


def lacking(run: Run, images: pd.DataFrame) -> pd.DataFrame:
    """Those without a picture in the cache."""
    return images[[not (run.cache / f"{name}.png").is_file() for name in images["image_id"]]]


def measure(run: Run) -> Profile:
    """Measure what is to be done with the choices asked for; a part that fails is recorded, and counts as nothing."""
    profile = Profile(score=find_ground_truth(run.source) is not None)
    with run.recover("plan", "the time of preparation is not known"):
        profile = _preparation(run, profile)
    test = _first(run, "test", IMAGES)
    images = wanted(run)
    whole = int((images["split"] == "test").sum())
    profile = dataclasses.replace(profile, test_images=whole, train_images=len(images) - whole)
    stages, outputs = {}, {}
    for stage in run.plan.stages:
        with run.recover("plan", f"the time of stage {stage} is not known"):
            stages[stage], outputs[stage] = _stage(run, stage, test)
    profile = dataclasses.replace(profile, stages=stages)
    with run.recover("plan", "the time of fusing and writing is not known"):
        return dataclasses.replace(profile, tables=_tables(run, [s for s in outputs.values() if s], test))
    return profile


def _preparation(run: Run, profile: Profile) -> Profile:
    todo = lacking(run, wanted(run))
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
    left = len(lacking(run, wanted(run)))
    return dataclasses.replace(profile, prepare=seconds / max(1, images), to_prepare=left)


def _trial_images(run: Run) -> int:
    if run.mode != "finetune":
        return 0
    return max(_trial_of(getattr(run.preset, stage)) for stage in run.plan.stages)


def _trial_of(config: Any) -> int:
    """Images of a stage's trial."""
    return max(STEPS * config.training.batch, TRIAL_IMAGES)


def _first(run: Run, split: str, count: int) -> pd.DataFrame:
    """The first prepared images of a split."""
    images = wanted(run)
    images = images[images["split"] == split].head(2 * count)
    return images[~images["image_id"].isin(lacking(run, images)["image_id"])].head(count)


def _stage(run: Run, stage: str, test: pd.DataFrame) -> tuple[StageProfile, Predictions | None]:
    """The cost of one model, and what it said of the first test images (None where there is no model)."""
    stage_profile, path = StageProfile(), stage_models.own(run, stage)
    trial = run.folder / "trial"
    try:
        if stage in run.plan.epochs and not path.is_file():
            stage_profile, path = _training(run, stage, trial)
        if stage in run.plan.epochs and path.is_file():
            model = stage_models.read(path, stage)
        else:
            model = stage_models.load(run, stage)
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    if model is None or test.empty:
        return stage_profile, None
    config, batch = model[0], min(model[0].infer_batch, -(-len(test) // 3))
    stamps = [run.budget.now()]

    def stamp() -> bool:
        stamps.append(run.budget.now())
        return len(stamps) < 3 or stamps[-1] - stamps[0] < SHARE * 3600 * run.budget.hours

    changed = dataclasses.replace(config, infer_batch=batch)
    outputs = predict_images(stage, changed, model[1], test, run.cache, may_go_on=stamp)
    if len(stamps) > 2:
        image = (stamps[-1] - stamps[1]) / (min(len(test), batch * (len(stamps) - 1)) - batch)
        load = max(0.0, stamps[1] - stamps[0] - image * batch)
    else:
        image, load = (stamps[-1] - stamps[0]) / len(test), 0.0
    stage_profile = dataclasses.replace(stage_profile, image=image, load=load)
    return _with_whole_training(run, stage, stage_profile), outputs


def _training(run: Run, stage: str, trial: Path) -> tuple[StageProfile, Path]:
    """Two short epochs on the first train images; `epoch` is the seconds an image there, without validation."""
    config = getattr(run.preset, stage)
    images = _first(run, "train", 2 * _trial_images(run))
    images = images[images["annotated"] & images["study_label"].isin(STUDY_LABELS)].head(_trial_of(config))
    changes = {"training.epochs": 2, "training.validate": False, "training.patience": 0}
    preset = override(run.preset, {f"{stage}.{key}": value for key, value in changes.items()})
    begin = run.budget.now()
    path = stage_models.fit(run, stage, preset, images, trial, lambda seconds: True)
    seconds = run.budget.now() - begin
    epochs = pd.read_csv(trial / f"{stage}.metrics.csv")
    once = max(0.0, seconds - float(epochs["seconds"].sum()))
    return StageProfile(once=once, epoch=1 / float(epochs["images_per_second"].iloc[-1])), path


def _with_whole_training(run: Run, stage: str, stage_profile: StageProfile) -> StageProfile:
    """The cost of training on all images, from that of an image: validation and features of a frozen backbone
    included."""
    if not stage_profile.epoch:
        return stage_profile
    config = getattr(run.preset, stage)
    images = run.competition.images
    known = images[(images["split"] == "train") & images["study_label"].isin(STUDY_LABELS)]
    held_out = len(known) // run.preset.folds if config.training.validate else 0
    count = int(known["annotated"].sum()) - held_out
    once = stage_profile.once
    views = getattr(config, "views", 0) if getattr(config, "frozen", False) else 0
    look_at_size = stage_profile.image * (config.size / config.infer_size) ** 2
    if views:
        trial = min(count, _trial_of(config))
        once = max(0.0, once - views * trial * look_at_size) + views * count * look_at_size
    epoch = stage_profile.epoch * count + (stage_profile.load + stage_profile.image * held_out if held_out else 0.0)
    return dataclasses.replace(stage_profile, once=once, epoch=epoch)


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
    from siimcovid.kernel.kernel_inputs import priors

    write_submission(sample, empty, none, fused, test, run.folder / "trial.csv", priors(run))
    seconds = run.budget.now() - begin
    (run.folder / "trial.csv").unlink()
    return seconds / len(test)
