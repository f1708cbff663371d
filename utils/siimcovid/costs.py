"""What each step of a run costs, measured on its first films.

In: a Run whose competition and weights are known. Out: `Costs`. The first films are prepared (for good: that work is
not lost); a throwaway copy of each model that is to be trained runs two short epochs, of which the second counts; each
model predicts a few batches. All through the functions that do the work itself, so nothing is left out of the account.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid import LEVELS, cache, trained
from siimcovid.answers import find_answers
from siimcovid.clock import Costs, StageCost
from siimcovid.files import write_text
from siimcovid.overrides import override
from siimcovid.predict import Predicted, look
from siimcovid.run import Run
from siimcovid.submission import write_submission

#: Test films that are measured on.
FILMS = 24

#: Training steps of each of the two trial epochs, and films where the batch is small: an epoch's first step is slower
#: than its others, and a single one tells little on a machine that others use too.
STEPS, TRIAL_FILMS = 4, 32

#: Share of the hours that measuring preparation, or one model's predictions, may take beyond the first two samples.
SHARE = 0.01


def wanted(run: Run) -> pd.DataFrame:
    """The films to prepare, in their order: those that the submission must answer, then those that are trained on."""
    images = run.competition.images
    test, train = images[(images["split"] == "test") & images["in_sample"]], images[images["split"] == "train"]
    return (pd.concat([test, train]) if run.mode == "finetune" else test).drop_duplicates("image_id")


def lacking(run: Run, images: pd.DataFrame) -> pd.DataFrame:
    """Those without a picture in the cache."""
    return images[[not (run.cache / f"{name}.png").is_file() for name in images["image_id"]]]


def measure(run: Run) -> Costs:
    """Measure what is to be done with the choices asked for; a part that fails is recorded, and counts as nothing."""
    costs = Costs(score=find_answers(run.source) is not None)
    with run.guard("plan", "the time of preparation is not known"):
        costs = _preparation(run, costs)
    test = _first(run, "test", FILMS)
    films = wanted(run)
    whole = int((films["split"] == "test").sum())
    costs = dataclasses.replace(costs, test_films=whole, train_films=len(films) - whole)
    stages, said = {}, {}
    for stage in run.choices.stages:
        with run.guard("plan", f"the time of stage {stage} is not known"):
            stages[stage], said[stage] = _stage(run, stage, test)
    costs = dataclasses.replace(costs, stages=stages)
    with run.guard("plan", "the time of fusing and writing is not known"):
        return dataclasses.replace(costs, tables=_tables(run, [s for s in said.values() if s], test))
    return costs


def _preparation(run: Run, costs: Costs) -> Costs:
    todo = lacking(run, wanted(run))
    test, train = todo[todo["split"] == "test"].head(FILMS), todo[todo["split"] == "train"].head(_trial_films(run))
    begin = run.clock.now()
    cache.prepare(test.head(1), run.cache, run.preset.cache_size)  # starts the processes, which counts once only
    first = run.clock.now() - begin
    more = test.iloc[1 : 2 + int(SHARE * 3600 * run.clock.hours / max(first, 1e-6))]
    films, seconds = 0, 0.0
    for part in (more, train.head(len(more) * len(train))):  # none where there was time for none
        begin = run.clock.now()
        if len(part):
            cache.prepare(part, run.cache, run.preset.cache_size)
            films, seconds = films + len(part), seconds + run.clock.now() - begin
    if not films:
        films, seconds = len(test.head(1)), first
    left = len(lacking(run, wanted(run)))
    return dataclasses.replace(costs, prepare=seconds / max(1, films), to_prepare=left)


def _trial_films(run: Run) -> int:
    if run.mode != "finetune":
        return 0
    return max(_trial_of(getattr(run.preset, stage)) for stage in run.choices.stages)


def _trial_of(config: Any) -> int:
    """Films of a stage's trial."""
    return max(STEPS * config.training.batch, TRIAL_FILMS)


def _first(run: Run, split: str, count: int) -> pd.DataFrame:
    """The first prepared films of a split."""
    images = wanted(run)
    images = images[images["split"] == split].head(2 * count)
    return images[~images["image_id"].isin(lacking(run, images)["image_id"])].head(count)


def _stage(run: Run, stage: str, test: pd.DataFrame) -> tuple[StageCost, Predicted | None]:
    """The cost of one model, and what it said of the first test films (None where there is no model)."""
    cost, path = StageCost(), trained.own(run, stage)
    trial = run.folder / "trial"
    try:
        if stage in run.choices.epochs and not path.is_file():
            cost, path = _training(run, stage, trial)
        if stage in run.choices.epochs and path.is_file():
            model = trained.read(path, stage)
        else:
            model = trained.load(run, stage)
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    if model is None or test.empty:
        return cost, None
    config, batch = model[0], min(model[0].infer_batch, -(-len(test) // 3))
    stamps = [run.clock.now()]

    def stamp() -> bool:
        stamps.append(run.clock.now())
        return len(stamps) < 3 or stamps[-1] - stamps[0] < SHARE * 3600 * run.clock.hours

    changed = dataclasses.replace(config, infer_batch=batch)
    said = look(stage, changed, model[1], test, run.cache, may_go_on=stamp)
    if len(stamps) > 2:
        film = (stamps[-1] - stamps[1]) / (min(len(test), batch * (len(stamps) - 1)) - batch)
        load = max(0.0, stamps[1] - stamps[0] - film * batch)
    else:
        film, load = (stamps[-1] - stamps[0]) / len(test), 0.0
    cost = dataclasses.replace(cost, film=film, load=load)
    return _with_whole_training(run, stage, cost), said


def _training(run: Run, stage: str, trial: Path) -> tuple[StageCost, Path]:
    """Two short epochs on the first train films; `epoch` is the seconds a film there, without validation."""
    config = getattr(run.preset, stage)
    films = _first(run, "train", 2 * _trial_films(run))
    films = films[films["annotated"] & films["level"].isin(LEVELS)].head(_trial_of(config))
    changes = {"training.epochs": 2, "training.validate": False, "training.patience": 0}
    preset = override(run.preset, {f"{stage}.{key}": value for key, value in changes.items()})
    begin = run.clock.now()
    path = trained.fit(run, stage, preset, films, trial, lambda seconds: True)
    seconds = run.clock.now() - begin
    epochs = pd.read_csv(trial / f"{stage}.metrics.csv")
    once = max(0.0, seconds - float(epochs["seconds"].sum()))
    return StageCost(once=once, epoch=1 / float(epochs["films_per_second"].iloc[-1])), path


def _with_whole_training(run: Run, stage: str, cost: StageCost) -> StageCost:
    """The cost of training on all films, from that of a film: validation and features of a frozen backbone included."""
    if not cost.epoch:
        return cost
    config = getattr(run.preset, stage)
    images = run.competition.images
    known = images[(images["split"] == "train") & images["level"].isin(LEVELS)]
    held_out = len(known) // run.preset.folds if config.training.validate else 0
    films = int(known["annotated"].sum()) - held_out
    once = cost.once
    views = getattr(config, "views", 0) if getattr(config, "frozen", False) else 0
    look_at_size = cost.film * (config.size / config.infer_size) ** 2
    if views:
        trial = min(films, _trial_of(config))
        once = max(0.0, once - views * trial * look_at_size) + views * films * look_at_size
    epoch = cost.epoch * films + (cost.load + cost.film * held_out if held_out else 0.0)
    return dataclasses.replace(cost, once=once, epoch=epoch)


def _tables(run: Run, said: list[Predicted], test: pd.DataFrame) -> float:
    """Seconds a film for fusing, for writing the tables and for a submission."""
    from siimcovid.fuse import fuse  # without it the rest can be measured all the same

    found = [one.table for one in said if "score" in one.table]
    if not found or test.empty:
        return 0.0
    table = pd.concat(found, ignore_index=True)
    names = list(dict.fromkeys(table["model"]))
    fuse(table, names)  # numba compiles at the first call
    begin = run.clock.now()
    fused = fuse(table, names)
    write_text(run.folder / "trial.csv", pd.concat([table, fused]).to_csv(index=False))
    sample = pd.DataFrame({"id": test["image_id"] + "_image", "PredictionString": ""})
    empty = pd.DataFrame(columns=["study_id", *LEVELS])
    none = pd.Series(0.5, index=test["image_id"])
    from siimcovid.inputs import priors

    write_submission(sample, empty, none, fused, test, run.folder / "trial.csv", priors(run))
    seconds = run.clock.now() - begin
    (run.folder / "trial.csv").unlink()
    return seconds / len(test)
