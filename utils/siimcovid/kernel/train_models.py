"""Training the run's models, each as long as the time allows, and the detectors again on pseudo-labels.

The models are trained one after the other, with the whole machine for each, or where the plan says so several at a
time, see side_by_side_training.py.

In: a Run with prepared images. Out: weights/ with the trained models and their manifest, and the models in memory.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.core.stage_names import stage_of
from siimcovid.kernel.predict_test_images import boxes, free_memory, with_ensemble
from siimcovid.kernel.queue_forecast import QUEUE
from siimcovid.kernel.run import Run
from siimcovid.kernel.step_forecast import forecast
from siimcovid.kernel.write_submissions import improve, model_outputs

PSEUDO = "fine_tune_on_pseudo_labels"

#: What happens where a model's training fails.
INSTEAD = "a {} from the weights folder, if it has a trained one"


def fit(run: Run) -> pd.DataFrame:
    """Train the models (MODE finetune) or check those given (infer); returns a row per model.

    Columns: model, file (None without one), and of a trained one its last epoch, loss and images_per_second.
    """
    rows, names = [], run.planner.requested_plan().models(run.planner.requested_plan().stages)
    trained = _train_side_by_side(run, names) if run.mode == "finetune" and run.plan.jobs > 1 else {}
    for name in names:
        if name not in run.plan.models(run.plan.stages):
            continue
        facts: dict[str, Any] = {"model": name, "file": None}
        with run.step(f"fit {name}", INSTEAD.format(name), QUEUE if name in trained else ""):
            from siimcovid.kernel import stage_models

            path = trained[name] if name in trained else _train(run, name) if run.mode == "finetune" else None
            if path is None and run.planner.pauses and name not in run.inputs.models:
                run.models.unusable.add(name)  # a later session trains it, so nothing is at fault
            elif stage_models.load(run, name, path):
                path = path or stage_models.given(run, name)
                facts["file"] = str(path)
                if name in run.models.loaded and run.mode == "finetune":
                    run.planner.predict_at(stage_of(name), run.models.loaded[name][0].infer_size)
                facts |= _last_epoch(path)
        if facts["file"] is None and name not in run.models.unusable:
            with run.recovery.recover(f"fit {name}", "no model"):
                from siimcovid.kernel import stage_models  # the step's own import may be what failed

                facts["file"] = stage_models.load(run, name) and str(stage_models.given(run, name))
        rows.append(facts)
        run.planner.correct_training(stage_of(name), run.record.seconds.get(f"fit {name}", 0.0))
        run.revise()
    run.write()
    return pd.DataFrame(rows)


def _train_side_by_side(run: Run, names: list[str]) -> dict[str, Path | None]:
    """Train the models of the plan several at a time; what is absent from the result is trained by itself."""
    trained: dict[str, Path | None] = {}
    with run.step(QUEUE, "the models are trained one after the other"):
        from siimcovid.kernel import side_by_side_training

        side_by_side_training.train(run, [name for name in names if name in run.plan.models(run.plan.stages)], trained)
    if any(name not in trained for name in run.plan.models(run.plan.stages)):
        run.planner.train_at_a_time(1)
        run.revise()
    return trained


def _last_epoch(path: Path) -> dict[str, Any]:
    try:
        epochs = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")).get("epochs")
    except (OSError, ValueError):  # a checkpoint needs no file beside it
        epochs = None
    return {key: epochs[-1].get(key) for key in ("epoch", "loss", "images_per_second")} if epochs else {}


def _train(run: Run, name: str) -> Path | None:
    """Train a model, or take over what an earlier session trained of it; None where there is no time for an epoch.

    Where SESSIONS allow it, training that the hours end pauses: its checkpoint is used, and a later session goes on.
    """
    from siimcovid.kernel import earlier_sessions, stage_models

    step, path, stage = f"fit {name}", stage_models.own(run, name), stage_of(name)
    identity = stage_models.identity(run, name)
    earlier = earlier_sessions.look_up(run, name, identity)
    if earlier.done:
        run.planner.lock(stage)
    else:
        one = replace(run.plan, epochs={**run.plan.epochs, stage: 1})
        shortest = forecast(replace(run.planner.profile, trained={}), one)[step]
        if not run.has_time(step, shortest):
            return not_trained(run, name, shortest, identity)
        path = _train_in_smaller_batches(run, name, earlier.resume_from)
        report_pause(run, name, path)
    stage_models.offer(run, name, path)
    return path


def not_trained(run: Run, name: str, seconds: float, identity: Mapping[str, Any]) -> Path | None:
    """Record that an epoch's seconds do not fit; returns the checkpoint that an earlier part of the training left."""
    from siimcovid.kernel import stage_models, weights_sources

    run.record.end(f"{name} is not trained: {seconds:.0f} s for an epoch do not fit")
    path = stage_models.own(run, name)
    return path if path.is_file() and weights_sources.facts_of(path).get("identity") == identity else None


def report_pause(run: Run, name: str, path: Path) -> None:
    """Record where a training paused that a later session is to go on with."""
    from siimcovid.kernel import weights_sources

    if weights_sources.is_unfinished(path):
        done = len(weights_sources.facts_of(path).get("epochs") or ())
        run.record.end(f"training of {name} pauses after epoch {done}: the next session goes on")


def _train_in_smaller_batches(run: Run, name: str, resume_from: Path | None) -> Path:
    """Train a model, with half the batch, accumulated to the same, as often as memory is short."""
    from siimcovid.kernel import stage_models

    step, stage, out = f"fit {name}", stage_of(name), stage_models.own(run, name).parent
    run.planner.lock(stage)
    run.write()  # who is killed while training goes on with these settings
    while True:
        with run.recovery.recover(step, "half the batch, accumulated to the same", is_out_of_memory, True):
            return stage_models.fit(
                run,
                name,
                *stage_models.member_images(run, name),
                out,
                time_for_another_epoch(run, step, name),
                seconds=seconds_for_processes(run, step, name),
                pause=run.planner.pauses,
                resume_from=resume_from,
            )
        free_memory()
        run.planner.halve_batch(stage)


def whole_epoch(run: Run, stage: str) -> tuple[float, float]:
    """Seconds that the plan foresees for an epoch of a stage, and those of it behind its last training step."""
    profile, area = run.planner.profile.stage(stage), run.plan.scale.get(stage, 1.0) ** 2
    return profile.epoch * area, profile.validation * area


def time_for_another_epoch(run: Run, step: str, name: str, reserve: float = 0.0) -> Callable[[float], bool]:
    """A function of the seconds of an epoch's training steps: does another epoch fit into the hours?

    An epoch takes more than its training steps: the fold that it holds out is predicted, and its state is written. So
    what counts is the time from one question to the next; at the first question, what the plan foresees.
    reserve: seconds that must be left besides those of the steps to come.
    """
    foreseen, asked = whole_epoch(run, stage_of(name))[0], None

    def may_start_epoch(seconds: float) -> bool:
        nonlocal asked
        now = run.budget.now()
        whole = max(seconds, foreseen if asked is None else now - asked)
        asked = now
        if run.has_time(step, whole + reserve):
            return True
        if step == PSEUDO or not run.planner.pauses:
            run.record.end(f"training of {name} ends before its last epoch")
        return False

    return may_start_epoch


def seconds_for_processes(run: Run, step: str, name: str, reserve: float = 0.0) -> float:
    """Seconds after which no epoch may end in the processes of several GPUs, which count training steps only."""
    validation = whole_epoch(run, stage_of(name))[1]
    return run.budget.left() - run.planner.seconds_after(step) - validation - reserve


def fine_tune_on_pseudo_labels(run: Run, detections: pd.DataFrame) -> pd.DataFrame:
    """Train the detectors further on the test images with confident predictions, and predict all again.

    See pseudo_labels.py. Returns the new detections; those given where the preset asks for no such training, the models
    were not trained here, or time is short, so that not every model can predict all the images again. A detector whose
    training fails stays as it was.
    """
    if not (run.preset.pseudo.epochs and run.mode == "finetune" and run.predictions.predicted):
        return detections
    if not run.has_time(PSEUDO, run.planner.forecast().get(PSEUDO, 0.0)):
        run.record.end("the detectors do not train on test images")
        return detections
    before, again = run.predictions.predicted, None
    with run.step(PSEUDO, "the boxes as they were"):
        _train_on_pseudo_labels(run, detections)
        found = boxes(run, PSEUDO)
        if all(set(images) <= set(run.predictions.predicted.get(name, ())) for name, images in before.items()):
            again = with_ensemble(run, found)
        else:
            run.record.end("the boxes that were found before training on test images stay")
    if again is None:
        run.predictions.predicted, again = before, detections
    run.revise()
    return again


def _train_on_pseudo_labels(run: Run, detections: pd.DataFrame) -> None:
    """Replace each detector in memory by one that was trained further on the confident test images."""
    from siimcovid.inference import pseudo_labels
    from siimcovid.inference.ensemble import combine
    from siimcovid.inference.predictor import study_probabilities
    from siimcovid.kernel import stage_models

    probabilities = run.predictions.image_study_probs
    if probabilities is not None:  # hours may pass until the next submission
        improve(run, detections, study_probabilities(probabilities))
    labelled = pseudo_labels.label(combine(model_outputs(run, detections), run.preset), run.test, run.preset.pseudo)
    print(f"Pseudo-labels: {len(labelled)} of {len(run.test)} test images are trained on.")
    second_pass = run.record.seconds.get("detect", 0.0)
    for name in run.plan.models(run.plan.detectors) if len(labelled) else ():
        with run.recovery.recover(PSEUDO, f"{name} as it was"):
            start, stage = stage_models.own(run, name).parent, stage_of(name)
            preset, images = pseudo_labels.further(stage, *stage_models.member_images(run, name), labelled)
            path = stage_models.fit(
                run,
                name,
                preset,
                images,
                start / "pseudo",
                time_for_another_epoch(run, PSEUDO, name, second_pass),
                start,
                seconds_for_processes(run, PSEUDO, name, second_pass),
            )
            run.models.loaded[name] = (*stage_models.read(path, stage), False)
