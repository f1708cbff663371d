"""The held-back ground truth of a competition's test part, which may lie beside its folder in `<folder>.truth/`.

In: test_image_level.csv and test_study_level.csv, columns as in the competition's own train CSVs, and synthetic.json
where the images are synthetic. Out: the tables that `mean_average_precision.compare` takes, and the true boxes as
fractions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_COLUMNS, STUDY_LABELS
from siimcovid.core.tables import find_table, numbers, read_csv
from siimcovid.data.competition import box_fractions, parse_boxes

IMAGES, STUDIES = "test_image_level.csv", "test_study_level.csv"


@dataclass(frozen=True)
class GroundTruth:
    """The truth of a test part."""

    folder: Path
    images: pd.DataFrame  # id, boxes (text as in the CSV, "" for none), label
    studies: pd.DataFrame  # id and STUDY_COLUMNS
    synthetic: bool  # the images were drawn, not taken

    def study_labels(self) -> dict[str, str]:
        """Study id -> the study label that is set."""
        marks = np.stack([numbers(self.studies, column, self.folder / STUDIES) for column in STUDY_COLUMNS], axis=1)
        names = self.studies["id"].str.removesuffix("_study")
        return {name: STUDY_LABELS[place] for name, place in zip(names, marks.argmax(axis=1), strict=True)}

    def boxes(self, sizes: Mapping[str, tuple[int, int]]) -> dict[str, list[list[float]]]:
        """Image id -> true boxes as xyxy fractions; sizes: image id -> (rows, columns), other images are left out."""
        found = {}
        for name, text in zip(self.images["id"].str.removesuffix("_image"), self.images["boxes"], strict=True):
            if name in sizes and all(sizes[name]):
                found[name], _ = box_fractions(parse_boxes(text, f"{self.folder / IMAGES}: {name}"), *sizes[name])
        return found


def find_ground_truth(competition: Path | str) -> Path | None:
    """The folder `<competition>.truth` where it holds answers, else None."""
    competition = Path(competition)
    folder = competition.with_name(competition.name + ".truth") if competition.name else competition
    return folder if find_table(folder, IMAGES) else None


def read_ground_truth(folder: Path | str) -> GroundTruth:
    """Read a folder of answers. Raises InputError where one of the two tables is missing or lacks a column."""
    folder = Path(folder)
    paths = [find_table(folder, name) for name in (IMAGES, STUDIES)]
    if None in paths:
        raise InputError(f"{folder} holds no answers: give the folder with {IMAGES} and {STUDIES}")
    images = read_csv(paths[0], ("id", "boxes", "label"))
    return GroundTruth(
        folder, images, read_csv(paths[1], ("id", *STUDY_COLUMNS)), (folder / "synthetic.json").is_file()
    )
