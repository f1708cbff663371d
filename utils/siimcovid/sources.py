"""The three data sets that stages are trained on, told apart by their files and read into one table.

In: a folder, the competition's, the RSNA Pneumonia Challenge's or NIH ChestX-ray14's, as their publishers lay them out.
Out: the train part of the index (competition.py); NIH's has a column of 0 and 1 for each of nih.LABELS beside it.
"""

from pathlib import Path
from typing import Literal

import pandas as pd

from siimcovid import competition, nih, paths, rsna
from siimcovid.configs import STAGES
from siimcovid.errors import InputError
from siimcovid.tables import find_table

Kind = Literal["competition", "rsna", "nih"]

#: What each stage can learn from; detectors learn from all that has boxes.
LESSONS: dict[str, tuple[Kind, ...]] = dict.fromkeys(STAGES, ("competition", "rsna"))
LESSONS |= {"backbone": ("nih",), "study": ("competition",)}

NAMES = {
    "competition": "the competition's (sample_submission.csv, train_image_level.csv, train/)",
    "rsna": f"the RSNA Pneumonia Challenge's ({rsna.LABEL_FILE}, {rsna.IMAGE_FOLDER}/)",
    "nih": f"NIH ChestX-ray14's ({nih.ENTRIES[0]}, images/)",
}


def kind_of(folder: Path | str, stage: str) -> Kind:
    """Which data set a folder holds. Raises InputError where it holds none that the stage can learn from."""
    folder = Path(folder).expanduser()
    found: Kind | None = None
    if find_table(folder, rsna.LABEL_FILE):
        found = "rsna"
    elif any((folder / name).is_file() for name in nih.ENTRIES):
        found = "nih"
    elif paths.is_competition(folder):
        found = "competition"
    if found not in LESSONS[stage]:
        wanted = " or ".join(NAMES[kind] for kind in LESSONS[stage])
        what = f"is {NAMES[found]}" if found else "holds no data set"
        raise InputError(f"{folder} {what}; stage {stage} is trained on a folder like {wanted}")
    return found


def read(folder: Path | str, kind: Kind) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The films to train on and the problems met. Of the RSNA challenge only films with boxes count as annotated.

    The report trained on those alone (section 2.2, "we use the positive cases"); the others stay for validation.
    """
    if kind == "competition":
        found = competition.load(folder, splits=("train",))
        return found.images, found.problems
    if kind == "rsna":
        images, problems = rsna.load_rsna(folder)
        return images.assign(annotated=images["boxes"].map(len) > 0), problems
    films, problems = nih.load_nih(folder)
    rows = [
        dict.fromkeys(("study_id", "series_id"), film["image_id"])
        | {"image_id": film["image_id"], "patient_id": film["patient_id"], "path": film["path"], "split": "train"}
        | {"rows": 0, "columns": 0, "boxes": [], "level": None, "annotated": True}
        for film in films.to_dict("records")
    ]
    return competition.index_table(rows).merge(films[["image_id", *nih.LABELS]], on="image_id"), problems
