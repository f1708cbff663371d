"""Reader of the RSNA Pneumonia Detection Challenge, the data of YOLO's second start (report, section 2.2).

In: Kaggle's folder: stage_2_train_labels.csv (patientId, x, y, width, height, Target; a row per box, in pixels),
stage_2_detailed_class_info.csv (patientId, class) and stage_2_train_images/<patientId>.dcm. Out: the index as
competition.py describes it, so that the same cache and training serve: every image was annotated, its study label is
unknown (the challenge has no study labels), and it is a study and a patient of its own, since the ids identify images,
not people.
"""

from pathlib import Path

import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.tables import find_table, no_table, numbers, read_csv
from siimcovid.data.competition import BoxFaults, Problems, box_fractions, index_table
from siimcovid.data.dicom_headers import Header, in_threads, read_header

LABEL_FILE, CLASS_FILE = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
IMAGE_FOLDER = "stage_2_train_images"
BOX = ["x", "y", "width", "height"]


def load_rsna(
    folder: Path | str, *, workers: int | None = None, progress: bool = True
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read the challenge's train part: the index, sorted by image_id, and a sentence for each thing that did not fit.

    Images without a file or of unknown size stay, with no boxes and not annotated. The detailed classes only check the
    boxes: class "Lung Opacity" and Target 1 mean the same. Raises InputError where a file or folder is missing or a CSV
    file is not what it should be.
    """
    folder = Path(folder).expanduser().absolute()
    path = find_table(folder, LABEL_FILE)
    if path is None:
        raise InputError(f"{no_table(folder, LABEL_FILE)}: give the folder of the RSNA Pneumonia Challenge")
    if not (folder / IMAGE_FOLDER).is_dir():
        raise InputError(f"no {IMAGE_FOLDER}/ beside {path}: give the folder of the RSNA Pneumonia Challenge")
    problems = Problems()
    labels = read_csv(path, ("patientId", *BOX, "Target")).drop_duplicates()
    boxed = labels[numbers(labels, "Target", path) == 1]
    pixel_boxes: dict[str, list] = {}
    for name, *box in zip(boxed["patientId"], *(numbers(boxed, column, path) for column in BOX), strict=True):
        pixel_boxes.setdefault(name, []).append(box)
    names = sorted(set(labels["patientId"]))
    if (classes := find_table(folder, CLASS_FILE)) is not None:
        table = read_csv(classes, ("patientId", "class"))
        opacity = set(table["patientId"][table["class"] == "Lung Opacity"])
        problems.report(f"images on which {CLASS_FILE} and {LABEL_FILE} disagree", sorted(opacity ^ set(pixel_boxes)))

    files = {name: folder / IMAGE_FOLDER / f"{name}.dcm" for name in names}
    headers = in_threads(_header, list(files.values()), f"{IMAGE_FOLDER}/", "file", workers, progress)
    problems.report("images without a file", [n for n, header in zip(names, headers, strict=True) if header is None])
    rows, faults, unreadable = [], BoxFaults(), []
    for name, header in zip(names, headers, strict=True):
        image = header or Header("", 0, 0, "")
        boxes, found = box_fractions(pixel_boxes.get(name, []), image.rows, image.columns) if image.rows else ([], ())
        faults.add(name, found)
        unreadable += [f"{files[name]} ({image.fault})"] if image.fault else []
        rows.append(
            dict.fromkeys(("image_id", "study_id", "series_id", "patient_id"), name)
            | {
                "split": "train",
                "path": str(files[name]) if header else "",
                "rows": image.rows,
                "columns": image.columns,
            }
            | {"boxes": boxes, "study_label": None, "annotated": image.rows > 0}
        )
    problems.report(f"headers of {IMAGE_FOLDER}/ that cannot be read", unreadable)
    faults.report(problems)
    return index_table(rows), tuple(problems)


def _header(file: Path) -> Header | None:
    return read_header(file) if file.is_file() else None
