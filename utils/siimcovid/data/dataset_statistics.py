"""What an index holds, counted: the figures 4 to 6 of the report's section 2.3, and the sizes around them.

In: rows of the index (competition.py), or the label files of NIH ChestX-ray14 and RSNA Pneumonia for the report's
figures 1 and 2. Out: plain numbers, which a command prints and the report page draws.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.labels import NIH_FINDINGS, STUDY_LABELS
from siimcovid.core.tables import find_table, no_table, read_csv
from siimcovid.data.nih_chestxray14 import ENTRIES
from siimcovid.data.rsna_pneumonia import CLASS_FILE

QUANTILES = (0.05, 0.5, 0.95)


def describe(images: pd.DataFrame) -> dict:
    """Counts of one split of the index, as JSON can hold them.

    images, studies, patients, boxes                                int
    study labels                 study label -> studies, in order of STUDY_LABELS
    images_per_study       images -> studies
    boxes_per_image        boxes -> images
    boxes_per_study_label        study label -> {boxes -> annotated images}
    repeated_studies       among studies of several images, images with boxes -> studies
    not_annotated          images that were not annotated
    sizes                  [rows, columns, images], the commonest first; known sizes only
    box_width, box_height, box_area, box_centre_x, box_centre_y
                           [5 %, 50 %, 95 %] over all boxes, as fractions of the image; empty where there is none
    """
    counts = images["boxes"].map(len)
    known = images.assign(boxed=counts > 0)[images["study_id"] != ""]
    studies = known.groupby("study_id")
    per_study = studies["boxed"].agg(["size", "sum"])
    study_labels = studies["study_label"].first()
    annotated = images["annotated"].astype(bool)
    sizes = images[images["rows"] > 0].groupby(["rows", "columns"]).size()
    return {
        "images": len(images),
        "studies": len(studies),
        "patients": int(images["patient_id"].nunique()),
        "boxes": int(counts.sum()),
        "study_labels": {study_label: int((study_labels == study_label).sum()) for study_label in STUDY_LABELS},
        "images_per_study": _tally(per_study["size"]),
        "boxes_per_image": _tally(counts),
        "boxes_per_study_label": {
            study_label: _tally(counts[annotated & (images["study_label"] == study_label)])
            for study_label in STUDY_LABELS
        },
        "repeated_studies": _tally(per_study["sum"][per_study["size"] > 1]),
        "not_annotated": int((~annotated).sum()),
        "sizes": [[*size, int(n)] for size, n in sizes.sort_values(ascending=False, kind="stable").items()],
        **_box_quantiles(images["boxes"]),
    }


def box_table(boxes: pd.Series) -> pd.DataFrame:
    """width, height, area, centre_x and centre_y of every box of an index's column, as fractions of the image."""
    corners = np.array([box for of_image in boxes for box in of_image], dtype=float).reshape(-1, 4)
    x1, y1, x2, y2 = corners.T
    width, height = x2 - x1, y2 - y1
    centre = {"centre_x": (x1 + x2) / 2, "centre_y": (y1 + y2) / 2}
    return pd.DataFrame({"width": width, "height": height, "area": width * height, **centre})


def _box_quantiles(boxes: pd.Series) -> dict[str, list[float]]:
    table = box_table(boxes)
    return {f"box_{name}": [] if table.empty else table[name].quantile(QUANTILES).tolist() for name in table}


def _tally(values: pd.Series) -> dict[int, int]:
    """How often each value occurs, by value."""
    return {int(value): int(count) for value, count in values.value_counts().sort_index().items()}


def nih_findings(folder: Path | str) -> tuple[dict[str, int], int]:
    """How often each of labels.NIH_FINDINGS is found, the commonest first, and the number of images, by NIH's label
    file alone.

    An image may have several findings. Raises InputError where the file is missing or has a label that is none of them.
    """
    path = next((found for name in ENTRIES if (found := find_table(folder, name))), None)
    if path is None:
        raise InputError(f"{no_table(folder, ENTRIES[0])}: give the folder of NIH ChestX-ray14")
    table = read_csv(path, ("Image Index", "Finding Labels"))
    counts = Counter(label for text in table["Finding Labels"] for label in text.split("|"))
    if unknown := sorted(set(counts).difference(NIH_FINDINGS)):
        raise InputError(f"{path} has the label {unknown[0]!r}, which is none of {', '.join(NIH_FINDINGS)}")
    ordered = sorted(NIH_FINDINGS, key=lambda label: (-counts[label], label))
    return {label: counts[label] for label in ordered}, len(table)


def rsna_classes(folder: Path | str) -> tuple[dict[str, int], int]:
    """Rows of each class in RSNA's file of detailed classes, the commonest first, and the number of images.

    The file has a row per box, as the report counts them. Raises InputError where it is missing.
    """
    path = find_table(folder, CLASS_FILE)
    if path is None:
        raise InputError(f"{no_table(folder, CLASS_FILE)}: give the folder of the RSNA Pneumonia Challenge")
    table = read_csv(path, ("patientId", "class"))
    return dict(Counter(table["class"]).most_common()), int(table["patientId"].nunique())
