"""Work on many files in processes that may crash or hang, without the run crashing or hanging with them.

In: a function and its jobs. Out: each job with its result as soon as it is done; a job that killed its process, or
outlasted its time, comes with `Lost` instead.

`concurrent.futures` gives up all outstanding jobs when one process dies, and cannot stop one that hangs. The image
decoders are C and C++ and can do either on a damaged file. So here every process has a pipe of its own and one job at
a time, and it is always known which file was to blame. The processes come from a fork server: safe where this process
has threads (torch, a notebook, a web server), and imports happen once for all of them. Should this process be killed,
their pipes close and they end by themselves.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the worker processes import this module, and need no torch
    from accelerate import PartialState

#: So many processes may die in a row before they are ready for work; then it is not the jobs' fault.
FALSE_STARTS = 3


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a job that has none; `reason` fits after the job's name."""

    reason: str


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    task: tuple[Any, bool] | None = None  # the job it works on, and whether another process died on that before
    deadline: float = float("inf")


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def launched_as() -> "PartialState":
    """Which process of how many this is, in a launch by torchrun or `accelerate launch`; else the only one.

    accelerate counts processes on CPUs only where it is told to use the CPU, and settles that at the first question.
    """
    from accelerate import PartialState

    from siimcovid.core.device import gpu_count

    return PartialState(cpu=not gpu_count())


def run_apart(function: Callable[[Any], Any], jobs: Iterable[Any], workers: int, limit: float) -> Iterator[tuple]:
    """Yield (job, function(job)) for every job, in the order in which they are done.

    function: found by its name in its module, which the processes import. Whatever it raises ends the run as a
    RuntimeError with its traceback. What it or its libraries write to stderr is dropped.
    workers: number of processes. A job whose process dies gets a second process (the first may have been a victim of
    scarce memory); then it is Lost. So is, at once, a job that takes more than `limit` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    waiting = deque((job, False) for job in jobs)
    crew: list[_Worker] = []
    false_starts = 0
    try:
        while waiting or any(worker.task for worker in crew):
            while len(crew) < min(workers, len(waiting) + sum(worker.task is not None for worker in crew)):
                crew.append(_hire(context, function))
            for worker in crew:
                if worker.ready and worker.task is None and waiting:
                    _assign(worker, waiting.popleft(), limit)
            patience = min(worker.deadline for worker in crew) - time.monotonic()
            told = set(wait([worker.pipe for worker in crew], None if patience == float("inf") else max(patience, 0)))
            for worker in [worker for worker in crew if worker.pipe in told or worker.deadline < time.monotonic()]:
                task = worker.task
                if worker.pipe not in told:
                    _dismiss(worker, crew)
                    yield task[0], Lost(f"took longer than {limit:g} seconds")
                    continue
                try:
                    fine, result = worker.pipe.recv()
                except (EOFError, OSError):
                    cause = _dismiss(worker, crew)
                    false_starts += not worker.ready
                    if false_starts > FALSE_STARTS:
                        raise RuntimeError(
                            f"worker processes end before they begin ({cause}): if a script started this, its work "
                            "must stand under `if __name__ == '__main__':`; else look at the free memory"
                        ) from None
                    if task and not task[1]:
                        waiting.append((task[0], True))
                    elif task:
                        yield task[0], Lost(f"crashes its decoder ({cause})")
                    continue
                if not fine:
                    raise RuntimeError(f"a worker process failed:\n{result}")
                worker.ready, worker.task, worker.deadline, false_starts = True, None, float("inf"), 0
                if task:
                    yield task[0], result
    finally:
        for worker in list(crew):
            _dismiss(worker, crew)


def _hire(context: multiprocessing.context.BaseContext, function: Callable) -> _Worker:
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(function, there), daemon=True)
    process.start()
    there.close()  # the process has the only one left: when it dies, the pipe closes
    return _Worker(process, here)


def _assign(worker: _Worker, task: tuple[Any, bool], limit: float) -> None:
    worker.task, worker.deadline = task, time.monotonic() + limit
    with suppress(OSError):  # it died idle: `wait` will say so
        worker.pipe.send(task[0])


def _dismiss(worker: _Worker, crew: list[_Worker]) -> str:
    """End a process; returns how it ended, where it did so by itself."""
    crew.remove(worker)
    worker.pipe.close()
    if worker.task or not worker.ready:
        worker.process.join(0.2)  # it may just have died: then that is the cause to report
        worker.process.kill()
    worker.process.join()
    code = worker.process.exitcode
    return signal.Signals(-code).name if code and code < 0 else f"exit code {code}"


def _serve(function: Callable, pipe: Connection) -> None:
    """A process's life: announce itself, then answer job after job until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the starting process's to handle
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with suppress(EOFError, OSError):
        pipe.send((True, None))
        while True:
            job = pipe.recv()
            try:
                answer = True, function(job)
            except Exception:
                answer = False, traceback.format_exc()
            pipe.send(answer)
