"""The sessions in which a preset is trained on Kaggle: which job runs in which, on which GPU, and for how long.

In: a preset, images a second of each stage (gpu_throughput.py), and what a session has. Out: `Schedule`. First come
sessions of pretraining: the backbone on NIH ChestX-ray14 by all GPUs together, then each detector on the RSNA
challenge, a GPU each. Then sessions of equal length that train the fold ensemble, a queue of (stage, fold) jobs over
the GPUs. The last one predicts and is submitted. A job that a session cannot end pauses between two epochs and goes on
in the next.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.stage_names import member, stage_of
from siimcovid.kernel.gpu_throughput import Throughput, passes
from siimcovid.kernel.session_jobs import (
    ANNOTATED_IMAGES,
    HIDDEN_IMAGES,
    NIH_IMAGES,
    OVERHEAD,
    RSNA_IMAGES,
    TRAIN_IMAGES,
    VISIBLE_IMAGES,
    Entry,
    Job,
    fill,
    fold_jobs,
    in_order,
    preparation,
    pretraining_jobs,
)
from siimcovid.kernel.time_budget import RESERVE

#: Hours by which a session's training grows until the queue fits into the sessions.
STEP = 0.05


@dataclass(frozen=True)
class Session:
    """One run on Kaggle. kind: "pretraining", "training" or "submission". mounts: what its kernel needs attached.

    ready: models whose training has ended by its end; paused: those that it began or went on with.
    """

    number: int
    kind: str
    entries: tuple[Entry, ...]
    mounts: tuple[str, ...]
    ready: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()

    @property
    def hours(self) -> float:
        """Hours that it is expected to take."""
        return max(entry.end for entry in self.entries)

    @property
    def setting(self) -> float:
        """HOURS to give it, in tenths: of the kernel's hours a part stays in reserve."""
        return math.ceil(10 * self.hours / (1 - RESERVE) - 1e-9) / 10


@dataclass(frozen=True)
class Schedule:
    """The sessions in their order. left: hours on one GPU that found no place in them."""

    sessions: tuple[Session, ...]
    jobs: tuple[Job, ...]
    left: float = 0.0

    def gpu_hours(self) -> dict[str, float]:
        """Stage -> hours on one GPU of all its models in the fold ensemble."""
        totals: dict[str, float] = {}
        for job in self.jobs:
            totals[stage_of(job.name)] = totals.get(stage_of(job.name), 0.0) + job.hours
        return totals


@dataclass(frozen=True)
class Limits:
    """What there is. hours: of a session at most. images: of the competition that are trained on, held-out fold among
    them. pretrains: whether NIH and RSNA come first."""

    gpus: int = 2
    hours: float = 9.0
    sessions: int = 4
    images: int = ANNOTATED_IMAGES
    pretrains: bool = True

    @property
    def usable(self) -> float:
        """Hours of a session that may be planned for."""
        return self.hours * (1 - RESERVE)


def plan(preset: Preset, speed: Mapping[str, Throughput], limits: Limits) -> Schedule:
    """All sessions. Raises InputError where there are fewer than pretraining, training and submitting need.

    Where the queue does not fit into the sessions, they are full and `left` says how much is missing.
    """
    before = _pretraining(preset, speed, limits) if limits.pretrains else []
    count = limits.sessions - len(before) - 1
    if count < 1:
        raise InputError(
            f"{limits.sessions} sessions are too few: {len(before)} for pretraining, one or more to train in and one "
            "to submit; give --sessions"
        )
    jobs = fold_jobs(preset, speed, limits.images)
    training, left = _training(preset, speed, limits, jobs, len(before), count)
    sessions = [*before, *training]
    sessions.append(_submission(preset, speed, sessions))
    return Schedule(tuple(sessions), tuple(jobs), sum(job.hours for job in left))


def _pretraining(preset: Preset, speed: Mapping[str, Throughput], limits: Limits) -> list[Session]:
    """The backbone on NIH by all GPUs, then the detectors on RSNA by one each; more sessions where one is too short."""
    gpus = limits.gpus
    first, detectors = pretraining_jobs(preset, speed, gpus)
    backbone = [first]
    sessions, offered = [], ("the weights to start from", "NIH ChestX-ray14", "the RSNA challenge")
    while backbone or detectors:
        entries, now = [], OVERHEAD
        if backbone:
            entries.append(preparation("NIH's images", now, NIH_IMAGES, picture=True))
            found, backbone = fill(backbone, 1, entries[-1].end, limits.usable)
            entries += [replace(entry, place=_all(gpus)) for entry in found]
            now = entries[-1].end
        if not backbone:
            entries.append(preparation("RSNA's images", now, RSNA_IMAGES, picture=True))
            found, detectors = fill(detectors, gpus, entries[-1].end, limits.usable)
            entries += found
        if not any(entry.epochs for entry in entries):
            raise InputError(
                f"no epoch of pretraining fits into a session of {limits.hours:g} hours; give more --hours"
            )
        paused = tuple(job.name for job in (*backbone, *detectors) if job.done)
        outputs = tuple(f"the output of session {k + 1}" for k in range(len(sessions)))
        sessions.append(Session(len(sessions) + 1, "pretraining", tuple(entries), offered + outputs, (), paused))
    return sessions


def _all(gpus: int) -> str:
    return {1: "GPU 0", 2: "both GPUs"}.get(gpus, f"all {gpus} GPUs")


def _training(
    preset: Preset, speed: Mapping[str, Throughput], limits: Limits, jobs: list[Job], before: int, count: int
) -> tuple[list[Session], list[Job]]:
    """The queue in so many sessions, as short as they can be when all are equal; also the jobs that are left."""
    length = max(STEP, sum(job.hours for job in jobs) / limits.gpus / count)
    while True:
        sessions, left, fits = _sessions_of_length(preset, speed, limits, jobs, before, count, length)
        if not left or not fits:
            return sessions, left
        length += STEP


def _sessions_of_length(
    preset: Preset,
    speed: Mapping[str, Throughput],
    limits: Limits,
    jobs: list[Job],
    before: int,
    count: int,
    length: float,
) -> tuple[list[Session], list[Job], bool]:
    """Sessions with so many hours of training; whether none of them would be longer than the limit allows."""
    prepared = preparation("all images", OVERHEAD, TRAIN_IMAGES + VISIBLE_IMAGES)
    outputs = [f"the output of session {k + 1}" for k in range(before)] or ["the pretrained weights"]
    sessions, fits, left, begun = [], True, list(jobs), set()
    for number in range(before + 1, before + count + 1):
        names = [job.name for job in jobs]
        everything = _predicting_hours(preset, speed, names, VISIBLE_IMAGES)
        last = limits.usable - everything - _fitting_hours(preset, speed, names, limits.images)
        fits = fits and prepared.end + length <= last
        entries, left = fill(in_order(left), limits.gpus, prepared.end, min(prepared.end + length, last))
        begun |= {entry.job for entry in entries}
        now = max((entry.end for entry in entries), default=prepared.end)
        paused = {job.name for job in left if job.done}
        ready = tuple(job.name for job in jobs if job.name in begun - paused)
        fitted = now + _fitting_hours(preset, speed, ready, limits.images)
        fitting = Entry("GPU 0", "fit ensemble", "the folds held out", now, fitted)
        hours = _predicting_hours(preset, speed, begun, VISIBLE_IMAGES)
        predicting = Entry("GPU 0", "predict", "the visible test images", fitted, fitted + hours)
        mounted = ("the competition", *outputs)
        sessions.append(
            Session(
                number, "training", (prepared, *entries, fitting, predicting), mounted, ready, tuple(sorted(paused))
            )
        )
        outputs.append(f"the output of session {number}")
    return sessions, left, fits


def _predicting_hours(preset: Preset, speed: Mapping[str, Throughput], names: Iterable[str], images: int) -> float:
    """Hours of predicting images with these models on one GPU."""
    stages = [stage_of(name) for name in names]
    return sum(passes(preset, stage) * images / speed[stage].predict for stage in stages) / 3600


def _fitting_hours(preset: Preset, speed: Mapping[str, Throughput], ready: Iterable[str], images: int) -> float:
    """Hours of predicting the folds held out, of all the models whose fold no stage lacks, see fit_ensemble_step.py."""
    ready = set(ready)
    folds = [[member(stage, n) for stage in preset.stages] for n in range(preset.members)]
    if preset.members == 1:  # several study models on the same images
        folds[0] += [name for name in ready if stage_of(name) == "study" and name != "study"]
    names = [name for fold in folds if ready.issuperset(fold) for name in fold]
    return _predicting_hours(preset, speed, names, images // preset.folds)


def _submission(preset: Preset, speed: Mapping[str, Throughput], sessions: list[Session]) -> Session:
    """The session that predicts the hidden images with what all sessions trained."""
    trained = [session for session in sessions if session.kind == "training"]
    ready, paused = trained[-1].ready, trained[-1].paused
    prepared = preparation("all images", OVERHEAD, HIDDEN_IMAGES)
    hours = _predicting_hours(preset, speed, (*ready, *paused), HIDDEN_IMAGES)
    predicting = Entry("GPU 0", "predict", "the hidden test images", prepared.end, prepared.end + hours)
    mounts = ("the competition", *(f"the output of session {session.number}" for session in trained))
    return Session(len(sessions) + 1, "submission", (prepared, predicting), mounts, ready, paused)
