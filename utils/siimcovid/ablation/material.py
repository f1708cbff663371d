"""The films that an ablation is made on.

In: a competition folder with its answers beside it. Out: its films prepared, and an index in which the test films have
their true boxes and levels too.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from siimcovid import LEVELS, competition, duplicates, stages
from siimcovid.answers import find_answers, read_answers
from siimcovid.configs import Preset
from siimcovid.errors import InputError

#: Size of the synthetic films as a share of the real ones', as `siimcovid phantom` writes them.
SCALE = 0.25


@dataclass(frozen=True)
class Material:
    """One competition."""

    name: str
    folder: Path  # for all that is made of it
    train: pd.DataFrame  # index rows with a level
    test: pd.DataFrame  # the same with the true boxes and levels
    cache: Path
    start: Path | None  # the weights that every model starts from
    copies: list[list[str]]  # train films that are there more than once (duplicates.py)


def read(data: Path, folder: Path, start: Path | None, preset: Preset) -> Material:
    """Read a competition and prepare its films. Raises InputError where the answers to its test part are not there."""
    answers = find_answers(data)
    if answers is None:
        raise InputError(f"{data}.truth holds no answers to the test part: an item's gain cannot be told without")
    images = competition.load(data).images
    failures = stages.prepare(images, folder / "cache", preset.cache_size)
    images = images[~images["image_id"].isin(failures["image_id"])]
    train = images[(images["split"] == "train") & images["level"].isin(LEVELS)]
    test = images[(images["split"] == "test") & images["in_sample"]].reset_index(drop=True)
    truth = read_answers(answers)
    boxes = truth.boxes(dict(zip(test["image_id"], test[["rows", "columns"]].itertuples(index=False), strict=True)))
    test = test.assign(boxes=test["image_id"].map(boxes), level=test["study_id"].map(truth.levels()))
    if test["level"].isna().any() or test["boxes"].isna().any():
        raise InputError(f"{answers} does not answer {test['image_id'][test['level'].isna()].iloc[0]}")
    copies = duplicates.find(train, folder / "cache") if preset.duplicates else []
    return Material(data.name, folder, train, test, folder / "cache", start, copies)


def phantom(seed: int, folder: Path, train_studies: int, test_studies: int) -> Path:
    """A synthetic competition in `folder`; what lies there is kept."""
    from siimcovid.phantom_competition import write_competition

    write_competition(folder, train_studies=train_studies, test_studies=test_studies, seed=seed, scale=SCALE)
    return folder
