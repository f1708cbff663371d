"""Jobs that crash, hang or fail do so alone."""

import gc
import multiprocessing.synchronize
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from siimcovid.core.processes import Lost, _FileLock, processors, run_apart


def work(job):
    """What the processes do: a number is doubled; a word says what happens to the process instead."""
    if job == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "hang":
        time.sleep(60)
    if job == "raise":
        raise KeyError("a bug")
    if isinstance(job, Path):  # crashes the first time only
        if not job.exists():
            job.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "second try"
    return job * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_has_its_result(workers):
    assert dict(run_apart(work, range(40), workers, 60)) == {k: 2 * k for k in range(40)}
    assert list(run_apart(work, [], workers, 60)) == []


def test_jobs_that_crash_or_hang_are_lost_alone(tmp_path):
    jobs = [1, "crash", 2, tmp_path / "victim", 3, "hang", 4, 5]
    results = dict(run_apart(work, jobs, 2, 1.5))
    assert results.pop("crash") == Lost("crashes its decoder (SIGKILL)")
    assert results.pop("hang") == Lost("took longer than 1.5 seconds")
    assert results.pop(tmp_path / "victim") == "second try"
    assert results == {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}


def test_a_limit_may_be_short():
    assert list(run_apart(time.sleep, [0.03], 1, 0.02)) == [(0.03, Lost("took longer than 0.02 seconds"))]


def test_a_bug_is_raised_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)line \d+, in work.*KeyError: 'a bug'"):
        list(run_apart(work, [1, "raise", 2], 2, 60))


def test_processes_end_with_the_run():
    run = run_apart(own_pid, range(10), 2, 60)
    _, pid = next(run)
    run.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_dies_idle_is_replaced():
    run = run_apart(own_pid, range(3), 1, 60)
    _, pid = next(run)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    assert [job for job, result in run if result != pid] == [1, 2]


def own_pid(job):
    return os.getpid()


def test_a_script_without_a_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from siimcovid.core.processes import run_apart\nprint(list(run_apart(abs, [-1], 1, 9)))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "`if __name__ == '__main__':`" in done.stderr


SCRIPT = """
import os, sys, time
from siimcovid.core.processes import run_apart
from test_processes import slow_pid, work
if __name__ == "__main__":
    {}
"""


def script(tmp_path: Path, line: str) -> tuple[list[str], dict]:
    """A script in a process of its own that does `line`; what subprocess takes for it."""
    (tmp_path / "script.py").write_text(SCRIPT.format(line))
    paths = os.pathsep.join([str(Path(__file__).parent), *map(str, sys.path)])
    options = {"text": True, "env": os.environ | {"PYTHONPATH": paths}, "stdout": subprocess.PIPE}
    return [sys.executable, str(tmp_path / "script.py")], options


def slow_pid(job):
    print(os.getpid(), flush=True)
    time.sleep(job)


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_a_script_that_is_stopped(tmp_path, stop):
    """A killed one cannot end them; they find their pipes closed once their job is done."""
    command, options = script(tmp_path, "list(run_apart(slow_pid, [2, 2], 2, 60))")
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)
    pids = [int(run.stdout.readline()) for _ in range(2)]
    run.send_signal(stop)
    assert run.wait(20) == -stop
    assert all(gone(pid) for pid in pids)


CRASHES = "print(sorted(run_apart(work, [1, 2, 'crash', 3], 2, 60), key=str))"
CRASHED = "[('crash', Lost(reason='crashes its decoder (SIGKILL)')), (1, 2), (2, 4), (3, 6)]\n"


@pytest.mark.parametrize(
    ("before", "environment"),
    [
        ("", {"TMPDIR": "long"}),
        ("", {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
        ("ulimit -n 64; ", {}),
        ("ulimit -n 30; ", {"WORKERS": "16"}),
    ],
)
def test_poor_environments(tmp_path, before, environment):
    """A TMPDIR longer than a socket's name may be, an ASCII locale, few open files."""
    if environment.get("TMPDIR"):
        environment = {"TMPDIR": str(tmp_path / ("x" * 100))}
        Path(environment["TMPDIR"]).mkdir()
    line = CRASHES.replace(", 2, 60)", f", {environment.get('WORKERS', 2)}, 60)")
    command, options = script(tmp_path, line)
    options["env"] = options["env"] | environment
    done = subprocess.run(["bash", "-c", before + shlex.join(command)], stderr=subprocess.PIPE, timeout=240, **options)
    assert (done.returncode, done.stdout) == (0, CRASHED), done.stderr


def test_without_semaphores(monkeypatch, tmp_path):
    """Where there is no /dev/shm, pebble's locks are files, and are gone afterwards."""

    def none(*arguments, **options):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(multiprocessing.synchronize, "_semaphore_type", none, raising=False)
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", none)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    jobs = [1, "crash", 2, "hang", *range(3, 30)]
    results = dict(run_apart(work, jobs, 2, 1.5))
    assert results.pop("crash") == Lost("crashes its decoder (SIGKILL)")
    assert results.pop("hang") == Lost("took longer than 1.5 seconds")
    assert results == {k: 2 * k for k in range(1, 30)}
    gc.collect()
    assert not list(tmp_path.glob("siimcovid-lock-*"))


def test_a_file_lock(tmp_path):
    (tmp_path / "lock").touch()
    mine, other = _FileLock(str(tmp_path / "lock")), _FileLock(str(tmp_path / "lock"))
    assert mine.acquire()
    assert mine.acquire(block=False)
    mine.release()
    assert not other.acquire(block=False)
    assert not other.acquire(timeout=0.01)
    mine.release()
    assert other.acquire(block=False)


def test_what_cannot_be_sent_is_an_error():
    with pytest.raises(RuntimeError, match=r"(?s)worker process's result cannot be sent"):
        list(run_apart(unsendable, [1], 1, 60))


def unsendable(job):
    return threading.Lock()


def test_errors_of_any_kind_are_raised(tmp_path):
    """Those that pebble itself uses, and those that cannot be pickled, too."""
    for job in (TimeoutError, OSError, Unpicklable):
        with pytest.raises(RuntimeError, match=r"(?s)line \d+, in raise_\n.*raise kind\(1, 2\)"):
            list(run_apart(raise_, [job], 1, 60))


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__("both")


def raise_(kind):
    raise kind(1, 2)


def test_processors():
    assert 1 <= processors() <= os.cpu_count()
