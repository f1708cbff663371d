"""A stage's training for a notebook, in a process for each GPU.

`torchrun -m siimcovid train …` trains in as many processes as it is told, on one machine or more. A notebook is a
single process, so `fit` starts torchrun for it where the machine has several GPUs, as Kaggle's with two T4s, and trains
in place elsewhere.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from siimcovid.core.configuration import Preset
from siimcovid.core.device import gpu_count
from siimcovid.core.files import write_json
from siimcovid.core.overrides import from_dict, to_dict
from siimcovid.data.competition import read_index, write_index
from siimcovid.training import train_stage


def fit(
    stage: str,
    preset: Preset,
    images: pd.DataFrame,
    folder: Path,
    start: Path | None,
    out: Path,
    seconds: float = float("inf"),
    processes: int | None = None,
) -> Path:
    """stages.fit in `processes` processes, one per GPU by default; no epoch starts that would end after `seconds`.

    The stage's batch is shared among them, so that the global batch stays the preset's.

    Raises:
        RuntimeError: a process failed; what it printed stands above.
    """
    deadline = time.time() + seconds
    count = processes or max(1, gpu_count())
    if count == 1:
        return train_stage.fit(stage, preset, images, folder, start, out, lambda epoch: time.time() + epoch < deadline)
    config = getattr(preset, stage)
    share = replace(config.training, batch=max(1, config.training.batch // count))
    job, images_csv = out / f"{stage}.job.json", out / f"{stage}.images.csv"
    out.mkdir(parents=True, exist_ok=True)
    write_index(images, images_csv)
    facts = {"stage": stage, "preset": to_dict(replace(preset, **{stage: replace(config, training=share)}))}
    places = {"images_csv": images_csv, "folder": folder, "start": start, "out": out}
    facts |= {name: None if place is None else str(Path(place).absolute()) for name, place in places.items()}
    write_json(job, facts | {"deadline": None if seconds == float("inf") else deadline})
    package = Path(__file__).parents[2]  # in a kernel the package is on sys.path only
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    done = subprocess.run([*command, "-m", "siimcovid.training.multi_gpu", str(job)], env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"training stage {stage} in {count} processes failed with exit code {done.returncode}")
    job.unlink()
    images_csv.unlink()
    return out / f"{stage}.safetensors"


def run_job(path: Path) -> None:
    """One of the processes that `fit` started."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    deadline = float("inf") if facts["deadline"] is None else facts["deadline"]
    train_stage.fit(
        facts["stage"],
        from_dict(Preset, facts["preset"]),
        read_index(facts["images_csv"]),
        Path(facts["folder"]),
        None if facts["start"] is None else Path(facts["start"]),
        Path(facts["out"]),
        lambda epoch: time.time() + epoch < deadline,
    )


if __name__ == "__main__":
    run_job(Path(sys.argv[1]))
