"""Jobs that crash, hang or fail do so alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siimcovid.core.processes import Lost, processors, run_apart, training_processes


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


def test_a_bug_is_raised_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)line \d+, in work.*KeyError: 'a bug'"):
        list(run_apart(work, [1, "raise", 2], 2, 60))


def test_processes_end_with_the_run():
    run = run_apart(own_pid, range(10), 2, 60)
    _, pid = next(run)
    run.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def own_pid(job):
    return os.getpid()


def test_a_script_without_a_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from siimcovid.core.processes import run_apart\nprint(list(run_apart(abs, [-1], 1, 9)))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "`if __name__ == '__main__':`" in done.stderr


def test_processors():
    assert 1 <= processors() <= os.cpu_count()


@pytest.mark.parametrize(("wanted", "gpus", "count"), [(None, 0, 1), (None, 2, 2), ("", 2, 2), ("2", 0, 2)])
def test_a_process_for_each_gpu_or_as_many_as_are_asked_for(monkeypatch, wanted, gpus, count):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("SIIMCOVID_PROCESSES", raising=False)
    if wanted is not None:
        monkeypatch.setenv("SIIMCOVID_PROCESSES", wanted)
    assert training_processes() == count
