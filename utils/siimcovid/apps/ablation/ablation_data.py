"""The images that an ablation is made on.

In: a competition folder with its answers beside it. Out: its images prepared, and an index in which the test images
have their true boxes and study labels too.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.data import competition, duplicates
from siimcovid.evaluation.ground_truth import find_ground_truth, read_ground_truth
from siimcovid.training import train_stage

#: Size of the synthetic images as a share of the real ones', as `siimcovid synthetic` writes them.
SCALE = 0.25


@dataclass(frozen=True)
class AblationData:
    """One competition."""

    name: str
    folder: Path  # for all that is made of it
    train: pd.DataFrame  # index rows with a study label
    test: pd.DataFrame  # the same with the true boxes and study labels
    cache: Path
    start: Path | None  # the weights that every model starts from
    copies: list[list[str]]  # train images that are there more than once (duplicates.py)


def read(data: Path, folder: Path, start: Path | None, preset: Preset) -> AblationData:
    """Read a competition and prepare its images. Raises InputError where the answers to its test part are not there."""
    answers = find_ground_truth(data)
    if answers is None:
        raise InputError(f"{data}.truth holds no ground truth of the test part: give a competition that has one")
    images = competition.load(data).images
    failures = train_stage.prepare(images, folder / "cache", preset.cache_size)
    images = images[~images["image_id"].isin(failures["image_id"])]
    train = images[(images["split"] == "train") & images["study_label"].isin(STUDY_LABELS)]
    test = images[(images["split"] == "test") & images["in_sample"]].reset_index(drop=True)
    truth = read_ground_truth(answers)
    boxes = truth.boxes(dict(zip(test["image_id"], test[["rows", "columns"]].itertuples(index=False), strict=True)))
    test = test.assign(boxes=test["image_id"].map(boxes), study_label=test["study_id"].map(truth.study_labels()))
    if test["study_label"].isna().any() or test["boxes"].isna().any():
        unanswered = test["image_id"][test["study_label"].isna() | test["boxes"].isna()].iloc[0]
        raise InputError(f"{answers} has no ground truth of image {unanswered}: complete it")
    copies = duplicates.find(train, folder / "cache") if preset.duplicates else []
    return AblationData(data.name, folder, train, test, folder / "cache", start, copies)


def write_synthetic(seed: int, folder: Path, train_studies: int, test_studies: int) -> Path:
    """A synthetic competition in `folder`; what lies there is kept."""
    from siimcovid.synthetic.demo_competition import write_competition

    write_competition(folder, train_studies=train_studies, test_studies=test_studies, seed=seed, scale=SCALE)
    return folder
