"""A stage's training for a notebook, in a process for each GPU.

`torchrun -m siimcovid train …` trains in as many processes as it is told, on one machine or more. A notebook is a
single process, so `fit` starts torchrun for it where the machine has several GPUs, as Kaggle's with two T4s, and trains
in place elsewhere.
"""

import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from siimcovid.core.configuration import Preset
from siimcovid.core.device import gpu_count, training_processes
from siimcovid.core.files import make_folder, write_json, write_text
from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.core.overrides import from_dict, to_dict
from siimcovid.data.competition import read_index, write_index
from siimcovid.training import train_stage

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
    deadline = time.time() + seconds
    count = processes or training_processes()
    options: dict[str, Any] = {"pause": pause, "resume_from": resume_from}
    if count == 1:
        may_start_epoch = ends_before(deadline)
        return train_stage.fit(stage, preset, images, folder, start, out, may_start_epoch, **options)
    job, images_csv = out / f"{stage}.job.json", out / f"{stage}.images.csv"
    make_folder(out)
    write_index(images, images_csv)
    places = {"images_csv": images_csv, "folder": folder, "start": start, "out": out, "resume_from": resume_from}
    facts = {name: None if place is None else str(Path(place).absolute()) for name, place in places.items()}
    facts |= {"stage": stage, "preset": to_dict(preset), "pause": pause}
    write_json(job, facts | {"deadline": None if seconds == float("inf") else deadline})
    gc.collect()
    if gpu_count():
        torch.cuda.empty_cache()  # the processes need what this one no longer uses
    try:
        run_processes(stage, job, count)
    finally:
        job.unlink()
        images_csv.unlink()
    return out / f"{stage}.safetensors"


def ends_before(deadline: float) -> Callable[[float], bool]:
    """`may_start_epoch` for a deadline by time.time, of an epoch that takes as long as the last."""
    return lambda epoch_seconds: time.time() + epoch_seconds < deadline


def run_processes(stage: str, job: Path, count: int) -> None:
    """Start torchrun on a job and wait for it. Raises RuntimeError where a process failed."""
    for left in job.parent.glob(f"{stage}.failure.*.txt"):
        left.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    environment = os.environ | {"PYTHONPATH": inherited_path()}
    done = subprocess.run([*command, "-m", "siimcovid.training.multi_gpu", str(job)], env=environment, check=False)
    if not done.returncode:
        return
    failures = sorted(job.parent.glob(f"{stage}.failure.*.txt"))
    words = [path.read_text(encoding="utf-8").strip() for path in failures]
    for path in failures:
        path.unlink()
    lacking = [text for text in words if is_out_of_memory(RuntimeError(text))]
    own = [text for text in words if not any(part in text.lower() for part in OF_ANOTHER)]
    reason = [*lacking, *own, "a process was killed without a word, as the system does when it is out of memory"][0]
    raise RuntimeError(f"training stage {stage} in {count} processes failed with exit code {done.returncode}: {reason}")


def inherited_path() -> str:
    """PYTHONPATH with which a child process imports what this one can: a kernel puts its wheels on sys.path only."""
    package = str(Path(__file__).parents[2])
    return os.pathsep.join(dict.fromkeys(path for path in (*sys.path, package) if path))


def run_job(path: Path) -> None:
    """One of the processes that `fit` started; what ends it is written beside the job for the one that waits."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    deadline = float("inf") if facts["deadline"] is None else facts["deadline"]
    folder, start, out, resume_from = (
        None if facts[name] is None else Path(facts[name]) for name in ("folder", "start", "out", "resume_from")
    )
    try:
        train_stage.fit(
            facts["stage"],
            from_dict(Preset, facts["preset"]),
            read_index(facts["images_csv"]),
            folder,
            start,
            out,
            ends_before(deadline),
            pause=facts["pause"],
            resume_from=resume_from,
        )
    except BaseException as error:
        words = "".join(traceback.format_exception_only(error))
        write_text(out / f"{facts['stage']}.failure.{os.environ.get('RANK', '0')}.txt", words)
        raise


if __name__ == "__main__":
    run_job(Path(sys.argv[1]))
