"""The queue of a run's trainings: several models at a time, one on each GPU or on a part of the CPU's cores.

In: a Run whose plan trains more than one model at a time, and the models' names. Out: the models' checkpoints, entered
into the manifest, and for each training a row of run.json's `jobs`. What one training fails with stops no other.

As in train_models.py, what an earlier session left is taken over, training that the hours do not suffice for ends or
pauses, and a lack of memory halves the batch. A model waits for another where it starts from that one's weights.
"""

import gc
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.core.stage_names import stage_of
from siimcovid.kernel import earlier_sessions, stage_models
from siimcovid.kernel.queue_forecast import QUEUE, beside_others, in_order, latest_end
from siimcovid.kernel.run import Run
from siimcovid.kernel.run_plan import RunPlan
from siimcovid.kernel.step_forecast import Profile, model_seconds, waits_for
from siimcovid.kernel.train_models import INSTEAD, not_trained, report_pause, whole_epoch
from siimcovid.training.epoch_log import clock_time
from siimcovid.training.side_by_side import NoProcessError, Outcome, SideBySide, cpu_places, gpu_places
from siimcovid.training.training_job import TrainingJob


class ProcessTraceback(Exception):
    """The traceback of another process, as the cause of the error that tells of it."""


def train(run: Run, names: Iterable[str], trained: dict[str, Path | None]) -> None:
    """Train models side by side, as many at a time as the plan says.

    trained: takes the checkpoint of each model that was the queue's to train; None where it has none. On several GPUs
    the last model is left out while nothing else runs: alone it can have them all.
    """
    machine = run.planner.profile.machine
    jobs = min(run.plan.jobs, machine.jobs_at_most())
    if jobs < 2:
        return
    run.planner.train_at_a_time(jobs)
    gc.collect()
    if machine.gpus:
        torch.cuda.empty_cache()  # the processes need what this one no longer uses
    places = gpu_places(jobs) if machine.gpus else cpu_places(jobs, machine.cores)
    seconds = model_seconds(run.planner.profile, run.plan)
    with SideBySide(places) as processes:
        order = in_order({name: seconds.get(name, 0.0) for name in names}, waits_for(run.plan))
        queue = Queue(run, processes, order, trained)
        queue.work(all_for_the_last=machine.gpus > 1)


@dataclass
class _Begun:
    """A training that runs: when it began and its seconds, by the run's clock; images of a step when it began."""

    begin: float
    seconds: float
    batch: int


@dataclass
class Queue:
    """See `train`. waiting: the models whose training has not begun, in order."""

    run: Run
    processes: SideBySide
    waiting: list[str]
    trained: dict[str, Path | None]
    begun: dict[str, _Begun] = field(default_factory=dict)

    def work(self, all_for_the_last: bool) -> None:
        """Train until none is left."""
        jobs = self.processes.count
        print(f"{', '.join(self.waiting)}: {jobs} at a time, each on {self._a_place()}", flush=True)
        while self.waiting or self.begun:
            if all_for_the_last and len(self.waiting) == 1 and not self.begun:
                return
            self._fill()
            for outcome in self.processes.wait():
                self._end(outcome)

    def _a_place(self) -> str:
        place = self.processes.free[0]
        return "a GPU" if place.gpu else place.name.replace(", ", " with ")

    def _fill(self) -> None:
        """Begin trainings in the places that are free."""
        for name in list(self.waiting):
            if not self.processes.free:
                return
            if name not in self.run.plan.models(self.run.plan.stages):  # dropped meanwhile
                self.waiting.remove(name)
            elif not starts_from(self.run, name, {*self.waiting, *self.begun}):
                self.waiting.remove(name)
                with self.run.recovery.recover(f"fit {name}", INSTEAD.format(name), of_the_model):
                    self._begin(name, self._threads_alone(name))
                if name not in self.begun:
                    self.trained.setdefault(name, None)

    def _threads_alone(self, name: str) -> int:
        """On the CPU all cores, for a model for which all others wait; else 0."""
        machine = self.run.planner.profile.machine
        others = [other for other in self.waiting if other in self.run.plan.models(self.run.plan.stages)]
        alone = others and not self.begun and all(starts_from(self.run, other, [name]) for other in others)
        return machine.cores if alone and not machine.gpus else 0

    def _begin(self, name: str, threads: int = 0) -> None:
        """Start a model's training, or take over what an earlier session made of it, unless there is no time for it.

        threads: see `SideBySide.start`.
        """
        run, stage, path = self.run, stage_of(name), stage_models.own(self.run, name)
        identity = stage_models.identity(run, name)
        earlier = earlier_sessions.look_up(run, name, identity)
        if earlier.done:
            run.planner.lock(stage)
            stage_models.offer(run, name, path)
            self.trained[name] = path
            return
        one = replace(run.plan, epochs={**run.plan.epochs, stage: 1})
        shortest = self._seconds(replace(run.planner.profile, trained={}), one)[name]
        if (left := self._seconds_for(name)) <= shortest:
            self.trained[name] = not_trained(run, name, shortest, identity)
            return
        run.planner.lock(stage)
        run.write()  # who is killed while training goes on with these settings
        preset, images = stage_models.member_images(run, name)
        start, pauses = stage_models.start_of(run, name), run.planner.pauses
        job = TrainingJob(stage, preset, images, run.cache, start, path.parent, pauses, earlier.resume_from)
        slowdown = 1.0 if threads else run.planner.profile.machine.slowdown(self.processes.count)
        foreseen = whole_epoch(run, stage)[0] * slowdown
        self.processes.start(name, replace(job, deadline=time.time() + left), foreseen, threads)
        seconds = self._seconds(run.planner.profile, run.plan)[name]
        self.begun[name] = _Begun(run.budget.now(), seconds, getattr(preset, stage).training.batch)

    def _seconds(self, profile: Profile, plan: RunPlan) -> dict[str, float]:
        """Model -> seconds of its training in one of the places."""
        return beside_others(model_seconds(profile, plan), profile.machine, self.processes.count)

    def _left_of(self, name: str) -> float:
        """Seconds that a training which runs has yet to go, as it was foreseen."""
        begun = self.begun[name]
        return max(0.0, begun.seconds - (self.run.budget.now() - begun.begin))

    def _seconds_for(self, name: str) -> float:
        """Seconds that a training which begins now may take, so that those that wait have their time too.

        Where training pauses they need none: a later session trains them.
        """
        run = self.run
        left = run.budget.left() - run.planner.seconds_after(QUEUE)
        if run.planner.pauses:
            return left
        seconds = self._seconds(run.planner.profile, run.plan)
        busy = [self._left_of(other) for other in self.begun]
        busy += [0.0] * (self.processes.count - 1 - len(busy))
        return latest_end(left, busy, [seconds[other] for other in self.waiting if other in seconds])

    def _end(self, outcome: Outcome) -> None:
        """Take over what a training left, or put it back into the queue where it lacked memory."""
        run, name, begun = self.run, outcome.name, self.begun.pop(outcome.name)
        self._record(outcome, begun)
        with run.recovery.recover(f"fit {name}", INSTEAD.format(name)):
            if outcome.failure:
                self._fail(outcome, begun)
            else:
                path = stage_models.own(run, name)
                if outcome.out_of_time and not run.planner.pauses:
                    run.record.end(f"training of {name} ends before its last epoch")
                report_pause(run, name, path)
                stage_models.offer(run, name, path)
                self.trained[name] = path
        if name not in self.waiting:
            self.trained.setdefault(name, None)
        machine = run.planner.profile.machine
        alone = not machine.gpus and outcome.place.threads == machine.cores
        slowdown = 1.0 if alone else machine.slowdown(self.processes.count)
        run.planner.correct_training(stage_of(name), 0.0 if outcome.failure else outcome.seconds / slowdown)
        run.planner.take_as_trained([*self.trained, *self.begun])
        run.revise(sum(map(self._left_of, self.begun)) / self.processes.count, begun=QUEUE)

    def _fail(self, outcome: Outcome, begun: _Begun) -> None:
        """Raise what a training failed with; where memory was short it is to begin again with half the batch."""
        run, name = self.run, outcome.name
        error = RuntimeError(f"training of {name} failed: {outcome.failure}")
        error.__cause__ = ProcessTraceback(outcome.trace) if outcome.trace else None
        if not is_out_of_memory(error):
            raise error
        with run.recovery.recover(f"fit {name}", "half the batch, accumulated to the same", retried=True):
            raise error
        if getattr(run.preset, stage_of(name)).training.batch == begun.batch:  # not yet for another of the stage
            run.planner.halve_batch(stage_of(name))
        self.waiting.insert(0, name)

    def _record(self, outcome: Outcome, begun: _Begun) -> None:
        """Add a row to run.json's `jobs`, and say where the training ran."""
        late = "paused" if self.run.planner.pauses else "out of time"
        ended = "failed" if outcome.failure else late if outcome.out_of_time else "trained"
        begin = round(begun.begin - self.run.budget.started, 2)
        where = {"place": outcome.place.name, "threads": outcome.place.threads}
        row = {"model": outcome.name, **where, "begin": begin, "seconds": outcome.seconds, "ended": ended}
        self.run.record.jobs.append(row)
        print(f"{outcome.name}: {ended} after {clock_time(outcome.seconds)} ({outcome.place.name})", flush=True)


def of_the_model(error: Exception) -> bool:
    """Whether an error concerns one model; where no process can be started, the queue cannot go on."""
    return not isinstance(error, NoProcessError)


def starts_from(run: Run, name: str, others: Iterable[str]) -> set[str]:
    """Those of other models from whose weights a model starts.

    Such are a detector's study model where the preset asks for its backbone; and models that are trained into the
    folder that this one starts from, as a stage's first where WEIGHTS_DIR is the run's own weights.
    """
    start, stage = stage_models.start_of(run, name), stage_of(name)
    if start is None:
        return set()
    study = waits_for(run.plan).get(name)
    return {
        other
        for other in others
        if other == study
        or (
            other != name
            and stage_of(other) in (stage, "backbone")
            and stage_models.own(run, other).parent.resolve() == start.resolve()
        )
    }
