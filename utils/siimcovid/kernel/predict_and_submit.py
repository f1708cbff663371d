"""What the trained models say of the test images, and the submissions made of it: the pipeline's last steps.

In: a Run with prepared images. Out: detections.csv, image_study_probabilities.csv, study_probabilities.csv,
submission.csv and submissions/<model>.csv.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from siimcovid.core import stage_names
from siimcovid.core.configuration import LateFusionConfig
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, write_csv
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.tables import find_table, some
from siimcovid.evaluation import submission_csv, submission_validator
from siimcovid.kernel import kernel_inputs
from siimcovid.kernel.run import Run

if TYPE_CHECKING:
    from siimcovid.inference.model_outputs import ModelOutputs

ENSEMBLE = "ensemble"
DETECTIONS = ["image_id", "model", "score", "x1", "y1", "x2", "y2"]

MemoryShort = torch.cuda.OutOfMemoryError


def free_memory() -> None:
    """Let go of what a failed step still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _look(run: Run, step: str, model: str, hflip: bool = False, change: Callable | None = None) -> pd.DataFrame | None:
    """What a model says of the test images, as long as there is time; None without a model or any time.

    model: a stage, or a member of its fold ensemble. change: see predict.predict.
    """
    from siimcovid.inference.predictor import predict_images
    from siimcovid.kernel import stage_models

    if not (loaded := stage_models.load(run, model)):
        return None
    stage, name = stage_names.stage_of(model), f"{model}_hflip" if hflip else model
    if not run.has_time(step):
        run.end(f"{name} looks at no image")
        return None
    config, network = loaded
    batch, device = config.infer_batch, None
    while True:
        with run.recover(step, f"batches of {batch // 2}" if batch > 1 else "the CPU", MemoryShort):
            changed = replace(config, infer_batch=batch)
            outputs = predict_images(
                stage,
                changed,
                network,
                run.test,
                run.cache,
                hflip,
                device,
                lambda: run.has_time(step),
                change,
                run.memory,
            )
            break
        free_memory()
        if device:
            raise MemoryError(f"memory does not suffice for {model} on a single image")
        batch, device = (batch // 2, None) if batch > 1 else (1, "cpu")
    if stage in stage_names.DETECTORS:
        run.seen[name] = outputs.image_ids
    missed = len(run.test) - len(outputs.image_ids) - len(outputs.unreadable) - len(outputs.not_finite)
    if missed:
        run.end(f"{name} looks at {len(run.test) - missed} of {len(run.test)} images")
    for images, what in (
        (outputs.unreadable, "have no whole picture"),
        (outputs.not_finite, "give numbers not finite"),
    ):
        if images:
            run.degrade(step, f"{name}: {len(images)} images {what} ({some(images)})", "these images without it")
    return outputs.table if stage == "study" else outputs.table.assign(model=name)


def detect(run: Run) -> pd.DataFrame:
    """Boxes of each detector and of their ensemble on the test images."""
    detections, run.seen = pd.DataFrame(columns=DETECTIONS), {}
    with run.step("detect", "what was found before, not fused"):
        from siimcovid.inference.ensemble import ensemble  # noqa: F401 - where it fails, before the detectors took time

        detections = boxes(run, "detect")
        if run.seen:
            detections = with_ensemble(run, detections)
    run.revise()
    return detections


def boxes(run: Run, step: str) -> pd.DataFrame:
    """What each detector says of the test images, as far as there is time; run.seen says how far."""
    detections, run.seen = pd.DataFrame(columns=DETECTIONS), {}
    passes: dict[str, float] = {}
    for hflip in (False, True) if run.plan.hflip_tta else (False,):
        for name in run.plan.models(run.plan.detectors):
            if hflip and not run.has_time(step, passes.get(name, 0.0)):
                run.end(f"{name} does not look at mirrored images")
                continue
            begin = run.budget.now()
            with run.recover(step, f"the boxes without {name}{' on mirrored images' if hflip else ''}"):
                table = _look(run, step, name, hflip)
                if table is not None:
                    detections = pd.concat([detections, table], ignore_index=True) if len(detections) else table
                    if step == "detect" and len(run.seen) == 1:  # better than the frequencies alone
                        improve(run, detections.assign(model=ENSEMBLE), None)
            passes[name] = run.budget.now() - begin
    return detections


def with_ensemble(run: Run, detections: pd.DataFrame) -> pd.DataFrame:
    """The detectors' boxes and those of their ensemble, which are written, and submitted with the study labels so
    far."""
    from siimcovid.inference.ensemble import ensemble
    from siimcovid.inference.predictor import study_probabilities

    fused = ensemble(outputs(run, detections), run.preset.fusion)
    detections = pd.concat([detections, fused], ignore_index=True)
    write_csv(detections, run.folder / "detections.csv")
    improve(run, detections, None if run.image_study_probs is None else study_probabilities(run.image_study_probs))
    return detections


def outputs(run: Run, detections: pd.DataFrame) -> "ModelOutputs":
    """What the models said of the test images, to be combined."""
    from siimcovid.inference.model_outputs import ModelOutputs

    images = run.test[["image_id", "study_id"]]
    outputs = ModelOutputs(images, detections[detections["model"] != ENSEMBLE], run.seen)
    return outputs if run.image_study_probs is None else replace(outputs, study_probs=run.image_study_probs)


def classify(run: Run) -> pd.DataFrame:
    """The four study labels' probabilities of each test study, the mean over its images."""
    study_probs = pd.DataFrame(columns=["study_id", *STUDY_LABELS], dtype=float)
    with run.step("classify", "the train set's frequencies for every study"):
        run.image_study_probs = image_study_probs(run, "classify")
        if run.image_study_probs is not None:
            from siimcovid.inference.predictor import study_probabilities

            study_probs = study_probabilities(run.image_study_probs)
            write_csv(run.image_study_probs, run.folder / "image_study_probabilities.csv")
            write_csv(study_probs, run.folder / "study_probabilities.csv")
    run.revise()
    return study_probs


def image_study_probs(run: Run, step: str, change: Callable | None = None) -> pd.DataFrame | None:
    """What the study model says of each test image, the mean over its members; None without one."""
    names, tables = run.plan.models(["study"]), []
    if len(names) == 1:
        return _look(run, step, "study", change=change)
    for name in names:
        with run.recover(step, f"the study labels without {name}"):
            tables.append(_look(run, step, name, change=change))
    tables = [table for table in tables if table is not None]
    if not tables:
        return None
    return pd.concat(tables).groupby(["image_id", "study_id"], sort=False).mean().reset_index()


def classify_covered(run: Run) -> pd.DataFrame | None:
    """As `classify`, of images without their markers and borders; None without a model or the time for it."""
    from siimcovid.evaluation.shortcut_check import cover
    from siimcovid.inference.predictor import study_probabilities

    seconds = 2 * run.seconds.get("classify", 0.0)  # covering the images takes no longer than looking at them
    if not run.has_time("score", seconds):
        run.end("the check for shortcuts is left out")
        return None
    table = image_study_probs(run, "score", cover)
    return None if table is None else study_probabilities(table)


def submit(run: Run, detections: pd.DataFrame, study_probs: pd.DataFrame) -> Path:
    """Write and check submission.csv from the ensemble, and one submission for each detector alone.

    Where the preset lets study model and detectors hear each other, what comes of it replaces the ensemble's rows of
    detections.csv and study_probabilities.csv.
    """
    with run.step("submit", "the submission that was written before"):
        improve(run, detections, study_probs)
        if run.preset.late_fusion != LateFusionConfig() and run.seen:
            with run.recover("submit", "boxes and study labels as each model gave them"):
                from siimcovid.inference.ensemble import combine

                alone = detections[detections["model"] != ENSEMBLE]
                prediction = combine(outputs(run, alone), run.preset)
                improve(run, prediction.detections, prediction.study_probs, prediction.none)
                write_csv(pd.concat([alone, prediction.detections], ignore_index=True), run.folder / "detections.csv")
                if len(prediction.study_probs):
                    write_csv(prediction.study_probs, run.folder / "study_probabilities.csv")
        for model in run.seen:
            if model in stage_names.DETECTORS:
                _write_submission(run, model, detections, study_probs, submission_file(run, model))
    run.revise()
    return submission_file(run, ENSEMBLE)


def submission_file(run: Run, model: str) -> Path:
    """Where a model's submission lies: the ensemble's is the kernel's own."""
    return run.folder / ("submission.csv" if model == ENSEMBLE else f"submissions/{model}.csv")


def improve(
    run: Run, detections: pd.DataFrame, study_probs: pd.DataFrame | None, none: pd.Series | None = None
) -> None:
    """Replace submission.csv by a better one, if that is valid."""
    with run.recover("submit", "the submission that was written before"):
        with atomic_path(submission_file(run, ENSEMBLE)) as temporary:
            by_priors = _write_submission(run, ENSEMBLE, detections, study_probs, temporary, none)
            if len(run.competition.sample):
                sizes = run.folder / "index.csv"
                sample = find_table(run.competition.folder, kernel_inputs.SAMPLE)
                verdict = submission_validator.validate(temporary, sample, sizes if sizes.is_file() else None)
                if verdict.faults:
                    raise InputError(f"what was written is not valid: {'; '.join(map(str, verdict.faults[:3]))}")
        run.by_priors = len(by_priors)


def _write_submission(
    run: Run,
    model: str,
    detections: pd.DataFrame,
    study_probs: pd.DataFrame | None,
    path: Path,
    none: pd.Series | None = None,
) -> list[str]:
    """Write one model's submission; returns the ids that priors answered. `none`: 1 - the highest score by default."""
    if study_probs is None:
        study_probs = pd.DataFrame(columns=["study_id", *STUDY_LABELS], dtype=float)
    found = detections[detections["model"] == model]
    model_names = run.seen if model == ENSEMBLE else [model]
    seen = list(dict.fromkeys(image for name in model_names for image in run.seen[name]))
    if none is None:
        none = pd.Series(dtype=float)
        if seen:
            from siimcovid.inference.weighted_boxes_fusion import none_confidence

            none = none_confidence(found, seen)
    images, sample = run.competition.images, run.competition.sample
    return submission_csv.write_submission(sample, study_probs, none, found, images, path, kernel_inputs.priors(run))
