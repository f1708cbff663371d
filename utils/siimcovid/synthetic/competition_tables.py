"""The CSVs of a synthetic competition, written as the real ones are."""

from pathlib import Path

import numpy as np
import pandas as pd

from siimcovid.core.files import write_csv
from siimcovid.core.labels import STUDY_COLUMNS, STUDY_LABELS
from siimcovid.synthetic.competition_plan import PlannedImage


def write_tables(images: list[PlannedImage], boxes: list[np.ndarray], folder: Path, truth: Path) -> None:
    """The competition's three CSVs to `folder`, the test split's two to `truth`."""
    for split, place in (("train", folder), ("test", truth)):
        of_split = [(image, found) for image, found in zip(images, boxes, strict=True) if image.split == split]
        rows = sorted(_image_row(image, found) for image, found in of_split)
        _write_rows(place / f"{split}_image_level.csv", ["id", "boxes", "label", "StudyInstanceUID"], rows)
        rows = sorted(
            {
                (f"{image.study}_study", *(int(image.study_label == study_label) for study_label in STUDY_LABELS))
                for image, _ in of_split
            }
        )
        _write_rows(place / f"{split}_study_level.csv", ["id", *STUDY_COLUMNS], rows)
    test = [image for image in images if image.split == "test"]
    sample = sorted({(f"{image.study}_study", "negative 1 0 0 1 1") for image in test})
    sample += [(f"{image.image}_image", "none 1 0 0 1 1") for image in test]  # in no order, as in the original
    _write_rows(folder / "sample_submission.csv", ["id", "PredictionString"], sample)


def _image_row(image: PlannedImage, boxes: np.ndarray) -> tuple[str, str | None, str, str]:
    """A row of `train_image_level.csv`: id, boxes, label, StudyInstanceUID; numbers have five decimals, as there."""
    entries, labels = [], []
    for x1, y1, x2, y2 in np.round(boxes, 5).tolist():
        entries.append({"x": x1, "y": y1, "width": round(x2 - x1, 5), "height": round(y2 - y1, 5)})
        labels.append(f"opacity 1 {x1} {y1} {x2} {y2}")
    return (
        f"{image.image}_image",
        str(entries) if entries else None,
        " ".join(labels) or "none 1 0 0 1 1",
        image.study,
    )


def _write_rows(path: Path, columns: list[str], rows: list[tuple]) -> None:
    """Write a table as the competition's are written."""
    write_csv(pd.DataFrame(rows, columns=columns), path)
