"""The arguments of one training as files, for a process that does it in another's place.

In: the arguments of train_stage.fit. Out: `<stage>.job.json` and `<stage>.images.csv` in the folder that the training
writes to; the process that wrote them removes them when the training has ended.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core.configuration import Preset
from siimcovid.core.files import make_folder, write_json
from siimcovid.core.overrides import from_dict, to_dict
from siimcovid.data.competition import read_index, write_index

#: The arguments that are folders.
FOLDERS = ("folder", "start", "out", "resume_from")


@dataclass(frozen=True)
class TrainingJob:
    """The arguments of train_stage.fit that another process can be given, and when its time is over."""

    stage: str
    preset: Preset
    images: pd.DataFrame
    folder: Path
    start: Path | None
    out: Path
    pause: bool = False
    resume_from: Path | None = None
    deadline: float = float("inf")  # by time.time: no epoch begins that would end after it

    @property
    def checkpoint(self) -> Path:
        """What the training leaves."""
        return self.out / f"{self.stage}.safetensors"

    def options(self) -> dict[str, Any]:
        """The arguments of train_stage.fit that have names, without may_start_epoch."""
        return {"pause": self.pause, "resume_from": self.resume_from}

    def arguments(self) -> tuple[str, Preset, pd.DataFrame, Path, Path | None, Path]:
        """The first arguments of train_stage.fit."""
        return self.stage, self.preset, self.images, self.folder, self.start, self.out


@contextmanager
def as_files(job: TrainingJob, **facts: Any) -> Iterator[Path]:
    """The file of a job, for as long as the body runs. facts: further values, fit for JSON."""
    path = write_job(job, facts)
    try:
        yield path
    finally:
        remove_job(path)


def write_job(job: TrainingJob, facts: Mapping[str, Any] | None = None) -> Path:
    """Write a job's two files and return the path of the first. facts: further values for it, fit for JSON."""
    path, images = job.out / f"{job.stage}.job.json", job.out / f"{job.stage}.images.csv"
    make_folder(job.out)
    write_index(job.images, images)
    places = {name: getattr(job, name) for name in FOLDERS}
    values = {name: None if place is None else str(Path(place).absolute()) for name, place in places.items()}
    values |= {"images_csv": str(images.absolute()), "stage": job.stage, "preset": to_dict(job.preset)}
    values |= {"pause": job.pause, "deadline": None if job.deadline == float("inf") else job.deadline}
    write_json(path, values | dict(facts or {}))
    return path


def read_job(path: Path) -> tuple[TrainingJob, dict[str, Any]]:
    """The job of a file that `write_job` wrote, and all the values in the file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    folders = {name: None if values[name] is None else Path(values[name]) for name in FOLDERS}
    deadline = float("inf") if values["deadline"] is None else values["deadline"]
    preset, images = from_dict(Preset, values["preset"]), read_index(values["images_csv"])
    return TrainingJob(values["stage"], preset, images, pause=values["pause"], deadline=deadline, **folders), values


def remove_job(path: Path) -> None:
    """Remove the files of a job."""
    stage = path.name.removesuffix(".job.json")
    for name in (path.name, f"{stage}.images.csv"):
        path.with_name(name).unlink(missing_ok=True)
