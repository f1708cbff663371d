"""Work on many files in processes that may crash or hang, without the run crashing or hanging with them.

In: a function and its jobs. Out: each job with its result as soon as it is done; a job that killed its process, or
outlasted its time, comes with `Lost` instead.

`concurrent.futures` gives up all outstanding jobs when one process dies, and cannot stop one that hangs. The image
decoders are C and C++ and can do either on a damaged file. pebble stops a job that takes too long and replaces a
process that died. Every process is a pebble pool of its own that has one job at a time, so it is always known which
file was to blame. The processes come from a fork server: safe where this process has threads (torch, a notebook, a web
server), and imports happen once for all of them. Should this process be killed, their pipes close and they end by
themselves.
"""

import fcntl
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

#: Environment variable of a process that trains a model beside others: how many of them the machine's memory and cores
#: are for.
SHARED_BY = "SIIMCOVID_SHARED_BY"

#: So many processes may die in a row before they are ready for work; then it is not the jobs' fault.
FALSE_STARTS = 3


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a job that has none; `reason` fits after the job's name."""

    reason: str


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def sharing_processes() -> int:
    """Number of processes that this machine's memory and cores are for: of a launch by torchrun, or of models trained
    side by side; else 1."""
    return int(os.environ.get(SHARED_BY) or os.environ.get("LOCAL_WORLD_SIZE") or 1)


def inherited_path() -> str:
    """PYTHONPATH with which a child process imports what this one can: a kernel puts its wheels on sys.path only."""
    package = str(Path(__file__).parents[2])
    return os.pathsep.join(dict.fromkeys(path for path in (*sys.path, package) if path))


def run_apart(function: Callable[[Any], Any], jobs: Iterable[Any], workers: int, limit: float) -> Iterator[tuple]:
    """Yield (job, function(job)) for every job, in the order in which they are done.

    function: found by its name in its module, which the processes import. Whatever it raises ends the run as a
    RuntimeError with its traceback. What it or its libraries write to stderr is dropped.
    workers: number of processes at most; fewer where the system does not give as many. A job whose process dies gets a
    second process (the first may have been a victim of scarce memory); then it is Lost. So is, at once, a job that
    takes more than `limit` seconds.
    """
    waiting = deque((job, False) for job in jobs)  # with: whether a process died on it before
    context = _context(function.__module__)
    idle: list[ProcessPool] = []
    running: dict[Future, tuple[ProcessPool, Any, bool]] = {}
    false_starts = 0
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                used = bool(idle)
                pool = idle.pop() if used else ProcessPool(1, initializer=_silence, context=context)
                job, died_before = waiting.popleft()
                try:
                    running[pool.schedule(_call, (function, job), timeout=limit)] = pool, job, died_before
                except (OSError, RuntimeError) as error:
                    _stop([pool])
                    waiting.appendleft((job, died_before))
                    if used:  # its process died while it had nothing to do
                        continue
                    if not running:
                        raise RuntimeError(f"no worker process can be started ({error})") from error
                    workers = len(running)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                pool, job, died_before = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):  # its process died, but not at work
                    _stop([pool])
                    waiting.appendleft((job, died_before))
                    false_starts += 1
                    if false_starts > FALSE_STARTS:
                        raise RuntimeError(
                            "worker processes end before they begin: if a script started this, its work must stand "
                            "under `if __name__ == '__main__':`; else look at the free memory"
                        )
                    continue
                idle.append(pool)
                false_starts = 0
                if isinstance(error, ProcessExpired) and not died_before:
                    waiting.append((job, True))
                elif error is not None:
                    yield job, Lost(_reason(error, limit))
                else:
                    result, seconds = _checked(future.result())
                    yield job, result if seconds <= limit else Lost(_reason(FutureTimeout(), limit))
    finally:
        _stop([*idle, *(pool for pool, *_ in running.values())])


def _reason(error: BaseException, limit: float) -> str:
    """Why a job has no result."""
    if isinstance(error, FutureTimeout):
        return f"took longer than {limit:g} seconds"
    if isinstance(error, ProcessExpired):
        code = error.exitcode
        return f"crashes its decoder ({signal.Signals(-code).name if code and code < 0 else f'exit code {code}'})"
    raise RuntimeError("a worker process's result cannot be sent") from error


def _checked(answer: tuple[bool, Any, float]) -> tuple[Any, float]:
    """The result that a process sent, and how long it took. Raises RuntimeError with the traceback of what failed."""
    fine, result, seconds = answer
    if not fine:
        raise RuntimeError(f"a worker process failed:\n{result}")
    return result, seconds


def _stop(pools: list[ProcessPool]) -> None:
    """End pools and their processes, at work or not."""
    for pool in pools:
        pool.stop()
    for pool in pools:
        pool.join()


def _call(function: Callable[[Any], Any], job: Any) -> tuple[bool, Any, float]:
    """Do one job, in a worker process: (True, result, seconds), or (False, traceback, seconds).

    Not every exception can be pickled; and pebble checks the time only every tenth of a second.
    """
    start = time.monotonic()
    try:
        return True, function(job), time.monotonic() - start
    except Exception:
        return False, traceback.format_exc(), time.monotonic() - start


def _silence() -> None:
    """Begin a worker process: drop what it writes to stderr."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _context(module: str) -> BaseContext:
    """How processes are started: by a fork server that has imported `module`, anew where there can be none.

    A fork server listens on a socket in TMPDIR, whose path may have 107 bytes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    try:
        forkserver.ensure_running()
    except OSError:
        context = multiprocessing.get_context("spawn")
    try:
        context.RLock()
    except OSError:  # semaphores live in /dev/shm
        return _WithoutSemaphores(context)
    return context


class _WithoutSemaphores:
    """A multiprocessing context with locks on files, for pebble where the system has no semaphores."""

    def __init__(self, context: BaseContext):
        self.Process, self.Pipe, self.get_start_method = context.Process, context.Pipe, context.get_start_method

    def RLock(self) -> "_FileLock":
        handle, path = tempfile.mkstemp(prefix="siimcovid-lock-")
        os.close(handle)
        lock = _FileLock(path)
        weakref.finalize(lock, _remove, path)
        return lock


class _FileLock:
    """A lock between processes that one of them can hold more than once; it is let go when that process ends."""

    def __init__(self, path: str):
        self.path, self.handle, self.depth = path, -1, 0

    def __reduce__(self) -> tuple:
        return _FileLock, (self.path,)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take it; False where it is taken and `block` is false, or `timeout` seconds are over."""
        if self.depth == 0:
            handle = os.open(self.path, os.O_RDWR)
            until = time.monotonic() + (math.inf if timeout is None else timeout)
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not block or time.monotonic() > until:
                        os.close(handle)
                        return False
                    time.sleep(0.001)
            self.handle = handle
        self.depth += 1
        return True

    def release(self) -> None:
        self.depth -= 1
        if self.depth == 0:
            os.close(self.handle)


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
