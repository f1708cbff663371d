"""Trainings side by side: one on each GPU, or each on some of the CPU's cores, in a process of its own.

In: TrainingJobs and the places where they may run. Out: the jobs' checkpoints, and how each process ended. What the
processes print is printed here, line by line, with the model's name.

On the CPU a training uses its cores the worse the more it has: one thread each, side by side, get more done than all
threads for one after the other. What a training leaves depends on its number of threads, not on its neighbours.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from siimcovid.core.device import visible_gpu
from siimcovid.core.processes import SHARED_BY, inherited_path, processors
from siimcovid.training.training_job import TrainingJob, remove_job, write_job

#: The module that a training's process runs, with the job's file as its argument.
CHILD = "siimcovid.training.job_child"

#: Seconds between two looks at whether a process has ended.
LOOK_EVERY = 0.1

#: Lines of a process's stderr that are kept, for one that ends without saying why.
LAST_LINES = 20

#: Seconds that the pipes of a process that has ended may stay open, where others have them.
PIPES_CLOSE = 5.0


class NoProcessError(RuntimeError):
    """The system gives no process for a training."""


@dataclass(frozen=True)
class Place:
    """Where a training runs. gpu: what CUDA_VISIBLE_DEVICES is there; "" for a place on the CPU."""

    name: str
    threads: int
    gpu: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    seconds: that it took. out_of_time: whether its deadline ended it. failure: why there is no checkpoint, "" where
    there is one; trace: the traceback of that.
    """

    name: str
    place: Place
    seconds: float
    out_of_time: bool = False
    failure: str = ""
    trace: str = ""


def gpu_places(gpus: int) -> list[Place]:
    """A place on each GPU, with as many threads as there are cores for it."""
    threads = max(1, processors() // gpus)
    return [Place(f"GPU {number}", threads, visible_gpu(number)) for number in range(gpus)]


def cpu_places(count: int, cores: int) -> list[Place]:
    """So many places on the CPU, which share `cores` among them."""
    threads = max(1, cores // count)
    return [Place(on_cpu(threads), threads) for _ in range(count)]


def on_cpu(threads: int) -> str:
    """The name of a place on the CPU."""
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


@dataclass
class _Running:
    """A training's process. taken: the place that is free again behind it. last: of what it wrote to stderr."""

    name: str
    job: TrainingJob
    file: Path
    place: Place
    taken: Place
    process: subprocess.Popen
    begin: float
    readers: list[threading.Thread] = field(default_factory=list)
    last: deque = field(default_factory=lambda: deque(maxlen=LAST_LINES))


class SideBySide:
    """The trainings that run now, as a context: who leaves it ends those that still do.

    places: where trainings may run. free: those of them where none does.
    """

    def __init__(self, places: list[Place]):
        self.free, self.count = list(places), len(places)
        self._running: list[_Running] = []
        self._lines: queue.SimpleQueue[tuple[_Running, bool, str]] = queue.SimpleQueue()  # True: of stderr

    def __enter__(self) -> "SideBySide":
        return self

    def __exit__(self, *_: object) -> None:
        for running in self._running:
            self._end(running)
        self._running.clear()

    @property
    def names(self) -> list[str]:
        """The models that are trained now."""
        return [running.name for running in self._running]

    def start(self, name: str, job: TrainingJob, foreseen: float = 0.0, threads: int = 0) -> Place:
        """Start a model's training in the first free place, and return that.

        foreseen: seconds of a whole epoch there, until one has been measured. threads: that it takes instead of the
        place's, while no other training can begin. Raises NoProcessError where none can be started.
        """
        free = self.free[0]
        place = replace(free, name=on_cpu(threads), threads=threads) if threads else free
        file = write_job(job, {"threads": place.threads, "foreseen": foreseen})
        _outcome_file(file).unlink(missing_ok=True)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", CHILD, str(file)],
                stdin=subprocess.PIPE,  # is at its end when this process is gone, whatever ended it
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=self._environment(place),
                start_new_session=True,  # so that it is ended with the processes that it starts itself
            )
        except OSError as error:
            remove_job(file)
            raise NoProcessError(f"no process can be started to train {name} ({error})") from error
        running = _Running(name, job, file, place, free, process, time.monotonic())
        self._running.append(running)
        for stream in (process.stdout, process.stderr):
            thread = threading.Thread(target=self._read, args=(running, stream), daemon=True)
            thread.start()
            running.readers.append(thread)
        self.free.remove(free)
        return place

    def wait(self) -> list[Outcome]:
        """Print what the trainings say until one of them has ended; how those that have did so."""
        while self._running:
            self._print(LOOK_EVERY)
            if ended := [running for running in self._running if _has_ended(running.process)]:
                return [self._outcome(running) for running in ended]
        return []

    def _environment(self, place: Place) -> dict[str, str]:
        """The environment of a training's process."""
        settings = {"PYTHONPATH": inherited_path(), "PYTHONUNBUFFERED": "1", SHARED_BY: str(self.count)}
        settings["OMP_NUM_THREADS"] = str(place.threads)
        if place.gpu:
            settings["CUDA_VISIBLE_DEVICES"] = place.gpu
        return os.environ | settings

    def _read(self, running: _Running, stream: TextIO) -> None:
        """Hand on the lines of a pipe: this process's main thread prints, since a notebook shows what that prints."""
        with suppress(ValueError):  # closed meanwhile
            for line in stream:
                self._lines.put((running, stream is running.process.stderr, line.rstrip()))

    def _print(self, seconds: float) -> None:
        """Print the lines that come within so many seconds, or are there already."""
        until = time.monotonic() + seconds
        while True:
            try:
                running, is_error, line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            if is_error:
                running.last.append(line)
            if line:
                text = named(line, running.name, running.job.stage)
                print(text, file=sys.stderr if is_error else sys.stdout, flush=True)

    def _outcome(self, running: _Running) -> Outcome:
        """How a process that has ended did so; its place is free again."""
        self._running.remove(running)
        file = _outcome_file(running.file)
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            facts = {"seconds": round(time.monotonic() - running.begin, 2)}
        self._end(running)
        code = running.process.returncode
        if code and not facts.get("failure"):
            facts["failure"] = _why(code, list(running.last))
        self.free.append(running.taken)
        return Outcome(running.name, running.place, **facts)

    def _end(self, running: _Running) -> None:
        """End a training's process with those that it started, print its last lines and remove its job's files."""
        with suppress(OSError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
        for reader in running.readers:
            reader.join(PIPES_CLOSE)
        self._print(0.0)
        running.process.stdin.close()
        remove_job(running.file)
        _outcome_file(running.file).unlink(missing_ok=True)


def named(line: str, name: str, stage: str) -> str:
    """A line that a training printed, with the model's name: "rcnn.1 3/9  loss .412" for "rcnn 3/9  loss .412"."""
    first, rest = line[: len(stage)], line[len(stage) :]
    return f"{name}{rest}" if first == stage and rest[:1] == " " else f"{name}: {line}"


def _has_ended(process: subprocess.Popen) -> bool:
    """Whether a process has ended; its number stays taken until somebody waits for it."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _outcome_file(job: Path) -> Path:
    return job.with_name(job.name.replace(".job.json", ".outcome.json"))


def _why(code: int, last: list[str]) -> str:
    """Why a process ended that did not say so itself."""
    if code == -signal.SIGKILL:
        return "a process was killed without a word, as the system does when it is out of memory"
    if code < 0:
        return f"a process was ended by {signal.Signals(-code).name}"
    return next((line for line in reversed(last) if line.strip()), f"a process ended with exit code {code}")
