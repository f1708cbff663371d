"""A stage's training for a notebook, in a process for each GPU.

`torchrun -m siimcovid train …` trains in as many processes as it is told, on one machine or more. A notebook is a
single process, so `fit` starts torchrun for it where the machine has several GPUs, as Kaggle's with two T4s, and trains
in place elsewhere.
"""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from siimcovid.core.configuration import Preset
from siimcovid.core.device import gpu_count, training_processes
from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.core.processes import inherited_path
from siimcovid.training import train_stage
from siimcovid.training.training_job import TrainingJob, as_files

#: The module that the processes run.
CHILD = "siimcovid.training.multi_gpu_child"

#: Parts of what a process says whose neighbour has ended, in small letters: gloo's and NCCL's.
OF_ANOTHER = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited", "nccl")


def fit(
    stage: str,
    preset: Preset,
    images: pd.DataFrame,
    folder: Path,
    start: Path | None,
    out: Path,
    seconds: float = float("inf"),
    processes: int | None = None,
    *,
    pause: bool = False,
    resume_from: Path | None = None,
) -> Path:
    """train_stage.fit in `processes` processes, one per GPU by default; no epoch starts that would end after `seconds`.

    The stage's batch is shared among them, see step_batches.py.

    Raises:
        RuntimeError: a process failed; the message has its last words. `memory_errors.is_out_of_memory` knows one that
            lacked memory, and takes one that was killed without a word for such.
    """
    job = TrainingJob(stage, preset, images, folder, start, out, pause, resume_from, time.time() + seconds)
    count = processes or training_processes()
    if count == 1:
        return train_stage.fit(*job.arguments(), ends_before(job.deadline), **job.options())
    with as_files(job) as path:
        gc.collect()
        if gpu_count():
            torch.cuda.empty_cache()  # the processes need what this one no longer uses
        run_processes(stage, path, count)
    return job.checkpoint


def ends_before(deadline: float) -> Callable[[float], bool]:
    """`may_start_epoch` for a deadline by time.time, of an epoch that takes as long as the last."""
    return lambda epoch_seconds: time.time() + epoch_seconds < deadline


def launcher(count: int) -> list[str]:
    """The command that starts torchrun with so many processes on this machine; what they run is to follow.

    Left to itself torchrun waits without an end on a machine whose own name no name server and no /etc/hosts knows.
    """
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    return [*agent, f"--nproc_per_node={count}"]


def run_processes(stage: str, job: Path, count: int) -> None:
    """Start torchrun on a job and wait for it. Raises RuntimeError where a process failed."""
    for left in job.parent.glob(f"failure.{stage}.*.txt"):
        left.unlink()
    environment = os.environ | {"PYTHONPATH": inherited_path()}
    command = [*launcher(count), "-m", CHILD, str(job)]
    awaited, held = os.pipe()  # is at its end when this process is gone, whatever ended it
    try:
        done = subprocess.run(command, env=environment, stdin=awaited, check=False)
    finally:
        os.close(awaited)
        os.close(held)
    if not done.returncode:
        return
    failures = sorted(job.parent.glob(f"failure.{stage}.*.txt"))
    words = [path.read_text(encoding="utf-8").strip() for path in failures]
    for path in failures:
        path.unlink()
    lacking = [text for text in words if is_out_of_memory(RuntimeError(text))]
    own = [text for text in words if not any(part in text.lower() for part in OF_ANOTHER)]
    reason = [*lacking, *own, "a process was killed without a word, as the system does when it is out of memory"][0]
    raise RuntimeError(f"training stage {stage} in {count} processes failed with exit code {done.returncode}: {reason}")
