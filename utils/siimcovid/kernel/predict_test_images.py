"""Predicting the test images: boxes of each detector and their ensemble, probabilities of the study labels.

In: a Run with prepared images. Out: detections.csv, image_study_probabilities.csv and study_probabilities.csv, and a
better submission.csv with each model that has predicted.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

from siimcovid.core.device import gpu_count
from siimcovid.core.files import write_csv
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.core.stage_names import DETECTORS, stage_of
from siimcovid.core.tables import some
from siimcovid.data.image_memory import ImageMemory
from siimcovid.kernel.run import Run
from siimcovid.kernel.write_submissions import ENSEMBLE, improve, model_outputs

if TYPE_CHECKING:
    from siimcovid.inference.predictor import Predictions

DETECTIONS = ["image_id", "model", "score", "x1", "y1", "x2", "y2"]


def free_memory() -> None:
    """Let go of what a failed step still holds."""
    gc.collect()
    if gpu_count():
        torch.cuda.empty_cache()


def predict_with(
    run: Run, step: str, model: str, hflip: bool = False, change: Callable | None = None
) -> pd.DataFrame | None:
    """One model's predictions of the test images, as many as the time allows; None without a model or any time.

    step: the plan's, after which time is kept for those that follow. model: a stage, or a member of its fold
    ensemble. hflip, change: see predictor.predict_images.
    """
    from siimcovid.kernel import stage_models

    if not (loaded := stage_models.load(run, model)):
        return None
    stage, name = stage_of(model), f"{model}_hflip" if hflip else model
    if not run.has_time(step):
        run.record.end(f"{name} predicts no image")
        return None
    begin = run.budget.now()
    outputs = in_smaller_batches(run, step, model, *loaded, hflip, change, run.test, run.predictions.memory)
    if stage in DETECTORS:
        run.predictions.predicted[name] = outputs.image_ids
    missed = len(run.test) - len(outputs.image_ids) - len(outputs.unreadable) - len(outputs.not_finite)
    if missed:
        run.record.end(f"{name} predicts {len(run.test) - missed} of {len(run.test)} images")
    elif len(run.test) and change is None:
        seconds = run.budget.now() - begin - run.planner.profile.stage(stage).load
        later = set(run.plan.stages) - {stage_of(done) for done in run.predictions.predicted} - {stage}
        run.planner.correct(stage, max(0.0, seconds) / len(run.test), later)
    for images, what in (
        (outputs.unreadable, "have no whole picture"),
        (outputs.not_finite, "give numbers not finite"),
    ):
        if images:
            reason = f"{name}: {len(images)} images {what} ({some(images)})"
            run.recovery.degrade(step, reason, "these images without it")
    return outputs.table if stage == "study" else outputs.table.assign(model=name)


def in_smaller_batches(
    run: Run,
    step: str,
    model: str,
    config: Any,
    network: nn.Module,
    hflip: bool,
    change: Callable | None,
    images: pd.DataFrame,
    memory: ImageMemory,
) -> "Predictions":
    """Predict images as long as there is time, with half the batch as often as memory is short, in the end on the CPU.

    Raises MemoryError where a single image does not fit there.
    """
    from siimcovid.inference.predictor import predict_images

    batch, device = config.infer_batch, None
    while True:
        with run.recovery.recover(step, f"batches of {batch // 2}" if batch > 1 else "the CPU", is_out_of_memory, True):
            changed, may_go_on = replace(config, infer_batch=batch), _time_for_another_batch(run, step)
            return predict_images(
                *(stage_of(model), changed, network, images, run.cache, hflip, device, may_go_on, change),
                memory=memory,
            )
        free_memory()
        if device:
            raise MemoryError(f"memory does not suffice for {model} on a single image")
        batch, device = (batch // 2, None) if batch > 1 else (1, "cpu")


def _time_for_another_batch(run: Run, step: str) -> Callable[[], bool]:
    """A function, asked after each batch: does another one as slow as the slowest so far fit?"""
    last, slowest = run.budget.now(), 0.0

    def may_go_on() -> bool:
        nonlocal last, slowest
        now = run.budget.now()
        last, slowest = now, max(slowest, now - last)
        return run.has_time(step, slowest)

    return may_go_on


def detect(run: Run) -> pd.DataFrame:
    """Boxes of each detector and of their ensemble on the test images, in the columns of DETECTIONS."""
    detections, run.predictions.predicted = pd.DataFrame(columns=DETECTIONS), {}
    with run.step("detect", "what was found before, not fused"):
        from siimcovid.inference.ensemble import ensemble  # noqa: F401 - where it fails, before the detectors took time

        detections = boxes(run, "detect")
        if run.predictions.predicted:
            detections = with_ensemble(run, detections)
    run.revise()
    return detections


def boxes(run: Run, step: str) -> pd.DataFrame:
    """Boxes of each detector on the test images, as far as there is time: run.predictions.predicted has their ids."""
    detections, run.predictions.predicted = pd.DataFrame(columns=DETECTIONS), {}
    passes: dict[str, float] = {}
    for hflip in (False, True) if run.plan.hflip_tta else (False,):
        for name in run.plan.models(run.plan.detectors):
            if hflip and not run.has_time_to_spare(step, passes.get(name, 0.0)):
                run.record.end(f"{name} predicts no mirrored images")
                continue
            begin = run.budget.now()
            with run.recovery.recover(step, f"the boxes without {name}{' on mirrored images' if hflip else ''}"):
                table = predict_with(run, step, name, hflip)
                if table is not None:
                    detections = pd.concat([detections, table], ignore_index=True) if len(detections) else table
                    if step == "detect" and len(run.predictions.predicted) == 1:  # better than the frequencies alone
                        improve(run, detections.assign(model=ENSEMBLE), None)
            passes[name] = run.budget.now() - begin
    return detections


def with_ensemble(run: Run, detections: pd.DataFrame) -> pd.DataFrame:
    """The detectors' boxes and those of their ensemble, written, and submitted with the study labels so far."""
    from siimcovid.inference.ensemble import ensemble
    from siimcovid.inference.predictor import study_probabilities

    fused = ensemble(model_outputs(run, detections), run.preset.fusion)
    detections = pd.concat([detections, fused], ignore_index=True)
    write_csv(detections, run.folder / "detections.csv")
    improve(
        run,
        detections,
        None if run.predictions.image_study_probs is None else study_probabilities(run.predictions.image_study_probs),
    )
    return detections


def classify(run: Run) -> pd.DataFrame:
    """The four study labels' probabilities of each test study, the mean over its images."""
    study_probs = pd.DataFrame(columns=["study_id", *STUDY_LABELS], dtype=float)
    with run.step("classify", "the train set's frequencies for every study"):
        run.predictions.image_study_probs = image_study_probs(run, "classify")
        if run.predictions.image_study_probs is not None:
            from siimcovid.inference.predictor import study_probabilities

            note_unlike(run, run.predictions.image_study_probs)
            study_probs = study_probabilities(run.predictions.image_study_probs)
            write_csv(run.predictions.image_study_probs, run.folder / "image_study_probabilities.csv")
            write_csv(study_probs, run.folder / "study_probabilities.csv")
    run.revise()
    return study_probs


def note_unlike(run: Run, table: pd.DataFrame) -> None:
    """Record a notice for each image that is unlike those that the study model learnt from; its rows stay."""
    from siimcovid.inference.predictor import unlike_images
    from siimcovid.models.out_of_distribution import SENTENCE

    before = run.record.notices[run.record.notices["notice"] != SENTENCE]
    found = pd.DataFrame({"image_id": unlike_images(table), "notice": SENTENCE}, columns=before.columns)
    run.record.notices = pd.concat([before, found], ignore_index=True) if len(found) else before


def image_study_probs(run: Run, step: str, change: Callable | None = None) -> pd.DataFrame | None:
    """Study probabilities of each test image, the mean over the study models; None without one.

    Columns: image_id, study_id, the four study labels, and none where the models estimate it.
    """
    names, tables = run.plan.models(["study"]), []
    if len(names) == 1:
        return predict_with(run, step, "study", change=change)
    for name in names:
        with run.recovery.recover(step, f"the study labels without {name}"):
            tables.append(predict_with(run, step, name, change=change))
    tables = [table for table in tables if table is not None]
    if not tables:
        return None
    return pd.concat(tables).groupby(["image_id", "study_id"], sort=False).mean().reset_index()


def classify_covered(run: Run) -> pd.DataFrame | None:
    """As `classify`, of images without their markers and borders; None without a model or the time for it."""
    from siimcovid.data.cover_markers import cover
    from siimcovid.inference.predictor import study_probabilities

    seconds = 2 * run.record.seconds.get("classify", 0.0)  # covering an image takes no longer than predicting it
    if not run.has_time("score", seconds):
        run.record.end("the check for shortcuts is left out")
        return None
    table = image_study_probs(run, "score", cover)
    return None if table is None else study_probabilities(table)
