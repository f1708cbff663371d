"""Writing the submissions: of the train set's frequencies first, then a better one with every model, each checked.

In: a Run, detections and study probabilities. Out: submission.csv, and submissions/<model>.csv for each detector alone.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from siimcovid.core.configuration import LateFusionConfig
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, write_csv
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.stage_names import DETECTORS
from siimcovid.core.tables import find_table
from siimcovid.evaluation import submission_csv, submission_validator
from siimcovid.kernel import kernel_inputs
from siimcovid.kernel.run import Run

if TYPE_CHECKING:
    from siimcovid.inference.model_outputs import ModelOutputs

ENSEMBLE = "ensemble"


def write_first(run: Run) -> None:
    """Write submission.csv from the train set's frequencies: valid, and replaced by each better one."""
    with run.recovery.recover("submit", "it is tried again with each better submission"):
        sample, images = run.competition.sample, run.competition.images
        submission_csv.prior_submission(sample, submission_file(run, ENSEMBLE), kernel_inputs.priors(images))
        run.record.by_priors = len(sample)


def model_outputs(run: Run, detections: pd.DataFrame) -> "ModelOutputs":
    """All predictions of the test images, as the functions that combine them take them."""
    from siimcovid.inference.model_outputs import ModelOutputs

    images = run.test[["image_id", "study_id"]]
    outputs = ModelOutputs(images, detections[detections["model"] != ENSEMBLE], run.predictions.predicted)
    return (
        outputs
        if run.predictions.image_study_probs is None
        else replace(outputs, study_probs=run.predictions.image_study_probs)
    )


def submit(run: Run, detections: pd.DataFrame, study_probs: pd.DataFrame) -> Path:
    """Write and check submission.csv from the ensemble, and one submission for each detector alone.

    Where the preset has late fusion of study model and detectors, its result replaces the ensemble's rows of
    detections.csv and study_probabilities.csv.
    """
    with run.step("submit", "the submission that was written before"):
        improve(run, detections, study_probs)
        if run.preset.late_fusion != LateFusionConfig() and run.predictions.predicted:
            with run.recovery.recover("submit", "boxes and study labels as each model gave them"):
                from siimcovid.inference.ensemble import combine

                alone = detections[detections["model"] != ENSEMBLE]
                prediction = combine(model_outputs(run, alone), run.preset)
                improve(run, prediction.detections, prediction.study_probs, prediction.none)
                write_csv(pd.concat([alone, prediction.detections], ignore_index=True), run.folder / "detections.csv")
                if len(prediction.study_probs):
                    write_csv(prediction.study_probs, run.folder / "study_probabilities.csv")
        for model in run.predictions.predicted:
            if model in DETECTORS:
                _write_submission(run, model, detections, study_probs, submission_file(run, model))
    run.revise()
    return submission_file(run, ENSEMBLE)


def submission_file(run: Run, model: str) -> Path:
    """The path of a model's submission: submission.csv for the ensemble, else submissions/<model>.csv."""
    return run.folder / ("submission.csv" if model == ENSEMBLE else f"submissions/{model}.csv")


def improve(
    run: Run, detections: pd.DataFrame, study_probs: pd.DataFrame | None, none: pd.Series | None = None
) -> None:
    """Replace submission.csv by a better one, if that is valid.

    none: image_id -> confidence that the image has no box; by default 1 - the highest score.
    """
    with run.recovery.recover("submit", "the submission that was written before"):
        with atomic_path(submission_file(run, ENSEMBLE)) as temporary:
            by_priors = _write_submission(run, ENSEMBLE, detections, study_probs, temporary, none)
            if len(run.competition.sample):
                sizes = run.folder / "index.csv"
                sample = find_table(run.competition.folder, kernel_inputs.SAMPLE)
                verdict = submission_validator.validate(temporary, sample, sizes if sizes.is_file() else None)
                if verdict.faults:
                    raise InputError(f"what was written is not valid: {'; '.join(map(str, verdict.faults[:3]))}")
        run.record.by_priors = len(by_priors)


def _write_submission(
    run: Run,
    model: str,
    detections: pd.DataFrame,
    study_probs: pd.DataFrame | None,
    path: Path,
    none: pd.Series | None = None,
) -> list[str]:
    """Write one model's submission to `path`; returns the ids whose row holds the train set's frequencies."""
    if study_probs is None:
        study_probs = pd.DataFrame(columns=["study_id", *STUDY_LABELS], dtype=float)
    found = detections[detections["model"] == model]
    model_names = run.predictions.predicted if model == ENSEMBLE else [model]
    seen = list(dict.fromkeys(image for name in model_names for image in run.predictions.predicted[name]))
    if none is None:
        none = pd.Series(dtype=float)
        if seen:
            from siimcovid.inference.weighted_boxes_fusion import none_confidence

            none = none_confidence(found, seen)
    images, sample = run.competition.images, run.competition.sample
    return submission_csv.write_submission(sample, study_probs, none, found, images, path, kernel_inputs.priors(images))
