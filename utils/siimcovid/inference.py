"""What the trained models say of the test films, and the submissions made of it: the pipeline's last steps.

In: a Run with prepared films. Out: detections.csv, film_levels.csv, levels.csv, submission.csv and
submissions/<model>.csv.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from siimcovid import LEVELS, checkpoint, inputs, submission, validate
from siimcovid.configs import CrosstalkConfig
from siimcovid.errors import InputError
from siimcovid.files import atomic_path
from siimcovid.run import Run
from siimcovid.tables import find_table, some

if TYPE_CHECKING:
    from siimcovid.combine import Said

ENSEMBLE = "ensemble"
DETECTIONS = ["image_id", "model", "score", "x1", "y1", "x2", "y2"]

MemoryShort = torch.cuda.OutOfMemoryError


def free_memory() -> None:
    """Let go of what a failed step still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _look(run: Run, step: str, model: str, flip: bool = False, change: Callable | None = None) -> pd.DataFrame | None:
    """What a model says of the test films, as long as there is time; None without a model or any time.

    model: a stage, or a member of its fold ensemble. change: see predict.predict.
    """
    from siimcovid import trained
    from siimcovid.predict import look

    if not (loaded := trained.load(run, model)):
        return None
    stage, name = checkpoint.family(model), f"{model}_flip" if flip else model
    if not run.has_time(step):
        run.end(f"{name} looks at no film")
        return None
    config, network = loaded
    batch, device = config.infer_batch, None
    while True:
        with run.guard(step, f"batches of {batch // 2}" if batch > 1 else "the CPU", MemoryShort):
            changed = replace(config, infer_batch=batch)
            said = look(stage, changed, network, run.test, run.cache, flip, device, lambda: run.has_time(step), change)
            break
        free_memory()
        if device:
            raise MemoryError(f"memory does not suffice for {model} on a single film")
        batch, device = (batch // 2, None) if batch > 1 else (1, "cpu")
    if stage in checkpoint.DETECTORS:
        run.seen[name] = said.image_ids
    missed = len(run.test) - len(said.image_ids) - len(said.unreadable) - len(said.not_finite)
    if missed:
        run.end(f"{name} looks at {len(run.test) - missed} of {len(run.test)} films")
    for films, what in ((said.unreadable, "have no whole picture"), (said.not_finite, "give numbers not finite")):
        if films:
            run.degrade(step, f"{name}: {len(films)} films {what} ({some(films)})", "these films without it")
    return said.table if stage == "study" else said.table.assign(model=name)


def detect(run: Run) -> pd.DataFrame:
    """Boxes of each detector and of their ensemble on the test films."""
    detections, run.seen = pd.DataFrame(columns=DETECTIONS), {}
    with run.step("detect", "what was found before, not fused"):
        from siimcovid.combine import ensemble  # noqa: F401 - where it fails, before the detectors took time

        detections = boxes(run, "detect")
        if run.seen:
            detections = with_ensemble(run, detections)
    run.revise()
    return detections


def boxes(run: Run, step: str) -> pd.DataFrame:
    """What each detector says of the test films, as far as there is time; run.seen says how far."""
    detections, run.seen = pd.DataFrame(columns=DETECTIONS), {}
    passes: dict[str, float] = {}
    for flip in (False, True) if run.choices.flips else (False,):
        for name in run.choices.models(run.choices.detectors):
            if flip and not run.has_time(step, passes.get(name, 0.0)):
                run.end(f"{name} does not look at mirrored films")
                continue
            begin = run.clock.now()
            with run.guard(step, f"the boxes without {name}{' on mirrored films' if flip else ''}"):
                table = _look(run, step, name, flip)
                if table is not None:
                    detections = pd.concat([detections, table], ignore_index=True) if len(detections) else table
                    if step == "detect" and len(run.seen) == 1:  # better than the frequencies alone
                        improve(run, detections.assign(model=ENSEMBLE), None)
            passes[name] = run.clock.now() - begin
    return detections


def with_ensemble(run: Run, detections: pd.DataFrame) -> pd.DataFrame:
    """The detectors' boxes and those of their ensemble, which are written, and submitted with the levels so far."""
    from siimcovid.combine import ensemble
    from siimcovid.predict import study_levels

    fused = ensemble(said(run, detections), run.preset.fusion)
    detections = pd.concat([detections, fused], ignore_index=True)
    _write_table(detections, run.folder / "detections.csv")
    improve(run, detections, None if run.film_levels is None else study_levels(run.film_levels))
    return detections


def said(run: Run, detections: pd.DataFrame) -> "Said":
    """What the models said of the test films, to be combined."""
    from siimcovid.combine import Said

    films = run.test[["image_id", "study_id"]]
    said = Said(films, detections[detections["model"] != ENSEMBLE], run.seen)
    return said if run.film_levels is None else replace(said, levels=run.film_levels)


def classify(run: Run) -> pd.DataFrame:
    """The four levels' probabilities of each test study, the mean over its films."""
    levels = pd.DataFrame(columns=["study_id", *LEVELS], dtype=float)
    with run.step("classify", "the train set's frequencies for every study"):
        run.film_levels = film_levels(run, "classify")
        if run.film_levels is not None:
            from siimcovid.predict import study_levels

            levels = study_levels(run.film_levels)
            _write_table(run.film_levels, run.folder / "film_levels.csv")
            _write_table(levels, run.folder / "levels.csv")
    run.revise()
    return levels


def film_levels(run: Run, step: str, change: Callable | None = None) -> pd.DataFrame | None:
    """What the study model says of each test film, the mean over its members; None without one."""
    names, tables = run.choices.models(["study"]), []
    if len(names) == 1:
        return _look(run, step, "study", change=change)
    for name in names:
        with run.guard(step, f"the levels without {name}"):
            tables.append(_look(run, step, name, change=change))
    tables = [table for table in tables if table is not None]
    if not tables:
        return None
    return pd.concat(tables).groupby(["image_id", "study_id"], sort=False).mean().reset_index()


def classify_covered(run: Run) -> pd.DataFrame | None:
    """As `classify`, of films without their markers and borders; None without a model or the time for it."""
    from siimcovid.predict import study_levels
    from siimcovid.shortcuts import cover

    seconds = 2 * run.seconds.get("classify", 0.0)  # covering the films takes no longer than looking at them
    if not run.has_time("score", seconds):
        run.end("the check for shortcuts is left out")
        return None
    table = film_levels(run, "score", cover)
    return None if table is None else study_levels(table)


def submit(run: Run, detections: pd.DataFrame, levels: pd.DataFrame) -> Path:
    """Write and check submission.csv from the ensemble, and one submission for each detector alone.

    Where the preset lets study model and detectors hear each other, what comes of it replaces the ensemble's rows of
    detections.csv and levels.csv.
    """
    with run.step("submit", "the submission that was written before"):
        improve(run, detections, levels)
        if run.preset.crosstalk != CrosstalkConfig() and run.seen:
            with run.guard("submit", "boxes and levels as each model gave them"):
                from siimcovid.combine import combine

                alone = detections[detections["model"] != ENSEMBLE]
                answer = combine(said(run, alone), run.preset)
                improve(run, answer.detections, answer.levels, answer.none)
                _write_table(pd.concat([alone, answer.detections], ignore_index=True), run.folder / "detections.csv")
                if len(answer.levels):
                    _write_table(answer.levels, run.folder / "levels.csv")
        for model in run.seen:
            if model in checkpoint.DETECTORS:
                _write_submission(run, model, detections, levels, submission_file(run, model))
    run.revise()
    return submission_file(run, ENSEMBLE)


def submission_file(run: Run, model: str) -> Path:
    """Where a model's submission lies: the ensemble's is the kernel's own."""
    return run.folder / ("submission.csv" if model == ENSEMBLE else f"submissions/{model}.csv")


def improve(run: Run, detections: pd.DataFrame, levels: pd.DataFrame | None, none: pd.Series | None = None) -> None:
    """Replace submission.csv by a better one, if that is valid."""
    with run.guard("submit", "the submission that was written before"):
        with atomic_path(submission_file(run, ENSEMBLE)) as temporary:
            by_priors = _write_submission(run, ENSEMBLE, detections, levels, temporary, none)
            if len(run.competition.sample):
                sizes = run.folder / "index.csv"
                sample = find_table(run.competition.folder, inputs.SAMPLE)
                verdict = validate.validate(temporary, sample, sizes if sizes.is_file() else None)
                if verdict.faults:
                    raise InputError(f"what was written is not valid: {'; '.join(map(str, verdict.faults[:3]))}")
        run.by_priors = len(by_priors)


def _write_submission(
    run: Run,
    model: str,
    detections: pd.DataFrame,
    levels: pd.DataFrame | None,
    path: Path,
    none: pd.Series | None = None,
) -> list[str]:
    """Write one model's submission; returns the ids that priors answered. `none`: 1 - the highest score by default."""
    if levels is None:
        levels = pd.DataFrame(columns=["study_id", *LEVELS], dtype=float)
    found = detections[detections["model"] == model]
    voices = run.seen if model == ENSEMBLE else [model]
    seen = list(dict.fromkeys(film for name in voices for film in run.seen[name]))
    if none is None:
        none = pd.Series(dtype=float)
        if seen:
            from siimcovid.fuse import none_confidence

            none = none_confidence(found, seen)
    images, sample = run.competition.images, run.competition.sample
    return submission.write_submission(sample, levels, none, found, images, path, inputs.priors(run))


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
