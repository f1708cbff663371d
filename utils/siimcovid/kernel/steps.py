"""The kernel's steps, one function each, as the notebook calls them from `start` to `score`.

In: the notebook's parameters. Out, in one folder:

    submission.csv              the ensemble's submission; submissions/<model>.csv for each detector alone
    scores.json                 the scoreboard, where the answers are at hand
    shortcuts.json              the study model's score on images with markers and borders covered, likewise
    index.csv, cache/           the index and the prepared images
    weights/                    the trained stages and their manifest: the WEIGHTS_DIR of MODE "infer"
    detections.csv, study_probabilities.csv  what the models said; image_study_probabilities.csv the study model of each
                                             image
    run.json                    the configuration, the plan and the seconds of each step, what was degraded: see run.py

The first thing written is a valid submission; each better one replaces it whole. A step that fails is recorded by
`Run.recover`, and the next goes on with what there is. What needs more than the standard libraries of a data scientist
is imported in the step that needs it, so that a package that cannot be imported is a fault of that step alone.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core import stage_names
from siimcovid.data import competition
from siimcovid.evaluation import submission_csv
from siimcovid.kernel import kernel_inputs, scoreboard, time_budget
from siimcovid.kernel.predict_and_submit import (
    ENSEMBLE,
    MemoryShort,
    boxes,
    classify,
    detect,
    free_memory,
    improve,
    outputs,
    submission_file,
    submit,
    with_ensemble,
)
from siimcovid.kernel.run import Run, summary
from siimcovid.kernel.scoreboard import true_boxes
from siimcovid.kernel.time_budget import RESERVE

__all__ = [
    "classify",
    "detect",
    "fine_tune_on_pseudo_labels",
    "fit",
    "plan",
    "prepare",
    "score",
    "start",
    "submit",
    "summary",
    "true_boxes",
]

#: Seconds that a round of preparation is planned for at least; longer where there is time to spare.
ROUND = 30.0


def start(
    competition_dir: str = "",
    weights_dir: str = "",
    output_dir: str = ".",
    preset: str = "full",
    mode: str = "infer",
    hours: float = 9.0,
    overrides: Any = None,
    strict: bool = False,
    started: float | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Run:
    """Find the inputs, read the index and write the first, valid submission from the train set's frequencies.

    The arguments are the notebook's parameters; `overrides` may be JSON text, as papermill's `-p` passes it. `started`
    is the moment, by the source `now`, from which the hours are counted; without it they begin here.
    """
    run = Run(Path(output_dir).expanduser().absolute(), time_budget.TimeBudget(9.0, started, now), bool(strict))
    with run.recover("parameters", "HOURS 9"):
        run.budget.hours = kernel_inputs.read_hours(hours)
    with run.recover("start", "the notebook's own folder"):
        run.folder.mkdir(parents=True, exist_ok=True)
    if not run.folder.is_dir():
        run.folder = Path.cwd()
    with run.recover("start", "files of an earlier run stay"):
        shutil.rmtree(run.folder / "submissions", ignore_errors=True)
        for name in (
            "scores.json",
            "shortcuts.json",
            "detections.csv",
            "image_study_probabilities.csv",
            "study_probabilities.csv",
            "gallery.png",
        ):
            (run.folder / name).unlink(missing_ok=True)
    kernel_inputs.settings(run, preset, mode, overrides)
    record, earlier = run.read_record(), None  # before it is written anew
    run.plan = run.requested_plan()
    with run.step("index", "a submission of what is known of the ids"):
        kernel_inputs.read_competition(run, competition_dir)
        _write_first(run)
        competition.write_index(run.competition.images, run.folder / "index.csv")
    if run.by_priors is None:
        _write_first(run)
    kernel_inputs.find_weights(run, weights_dir)
    kernel_inputs.read_combination(run)
    with run.recover("start", "a new plan"):
        earlier = run.earlier_plan(record)
    if earlier:  # a stage whose training has begun goes on with its settings, or its half-trained state is refused
        weights = run.folder / "weights"
        folders = (weights, *weights.glob("member_*"))
        run.locked = {s for s in earlier.epochs if any((f / f"{s}.{end}").is_file() for f in folders for end in KEPT)}
        run.plan = time_budget.fit_plan(run.profile, run.plan, float("inf"), earlier, run.locked)
        run.preset = time_budget.apply(run.requested, run.plan)
    run.write()
    return run


#: Endings of the files of a stage whose training has begun.
KEPT = ("resume.pt", "safetensors")


def _write_first(run: Run) -> None:
    with run.recover("submit", "it is tried again with each better submission"):
        submission_csv.prior_submission(
            run.competition.sample, run.folder / "submission.csv", kernel_inputs.priors(run)
        )
        run.by_priors = len(run.competition.sample)


def plan(run: Run) -> pd.DataFrame:
    """Measure the first images and plan the rest by the hours that are left; returns step and predicted seconds."""
    with run.step("plan", "all that was asked for runs as long as the hours last"):
        if run.budget.left() > 0:
            from siimcovid.kernel.step_profile import measure

            run.profile = measure(run)
        else:
            run.end("nothing is prepared, trained or predicted: the hours are spent")
    run.revise()
    left = [step for step in time_budget.forecast(run.profile, run.plan) if step not in run.seconds]
    run.predicted_total = round(run.budget.spent() + sum(run.predicted.get(step, 0.0) for step in left), 1)
    run.write()
    print(f"{run.budget.hours:g} hours, {RESERVE:.0%} of them in reserve; predicted: {run.predicted_total:.0f} s")
    print("\n".join(f"dropped: {line}" for line in run.dropped) or "nothing is dropped")
    return pd.DataFrame(run.plan_table()).set_index("step").astype(float).round(1)


def prepare(run: Run) -> pd.DataFrame:
    """Prepare the images, those of the submission first; returns those that could not be, with the reason."""
    images, tried = None, 0
    with run.step("prepare", "the images that were prepared before"):
        from siimcovid.data import image_cache
        from siimcovid.kernel.step_profile import lacking, wanted

        images = wanted(run)
        while tried < len(images) and (spare := _spare(run, images, tried)) > 0:
            # a quarter of the time to spare a round: the images may turn out slower than the first ones were
            tried += max(1, int(max(ROUND, spare / 4) / max(run.profile.prepare, 1e-6)))
            run.failures = image_cache.prepare(images.head(tried), run.cache, run.preset.cache_size)
    if images is None:
        run.failures = run.competition.images[["image_id", "path"]].assign(reason="was not prepared")
        return run.failures
    late = lacking(run, images[~images["image_id"].isin(run.failures["image_id"])])
    if len(late):
        if tried < len(images):
            run.end(f"preparation: {len(late)} of {len(images)} images are left out")
        reasons = late[["image_id", "path"]].assign(reason="was not prepared: the time or the disk did not suffice")
        run.failures = pd.concat([run.failures, reasons], ignore_index=True)
    run.profile = replace(run.profile, to_prepare=0, test_images=len(run.test))
    run.revise()
    run.write()
    return run.failures


def _spare(run: Run, images: pd.DataFrame, tried: int) -> float:
    """Seconds that are left once what was prepared so far is trained on and predicted as quickly as can be."""
    test = int((images["split"] == "test").sum())
    least = time_budget.fit_plan(run.profile, run.requested_plan(), -math.inf, run.plan, run.locked)
    profile = replace(run.profile, to_prepare=1, test_images=min(tried + 1, test))
    seconds = time_budget.forecast(profile, least)
    training = sum(value for step, value in seconds.items() if step.startswith("fit "))
    share = max(0, tried + 1 - test) / max(1, len(images) - test)  # train images come last
    return run.budget.left() - (sum(seconds.values()) - training) - training * share


def fit(run: Run) -> pd.DataFrame:
    """Train the models (MODE finetune) or check those given (infer); returns a row per model."""
    rows = []
    for name in run.requested_plan().models(run.requested.stages):
        if name not in run.plan.models(run.plan.stages):
            continue
        facts: dict[str, Any] = {"model": name, "file": None}
        with run.step(f"fit {name}", f"a {name} from the weights folder, if it has a trained one"):
            from siimcovid.kernel import stage_models

            path = _train(run, name) if run.mode == "finetune" else None
            if stage_models.load(run, name, path):
                path = path or stage_models.given(run, name)
                facts["file"] = str(path)
                facts |= _last_epoch(path)
        if facts["file"] is None and name not in run.unusable:
            with run.recover(f"fit {name}", "no model"):
                facts["file"] = stage_models.load(run, name) and str(stage_models.given(run, name))
        rows.append(facts)
        run.revise()
    run.write()
    return pd.DataFrame(rows)


def _last_epoch(path: Path) -> dict[str, Any]:
    try:
        epochs = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")).get("epochs")
    except (OSError, ValueError):  # a checkpoint needs no file beside it
        epochs = None
    return {key: epochs[-1].get(key) for key in ("epoch", "loss", "images_per_second")} if epochs else {}


def _train(run: Run, name: str) -> Path | None:
    """Train a model, with half the batch as often as memory is short; None where there is no time for an epoch."""
    from siimcovid.kernel import stage_models

    step, path, stage = f"fit {name}", stage_models.own(run, name), stage_names.stage_of(name)
    resume = path.with_name(f"{stage}.resume.pt")
    one = replace(run.plan, epochs={**run.plan.epochs, stage: 1})
    shortest = time_budget.forecast(run.profile, one)[step]
    if not run.has_time(step, shortest) and (resume.is_file() or not path.is_file()):
        run.end(f"{name} is not trained: {shortest:.0f} s for an epoch do not fit")
        return None
    run.locked.add(stage)
    run.plan = replace(run.plan, members_at_start={stage: run.plan.members, **run.plan.members_at_start})
    run.write()  # who is killed while training goes on with these settings

    def may_start_epoch(seconds: float) -> bool:
        if run.has_time(step, seconds):
            return True
        run.end(f"training of {name} ends before its last epoch")
        return False

    while True:
        with run.recover(step, "half the batch, accumulated to the same", MemoryShort):
            path = stage_models.fit(run, name, *stage_models.member_images(run, name), path.parent, may_start_epoch)
            break
        free_memory()
        batch = getattr(run.preset, stage).training.batch // 2
        if not batch:
            raise MemoryError(f"memory does not suffice to train {stage} on single images")
        resume.unlink(missing_ok=True)  # half a run with the other batch
        run.plan = replace(run.plan, batch={**run.plan.batch, stage: batch})
        run.preset = time_budget.apply(run.requested, run.plan)
    stage_models.offer(run, name, path)
    return path


def fine_tune_on_pseudo_labels(run: Run, detections: pd.DataFrame) -> pd.DataFrame:
    """Train the detectors further on the test images that were answered surely, and look at all again (pseudo.py).

    Returns the new detections; those given where the preset asks for no such training, the models were not trained
    here, or time is short, so that not every model can look at all the images again. A detector whose training fails
    stays as it was.
    """
    if not (run.preset.pseudo.epochs and run.mode == "finetune" and run.seen):
        return detections
    if not run.has_time(
        "fine_tune_on_pseudo_labels", time_budget.forecast(run.profile, run.plan).get("fine_tune_on_pseudo_labels", 0.0)
    ):
        run.end("the detectors do not train on test images")
        return detections
    seen, again = run.seen, None
    with run.step("fine_tune_on_pseudo_labels", "the boxes as they were"):
        from siimcovid.inference import pseudo_labels
        from siimcovid.inference.ensemble import combine
        from siimcovid.inference.predictor import study_probabilities
        from siimcovid.kernel import stage_models

        if run.image_study_probs is not None:  # hours may pass until the next submission
            improve(run, detections, study_probabilities(run.image_study_probs))
        labelled = pseudo_labels.label(combine(outputs(run, detections), run.preset), run.test, run.preset.pseudo)
        print(f"{len(labelled)} of {len(run.test)} test images are trained on as they were answered")

        def may_start_epoch(seconds: float) -> bool:
            return run.has_time("fine_tune_on_pseudo_labels", seconds + run.seconds.get("detect", 0.0))

        for name in run.plan.models(run.plan.detectors) if len(labelled) else ():
            with run.recover("fine_tune_on_pseudo_labels", f"{name} as it was"):
                start, stage = stage_models.own(run, name).parent, stage_names.stage_of(name)
                preset, images = pseudo_labels.further(stage, *stage_models.member_images(run, name), labelled)
                path = stage_models.fit(
                    run, name, preset, images, start / "pseudo", may_start_epoch, start, "fine_tune_on_pseudo_labels"
                )
                run.models[name] = (*stage_models.read(path, stage), False)
        found = boxes(run, "fine_tune_on_pseudo_labels")
        if all(set(images) <= set(run.seen.get(name, ())) for name, images in seen.items()):
            again = with_ensemble(run, found)
        else:
            run.end("the boxes that were found before learning from test images stay")
    if again is None:
        run.seen, again = seen, detections
    run.revise()
    return again


def score(run: Run) -> pd.DataFrame | None:
    """The scoreboard, see scoreboard.py; None where no answers lie beside the competition."""
    table = None
    with run.step("score", "no scoreboard"):
        files = {model: submission_file(run, model) for model in (*run.requested.fusion.detectors, ENSEMBLE)}
        table = scoreboard.score(run, {model: path for model, path in files.items() if path.is_file()})
    if table is not None:
        with run.step("shortcuts", "the score without a check for shortcuts"):
            scoreboard.check_shortcuts(run)
    return table
