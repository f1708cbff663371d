"""A run's folder, read: what the kernel wrote to it, as far as it came.

In: the folder that holds run.json. Out: a RunFolder, in which whatever was not written yet is None or empty.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pandas as pd

from siimcovid.core.configuration import Detector
from siimcovid.core.errors import InputError
from siimcovid.data.competition import read_index
from siimcovid.evaluation.ground_truth import GroundTruth, find_ground_truth, read_ground_truth
from siimcovid.evaluation.report_tables import THRESHOLD, Evaluation, evaluate
from siimcovid.evaluation.submission_csv import read_table

ENSEMBLE = "ensemble"
#: The order in which models are shown; others follow by name, and the ensemble comes last.
FIRST: tuple[str, ...] = get_args(Detector)


@dataclass(frozen=True)
class RunFolder:
    """A run, finished or not."""

    folder: Path
    facts: dict  # run.json
    index: pd.DataFrame | None
    detections: pd.DataFrame | None
    study_probs: pd.DataFrame | None
    submissions: dict[str, Path]  # model -> its submission
    ground_truth: GroundTruth | None

    @property
    def cache(self) -> Path:
        """The prepared images."""
        return self.folder / "cache"

    @property
    def finished(self) -> bool:
        """Whether submission.csv is the models' own; until then it holds the train set's frequencies."""
        return "submit" in (self.facts.get("seconds") or {}) or len(self.submissions) > 1


def read_run(folder: Path | str, ground_truth: Path | str | None = None) -> RunFolder:
    """Read a run's folder; `ground_truth` is its folder where it does not lie beside the competition.

    Raises InputError where there is no run.json, or a file is not what it should be.
    """
    folder = Path(folder).expanduser().absolute()
    path = folder / "run.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no run.json: give the folder that a run wrote to") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): repeat the run's last step") from None
    if not isinstance(facts, dict):
        raise InputError(f"{path} is damaged (no record of a run): repeat the run's last step")
    index = read_index(folder / "index.csv") if (folder / "index.csv").is_file() else None
    found = ground_truth or _beside(facts, index)
    submissions = {file.stem: file for file in sorted((folder / "submissions").glob("*.csv"))}
    order = [name for name in FIRST if name in submissions]
    submissions = {name: submissions[name] for name in (*order, *(n for n in submissions if n not in order))}
    if (folder / "submission.csv").is_file():
        submissions[ENSEMBLE] = folder / "submission.csv"
    return RunFolder(
        folder,
        facts,
        index,
        _table(folder / "detections.csv"),
        _table(folder / "study_probabilities.csv"),
        submissions,
        read_ground_truth(found) if found else None,
    )


def _beside(facts: dict, index: pd.DataFrame | None) -> Path | None:
    """The folder of ground truth beside the competition folder, which run.json names or the images' paths show."""
    if folder := facts.get("competition"):
        return find_ground_truth(folder)
    images = [] if index is None else [path for path in index["path"] if path]
    return find_ground_truth(Path(images[0]).parents[3]) if images and len(Path(images[0]).parents) > 3 else None


def _table(path: Path) -> pd.DataFrame | None:
    try:
        return pd.read_csv(path, dtype={"image_id": str, "study_id": str}) if path.is_file() else None
    except ValueError as error:
        raise InputError(f"{path} is no table ({error}): repeat the run's last steps") from None


def evaluate_run(run: RunFolder, threshold: float = THRESHOLD) -> list[Evaluation]:
    """An Evaluation of each model's submission, the ensemble last; none without ground truth or before the run has
    finished.

    Raises InputError where a submission and the ground truth do not fit.
    """
    if run.ground_truth is None or not run.finished:
        return []
    return [
        evaluate(
            name,
            read_table(path, ("id", "PredictionString")),
            run.ground_truth.images,
            run.ground_truth.studies,
            threshold,
        )
        for name, path in run.submissions.items()
    ]
