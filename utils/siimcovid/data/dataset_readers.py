"""The three data sets that stages are trained on, recognised by their files and read into one table.

In: a folder, the competition's, the RSNA Pneumonia Challenge's or NIH ChestX-ray14's, as their publishers lay them out.
Out: the train part of the index (competition.py); NIH's has a column of 0 and 1 for each of labels.NIH_FINDINGS beside
it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pandas as pd

from siimcovid.core import paths
from siimcovid.core.configuration import STAGES
from siimcovid.core.errors import InputError
from siimcovid.core.labels import NIH_FINDINGS
from siimcovid.core.tables import find_table
from siimcovid.data import competition, nih_chestxray14, rsna_pneumonia

Kind = Literal["competition", "rsna", "nih"]

#: The data sets that each stage can be trained on: detectors on all that have boxes.
TRAINING_SETS: dict[str, tuple[Kind, ...]] = dict.fromkeys(STAGES, ("competition", "rsna"))
TRAINING_SETS |= {"backbone": ("nih",), "study": ("competition",)}

NAMES = {
    "competition": "the competition's (sample_submission.csv, train_image_level.csv, train/)",
    "rsna": f"the RSNA Pneumonia Challenge's ({rsna_pneumonia.LABEL_FILE}, {rsna_pneumonia.IMAGE_FOLDER}/)",
    "nih": f"NIH ChestX-ray14's ({nih_chestxray14.ENTRIES[0]}, images/)",
}


#: Whether a folder is a data set's, by its files.
MARKED: dict[Kind, Callable[[Path], bool]] = {
    "rsna": lambda folder: find_table(folder, rsna_pneumonia.LABEL_FILE) is not None,
    "nih": lambda folder: any(find_table(folder, name) for name in nih_chestxray14.ENTRIES),
    "competition": paths.is_competition,
}


def kind_of(folder: Path | str, stage: str) -> Kind:
    """Which data set a folder holds. Raises InputError where it holds none that the stage can be trained on."""
    folder = Path(folder).expanduser()
    found: Kind | None = next((kind for kind, is_marked in MARKED.items() if is_marked(folder)), None)
    if found not in TRAINING_SETS[stage]:
        wanted = " or ".join(NAMES[kind] for kind in TRAINING_SETS[stage])
        what = f"is {NAMES[found]}" if found else "holds no data set" if folder.is_dir() else "is no folder"
        raise InputError(f"{folder} {what}; stage {stage} is trained on a folder like {wanted}")
    return found


def find(kind: Kind, root: Path) -> Path | None:
    """The folder of a data set below `root`, of several the first in alphabetical order; None where there is none."""
    found = paths.find_folders(root, MARKED[kind])
    return found[0] if found else None


def read(folder: Path | str, kind: Kind) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The images to train on and the problems met. Of the RSNA challenge only images with boxes count as annotated.

    The report trained on those alone (section 2.2, "we use the positive cases"); the others stay for validation.
    """
    if kind == "competition":
        found = competition.load(folder, splits=("train",))
        return found.images, found.problems
    if kind == "rsna":
        images, problems = rsna_pneumonia.load_rsna(folder)
        return images.assign(annotated=images["boxes"].map(len) > 0), problems
    table, problems = nih_chestxray14.load_nih(folder)
    rows = [
        dict.fromkeys(("study_id", "series_id"), record["image_id"])
        | {"image_id": record["image_id"], "patient_id": record["patient_id"], "path": record["path"], "split": "train"}
        | {"rows": 0, "columns": 0, "boxes": [], "study_label": None, "annotated": True}
        for record in table.to_dict("records")
    ]
    return competition.index_table(rows).merge(table[["image_id", *NIH_FINDINGS]], on="image_id"), problems
