"""What a contender is asked to do, and what came of it, as files.

job.json          the fields of PeerJob
predictions.csv   a table of predictor.py: detections, or study probabilities
outcome.json      the fields of Outcome
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core.files import write_csv, write_json
from siimcovid.data.competition import read_index

FOLDERS = ("out", "cache", "train", "test", "start")


@dataclass(frozen=True)
class PeerJob:
    """One training of one contender, and its predictions for the test images.

    Attributes:
        name: a key of CONTENDERS.
        out: its folder.
        cache: the folder of prepared images.
        train, test: indexes; the second has no boxes and study labels.
        start: folder of the weights to start from, None for random ones.
        seconds: of training.
        threads: of torch.
        seed: of everything that is drawn.
        settings: changes of our preset `small`, by dotted keys.
    """

    name: str
    out: Path
    cache: Path
    train: Path
    test: Path
    start: Path | None
    seconds: float
    threads: int
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def images(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The rows to train on and those to predict."""
        return read_index(self.train), read_index(self.test)


@dataclass(frozen=True)
class Outcome:
    """How a contender went.

    Attributes:
        start: name of the file that it started from, "" for random weights.
        train_seconds: by the clock. trained_images: images that its steps saw. steps: of training.
        infer_seconds: by the clock, of predicting all test images, decoding included.
    """

    start: str
    train_seconds: float
    trained_images: int
    steps: int
    infer_seconds: float


def write_job(job: PeerJob) -> Path:
    """Write a job into its folder; returns the file."""
    values = {**asdict(job), **{name: getattr(job, name) and str(getattr(job, name)) for name in FOLDERS}}
    write_json(job.out / "job.json", values)
    return job.out / "job.json"


def read_job(path: Path) -> PeerJob:
    """Read what `write_job` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return PeerJob(**{**values, **{name: values[name] and Path(values[name]) for name in FOLDERS}})


def write_outcome(job: PeerJob, table: pd.DataFrame, outcome: Outcome) -> None:
    """Write what a contender predicted, and how it went."""
    write_csv(table, job.out / "predictions.csv")
    write_json(job.out / "outcome.json", asdict(outcome))


def read_outcome(out: Path) -> tuple[pd.DataFrame, Outcome]:
    """Read what `write_outcome` wrote. Raises FileNotFoundError where the contender did not get so far."""
    outcome = Outcome(**json.loads((out / "outcome.json").read_text(encoding="utf-8")))
    texts = {"image_id": str, "study_id": str, "model": str}
    return pd.read_csv(out / "predictions.csv", dtype=texts, keep_default_na=False), outcome
