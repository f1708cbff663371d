"""The kernel's steps, one function each, as the notebook calls them from `start` to `score`.

In: the notebook's parameters. Out, in one folder:

    submission.csv              the ensemble's submission; submissions/<model>.csv for each detector alone
    scores.json                 the scoreboard, where the answers are at hand
    shortcuts.json              the study model's score on films with markers and borders covered, likewise
    index.csv, cache/           the index and the prepared films
    weights/                    the trained stages and their manifest: the WEIGHTS_DIR of MODE "infer"
    detections.csv, levels.csv  what the models said; film_levels.csv the study model of each film
    run.json                    the configuration, the plan and the seconds of each step, what was degraded: see run.py

The first thing written is a valid submission; each better one replaces it whole. A step that fails is recorded by
`Run.guard`, and the next goes on with what there is. What needs more than the standard libraries of a data scientist is
imported in the step that needs it, so that a package that cannot be imported is a fault of that step alone.
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

from siimcovid import checkpoint, clock, competition, inputs, scoreboard, submission
from siimcovid.clock import RESERVE
from siimcovid.inference import (
    ENSEMBLE,
    MemoryShort,
    boxes,
    classify,
    detect,
    free_memory,
    improve,
    said,
    submission_file,
    submit,
    with_ensemble,
)
from siimcovid.run import Run, summary
from siimcovid.scoreboard import true_boxes

__all__ = [
    "classify",
    "detect",
    "fit",
    "plan",
    "prepare",
    "relearn",
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
    run = Run(Path(output_dir).expanduser().absolute(), clock.Clock(9.0, started, now), bool(strict))
    with run.guard("parameters", "HOURS 9"):
        run.clock.hours = inputs.read_hours(hours)
    with run.guard("start", "the notebook's own folder"):
        run.folder.mkdir(parents=True, exist_ok=True)
    if not run.folder.is_dir():
        run.folder = Path.cwd()
    with run.guard("start", "files of an earlier run stay"):
        shutil.rmtree(run.folder / "submissions", ignore_errors=True)
        for name in ("scores.json", "shortcuts.json", "detections.csv", "film_levels.csv", "levels.csv", "gallery.png"):
            (run.folder / name).unlink(missing_ok=True)
    inputs.settings(run, preset, mode, overrides)
    record, earlier = run.read_record(), None  # before it is written anew
    run.choices = run.all_choices()
    with run.step("index", "a submission of what is known of the ids"):
        inputs.read_competition(run, competition_dir)
        _write_first(run)
        competition.write_index(run.competition.images, run.folder / "index.csv")
    if run.by_priors is None:
        _write_first(run)
    inputs.find_weights(run, weights_dir)
    inputs.read_combination(run)
    with run.guard("start", "a new plan"):
        earlier = run.earlier_choices(record)
    if earlier:  # a stage whose training has begun goes on with its settings, or its half-trained state is refused
        weights = run.folder / "weights"
        folders = (weights, *weights.glob("member_*"))
        run.settled = {s for s in earlier.epochs if any((f / f"{s}.{end}").is_file() for f in folders for end in KEPT)}
        run.choices = clock.choose(run.costs, run.choices, float("inf"), earlier, run.settled)
        run.preset = clock.apply(run.asked, run.choices)
    run.write()
    return run


#: Endings of the files of a stage whose training has begun.
KEPT = ("resume.pt", "safetensors")


def _write_first(run: Run) -> None:
    with run.guard("submit", "it is tried again with each better submission"):
        submission.prior_submission(run.competition.sample, run.folder / "submission.csv", inputs.priors(run))
        run.by_priors = len(run.competition.sample)


def plan(run: Run) -> pd.DataFrame:
    """Measure the first films and plan the rest by the hours that are left; returns step and predicted seconds."""
    with run.step("plan", "all that was asked for runs as long as the hours last"):
        if run.clock.left() > 0:
            from siimcovid.costs import measure

            run.costs = measure(run)
        else:
            run.end("nothing is prepared, trained or predicted: the hours are spent")
    run.revise()
    left = [step for step in clock.forecast(run.costs, run.choices) if step not in run.seconds]
    run.predicted_total = round(run.clock.spent() + sum(run.predicted.get(step, 0.0) for step in left), 1)
    run.write()
    print(f"{run.clock.hours:g} hours, {RESERVE:.0%} of them in reserve; predicted: {run.predicted_total:.0f} s")
    print("\n".join(f"dropped: {line}" for line in run.dropped) or "nothing is dropped")
    return pd.DataFrame(run.plan_table()).set_index("step").astype(float).round(1)


def prepare(run: Run) -> pd.DataFrame:
    """Prepare the films, those of the submission first; returns those that could not be, with the reason."""
    films, tried = None, 0
    with run.step("prepare", "the films that were prepared before"):
        from siimcovid import cache
        from siimcovid.costs import lacking, wanted

        films = wanted(run)
        while tried < len(films) and (spare := _spare(run, films, tried)) > 0:
            # a quarter of the time to spare a round: the films may turn out slower than the first ones were
            tried += max(1, int(max(ROUND, spare / 4) / max(run.costs.prepare, 1e-6)))
            run.failures = cache.prepare(films.head(tried), run.cache, run.preset.cache_size)
    if films is None:
        run.failures = run.competition.images[["image_id", "path"]].assign(reason="was not prepared")
        return run.failures
    late = lacking(run, films[~films["image_id"].isin(run.failures["image_id"])])
    if len(late):
        if tried < len(films):
            run.end(f"preparation: {len(late)} of {len(films)} films are left out")
        reasons = late[["image_id", "path"]].assign(reason="was not prepared: the time or the disk did not suffice")
        run.failures = pd.concat([run.failures, reasons], ignore_index=True)
    run.costs = replace(run.costs, to_prepare=0, test_films=len(run.test))
    run.revise()
    run.write()
    return run.failures


def _spare(run: Run, films: pd.DataFrame, tried: int) -> float:
    """Seconds that are left once what was prepared so far is trained on and predicted as quickly as can be."""
    test = int((films["split"] == "test").sum())
    least = clock.choose(run.costs, run.all_choices(), -math.inf, run.choices, run.settled)
    costs = replace(run.costs, to_prepare=1, test_films=min(tried + 1, test))
    seconds = clock.forecast(costs, least)
    training = sum(value for step, value in seconds.items() if step.startswith("fit "))
    share = max(0, tried + 1 - test) / max(1, len(films) - test)  # train films come last
    return run.clock.left() - (sum(seconds.values()) - training) - training * share


def fit(run: Run) -> pd.DataFrame:
    """Train the models (MODE finetune) or check those given (infer); returns a row per model."""
    rows = []
    for name in run.all_choices().models(run.asked.stages):
        if name not in run.choices.models(run.choices.stages):
            continue
        facts: dict[str, Any] = {"model": name, "file": None}
        with run.step(f"fit {name}", f"a {name} from the weights folder, if it has a trained one"):
            from siimcovid import trained

            path = _train(run, name) if run.mode == "finetune" else None
            if trained.load(run, name, path):
                path = path or trained.given(run, name)
                facts["file"] = str(path)
                facts |= _last_epoch(path)
        if facts["file"] is None and name not in run.unusable:
            with run.guard(f"fit {name}", "no model"):
                facts["file"] = trained.load(run, name) and str(trained.given(run, name))
        rows.append(facts)
        run.revise()
    run.write()
    return pd.DataFrame(rows)


def _last_epoch(path: Path) -> dict[str, Any]:
    try:
        epochs = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")).get("epochs")
    except (OSError, ValueError):  # a checkpoint needs no file beside it
        epochs = None
    return {key: epochs[-1].get(key) for key in ("epoch", "loss", "films_per_second")} if epochs else {}


def _train(run: Run, name: str) -> Path | None:
    """Train a model, with half the batch as often as memory is short; None where there is no time for an epoch."""
    from siimcovid import trained

    step, path, stage = f"fit {name}", trained.own(run, name), checkpoint.family(name)
    resume = path.with_name(f"{stage}.resume.pt")
    one = replace(run.choices, epochs={**run.choices.epochs, stage: 1})
    shortest = clock.forecast(run.costs, one)[step]
    if not run.has_time(step, shortest) and (resume.is_file() or not path.is_file()):
        run.end(f"{name} is not trained: {shortest:.0f} s for an epoch do not fit")
        return None
    run.settled.add(stage)
    run.choices = replace(run.choices, among={stage: run.choices.members, **run.choices.among})
    run.write()  # who is killed while training goes on with these settings

    def may_start_epoch(seconds: float) -> bool:
        if run.has_time(step, seconds):
            return True
        run.end(f"training of {name} ends before its last epoch")
        return False

    while True:
        with run.guard(step, "half the batch, accumulated to the same", MemoryShort):
            path = trained.fit(run, name, *trained.member_films(run, name), path.parent, may_start_epoch)
            break
        free_memory()
        batch = getattr(run.preset, stage).training.batch // 2
        if not batch:
            raise MemoryError(f"memory does not suffice to train {stage} on single films")
        resume.unlink(missing_ok=True)  # half a run with the other batch
        run.choices = replace(run.choices, batch={**run.choices.batch, stage: batch})
        run.preset = clock.apply(run.asked, run.choices)
    trained.offer(run, name, path)
    return path


def relearn(run: Run, detections: pd.DataFrame) -> pd.DataFrame:
    """Train the detectors further on the test films that were answered surely, and look at all again (pseudo.py).

    Returns the new detections; those given where the preset asks for no such training, the models were not trained
    here, or time is short, so that not every model can look at all the films again. A detector whose training fails
    stays as it was.
    """
    if not (run.preset.pseudo.epochs and run.mode == "finetune" and run.seen):
        return detections
    if not run.has_time("relearn", clock.forecast(run.costs, run.choices).get("relearn", 0.0)):
        run.end("the detectors do not train on test films")
        return detections
    seen, again = run.seen, None
    with run.step("relearn", "the boxes as they were"):
        from siimcovid import pseudo, trained
        from siimcovid.combine import combine
        from siimcovid.predict import study_levels

        if run.film_levels is not None:  # hours may pass until the next submission
            improve(run, detections, study_levels(run.film_levels))
        labelled = pseudo.label(combine(said(run, detections), run.preset), run.test, run.preset.pseudo)
        print(f"{len(labelled)} of {len(run.test)} test films are trained on as they were answered")

        def may_start_epoch(seconds: float) -> bool:
            return run.has_time("relearn", seconds + run.seconds.get("detect", 0.0))

        for name in run.choices.models(run.choices.detectors) if len(labelled) else ():
            with run.guard("relearn", f"{name} as it was"):
                start, stage = trained.own(run, name).parent, checkpoint.family(name)
                preset, films = pseudo.further(stage, *trained.member_films(run, name), labelled)
                path = trained.fit(run, name, preset, films, start / "pseudo", may_start_epoch, start, "relearn")
                run.models[name] = (*trained.read(path, stage), False)
        found = boxes(run, "relearn")
        if all(set(films) <= set(run.seen.get(name, ())) for name, films in seen.items()):
            again = with_ensemble(run, found)
        else:
            run.end("the boxes that were found before learning from test films stay")
    if again is None:
        run.seen, again = seen, detections
    run.revise()
    return again


def score(run: Run) -> pd.DataFrame | None:
    """The scoreboard, see scoreboard.py; None where no answers lie beside the competition."""
    table = None
    with run.step("score", "no scoreboard"):
        files = {model: submission_file(run, model) for model in (*run.asked.fusion.detectors, ENSEMBLE)}
        table = scoreboard.score(run, {model: path for model, path in files.items() if path.is_file()})
    if table is not None:
        with run.step("shortcuts", "the score without a check for shortcuts"):
            scoreboard.check_shortcuts(run)
    return table
