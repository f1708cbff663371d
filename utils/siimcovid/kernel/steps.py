"""The kernel's steps, one function each, as the notebook calls them from `start` to `score`.

In: the notebook's parameters. Out, in one folder:

    submission.csv              the ensemble's submission; submissions/<model>.csv for each detector alone
    scores.json                 the scoreboard, where the ground truth is at hand
    shortcuts.json              the study model's score on images with markers and borders covered, likewise
    index.csv, cache/           the index and the prepared images
    weights/                    the trained stages, ensemble.json where it was fitted, and their manifest: the
                                WEIGHTS_DIR of MODE "infer"
    detections.csv, study_probabilities.csv  the predictions; image_study_probabilities.csv those of each image
    run.json                    the configuration, the plan and the seconds of each step, what was degraded: see
                                run_record.py

The first thing written is a valid submission; each better one replaces it whole. A step that fails is recorded by
`Recovery.recover`, and the next goes on with what there is. What needs more than the standard libraries of a data
scientist is imported in the step that needs it, so that a missing package is a fault of that step alone.
"""

import shutil
import time
from collections.abc import Callable
from typing import Any

import pandas as pd

from siimcovid.core.device import gpu_count, gpu_fault
from siimcovid.data import competition
from siimcovid.kernel import kernel_inputs, scoreboard
from siimcovid.kernel.fit_ensemble_step import fit_ensemble
from siimcovid.kernel.notebook_parameters import check_parameters
from siimcovid.kernel.predict_test_images import classify, detect
from siimcovid.kernel.prepare_images import prepare
from siimcovid.kernel.recovery import Recovery
from siimcovid.kernel.run import Run
from siimcovid.kernel.run_record import RECORD, read_record
from siimcovid.kernel.run_summary import summary
from siimcovid.kernel.scoreboard import true_boxes
from siimcovid.kernel.time_budget import RESERVE, TimeBudget
from siimcovid.kernel.train_models import fine_tune_on_pseudo_labels, fit
from siimcovid.kernel.write_submissions import ENSEMBLE, submission_file, submit, write_first

__all__ = [
    "classify",
    "detect",
    "fine_tune_on_pseudo_labels",
    "fit",
    "fit_ensemble",
    "plan",
    "prepare",
    "score",
    "start",
    "submit",
    "summary",
    "true_boxes",
]

#: What a run writes besides its weights, cache and record; an earlier run's is removed at the start.
RESULTS = (
    "scores.json",
    "shortcuts.json",
    "detections.csv",
    "image_study_probabilities.csv",
    "study_probabilities.csv",
    "gallery.png",
)

#: Endings of the files of a stage whose training has begun.
KEPT = ("resume.pt", "safetensors")


def start(
    competition_dir: Any = "",
    weights_dir: Any = "",
    output_dir: Any = ".",
    preset: Any = "full",
    mode: Any = "infer",
    hours: Any = 9.0,
    overrides: Any = None,
    strict: Any = False,
    seed: Any = None,
    sessions: Any = 1,
    jobs: Any = 0,
    started: float | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Run:
    """Check the parameters, find the inputs, read the index and write the first, valid submission.

    The arguments are the notebook's parameters, of whatever type: see notebook_parameters.py. `started` is the moment,
    by the source `now`, from which the hours are counted; without it they begin here.
    """
    given = {
        "competition_dir": competition_dir,
        "weights_dir": weights_dir,
        "output_dir": output_dir,
        "preset": preset,
        "mode": mode,
        "hours": hours,
        "overrides": overrides,
        "strict": strict,
        "seed": seed,
        "sessions": sessions,
        "jobs": jobs,
    }
    recovery = Recovery()
    parameters = check_parameters(given, recovery)
    run = Run(parameters, TimeBudget(parameters.hours, started, now), recovery)
    with run.recovery.recover("start", "files of an earlier run stay"):
        shutil.rmtree(run.folder / "submissions", ignore_errors=True)
        for name in RESULTS:
            (run.folder / name).unlink(missing_ok=True)
    record = read_record(run.folder / RECORD)  # before it is written anew
    with run.step("index", "a submission of what is known of the ids"):
        kernel_inputs.read_competition(run.inputs, parameters, recovery)
        write_first(run)
        competition.write_index(run.competition.images, run.folder / "index.csv")
    if run.record.by_priors is None:
        write_first(run)
    kernel_inputs.find_weights(run.inputs, parameters, recovery)
    numbers = kernel_inputs.read_fitted_ensemble(run.inputs, run.planner, parameters, recovery)
    run.record.ensemble = {"source": str(numbers or f"preset {parameters.preset.name}")}
    kernel_inputs.ask_for_study_models_given(run.inputs, run.planner)
    with run.recovery.recover("start", "as many models as were asked for"):
        kernel_inputs.ask_for_members_with_a_fold(run.competition.images, run.planner)
    if fault := gpu_fault():
        left = gpu_count()
        recovery.degrade("start", fault, f"{left} other GPU" if left else "everything runs on the CPU")
    with run.recovery.recover("start", "a new plan"):
        _resume(run, record)
    run.write()
    return run


def _resume(run: Run, record: Any) -> None:
    """Keep an earlier run's settings for stages whose training has begun, or their half-trained state is refused."""
    earlier = run.planner.earlier_plan(record, run.mode)
    if earlier:
        weights = run.folder / "weights"
        folders = (weights, *weights.glob("member_*"))
        begun = {s for s in earlier.epochs if any((f / f"{s}.{end}").is_file() for f in folders for end in KEPT)}
        run.planner.resume(earlier, begun)


def plan(run: Run) -> pd.DataFrame:
    """Measure the first images and plan the rest by the hours that are left; returns step and predicted seconds."""
    with run.step("plan", "all that was asked for runs as long as the hours last"):
        if run.budget.left() > 0:
            from siimcovid.kernel.step_profile import measure

            run.planner.profile = measure(run)
        else:
            run.record.end("nothing is prepared, trained or predicted: the hours are spent")
    run.revise()
    record = run.record
    left = [step for step in run.planner.forecast() if step not in record.seconds]
    record.predicted_total = round(run.budget.spent() + sum(record.predicted.get(step, 0.0) for step in left), 1)
    run.write()
    print(f"{run.budget.hours:g} hours, {RESERVE:.0%} of them in reserve; predicted: {record.predicted_total:.0f} s")
    if run.plan.jobs > 1:
        print(f"{run.plan.jobs} models are trained at a time")
    print("\n".join(f"dropped: {line}" for line in record.dropped) or "nothing is dropped")
    return pd.DataFrame(record.step_table()).set_index("step").astype(float).round(1)


def score(run: Run) -> pd.DataFrame | None:
    """The scoreboard, see scoreboard.py; None where no ground truth lies beside the competition."""
    table = None
    with run.step("score", "no scoreboard"):
        files = {model: submission_file(run, model) for model in (*run.planner.requested.fusion.detectors, ENSEMBLE)}
        table = scoreboard.score(run, {model: path for model, path in files.items() if path.is_file()})
    if table is not None:
        with run.step("shortcuts", "the score without a check for shortcuts"):
            scoreboard.check_shortcuts(run)
    return table
