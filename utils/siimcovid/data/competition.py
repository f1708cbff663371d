"""The index: a competition folder's CSV files and DICOM headers joined into one row per image.

In: `train/` and `test/` (`<study>/<series>/<image>.dcm`), train_image_level.csv, train_study_level.csv and
sample_submission.csv, each plain, .gz or .zip. Out: a Competition, whose `images` every later stage starts from:

    image_id, study_id, series_id   str, from the names of file and folders; "" where unknown
    patient_id                      str; where unknown, another image's of the study, else the study (or image) itself
    split                           "train" or "test"
    in_sample                       bool: a test image that sample_submission.csv asks for
    path                            str, absolute; "" where there is no file
    rows, columns                   int, pixels; 0 where unknown
    boxes                           list of [x1, y1, x2, y2], fractions of the image in [0, 1]
    study_label                     one of STUDY_LABELS; None where unknown
    annotated                       bool: whether `boxes` is the ground truth, also when it is empty

`annotated`: of a study's several images only one was annotated. A sibling of an image with boxes is a repeat without
annotation, so its lack of boxes means nothing. Where no image of a study has boxes, there was no opacity to mark, and
all of its images count as annotated: so it is in every negative study, and in those atypical ones whose findings are
no opacities (81 studies of a single image show that there are such). An image all of whose boxes were left out as
faulty is not annotated either.
"""

import ast
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from pathlib import Path

import numpy as np
import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.files import write_csv
from siimcovid.core.labels import STUDY_COLUMNS, STUDY_LABELS
from siimcovid.core.tables import find_table, no_table, numbers, printable, read_csv, some, unescaped
from siimcovid.data.dicom_headers import IMAGE_COLUMNS, scan_images

INDEX_COLUMNS = (
    *("image_id", "study_id", "series_id", "patient_id", "split", "in_sample", "path"),
    *("rows", "columns", "boxes", "study_label", "annotated"),
)


@dataclass(frozen=True)
class Competition:
    """A competition folder, read."""

    folder: Path
    images: pd.DataFrame  # the index, sorted by split (train first) and image_id
    sample: pd.DataFrame  # sample_submission.csv as it is: id, PredictionString; empty without the split "test"
    problems: tuple[str, ...]  # a sentence for each thing that did not fit, with the ids concerned


class Problems(list):
    """Sentences about what did not fit, in the order found."""

    def report(self, what: str, ids: Iterable[str]) -> None:
        """Add "<what>: <count> (<the first ids>)" where there are any."""
        if ids := [printable(name) for name in ids]:
            self.append(f"{what}: {len(ids):,} ({some(ids)})")


def load(
    folder: Path | str,
    *,
    splits: Sequence[str] = ("train", "test"),
    headers: pd.DataFrame | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Competition:
    """Read a competition folder; its train part is empty where there is no train_image_level.csv.

    `headers` (see headers.read_header_tables) stands in for the DICOM headers, which then are not read, and for files
    that are not there. `splits` leaves out a part that is not wanted: a submission needs no train part.
    Raises InputError where the folder or sample_submission.csv is missing, or a CSV file is not what it should be;
    whatever else does not fit is in `problems`, and the rows stay.
    """
    folder = Path(folder).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the competition folder")
    problems = Problems()
    rows: list[dict] = []
    sample = pd.DataFrame(columns=["id", "PredictionString"], dtype=str)
    if "train" in splits:
        rows += _train_rows(folder, headers, workers, progress, problems)
    if "test" in splits:
        if (path := find_table(folder, "sample_submission.csv")) is None:
            raise InputError(f"{no_table(folder, 'sample_submission.csv')}: give the folder that holds it")
        sample = read_csv(path, ("id", "PredictionString"))
        if sample.empty:
            raise InputError(f"{path} holds no ids: fetch it again")
        rows += _test_rows(folder, sample["id"], headers, workers, progress, problems)
    return Competition(folder, index_table(_once(rows, problems)), sample, tuple(problems))


def _once(rows: list[dict], problems: Problems) -> list[dict]:
    """The rows with each image id once: of one in train and test, the test image where the sample asks for it."""
    test = {row["image_id"]: row["in_sample"] for row in rows if row["split"] == "test"}
    both = [row["image_id"] for row in rows if row["split"] == "train" and row["image_id"] in test]
    asked = {name for name in both if test[name]}
    problems.report("image ids that stand in train and test, left out of train", sorted(asked))
    problems.report("image ids that stand in train and test, left out of test", sorted({*both} - asked))
    dropped = {("train", name) for name in asked} | {("test", name) for name in {*both} - asked}
    return [row for row in rows if (row["split"], row["image_id"]) not in dropped]


def _train_rows(folder: Path, headers, workers, progress, problems: Problems) -> list[dict]:
    path = find_table(folder, "train_image_level.csv")
    if path is None:
        problems.append(f"{no_table(folder, 'train_image_level.csv')}: the index has no train part")
        return []
    labels = read_csv(path, ("id", "boxes", "StudyInstanceUID"))
    labels = labels.assign(image_id=labels["id"].str.removesuffix("_image"))
    problems.report(f"repeated ids in {path.name}", labels["id"][labels["image_id"].duplicated()])
    nameless = ~labels["image_id"].map(_is_name).astype(bool)  # of an empty column it would be text
    problems.report(f"ids in {path.name} that cannot be a file's name, left out", labels["id"][nameless])
    labels = labels[~nameless].drop_duplicates("image_id").set_index("image_id")
    records, files = _images(folder / "train", headers, workers, progress, problems)
    problems.report("train images without a file", labels.index.difference(files))
    problems.report(f"train files that {path.name} does not know, left out", files.difference(labels.index))

    records = _complete(records.reindex(labels.index), labels["StudyInstanceUID"], problems)
    study_labels = _study_labels(folder, problems)
    pixel_boxes = {row.Index: parse_boxes(row.boxes, f"{path}: {row.id}") for row in labels.itertuples()}
    boxed_studies = {row.StudyInstanceUID for row in labels.itertuples() if pixel_boxes[row.Index]}
    rows, faults, sizeless = [], BoxFaults(), []
    for record in records.to_dict("records"):
        image, size = record["image_id"], (record["rows"], record["columns"])
        boxes, found = box_fractions(pixel_boxes[image], *size) if all(size) else ([], ())
        faults.add(image, found)
        if pixel_boxes[image] and not all(size):
            sizeless.append(image)
        annotated = bool(boxes) or record["study_id"] not in boxed_studies
        study_label = study_labels.get(record["study_id"])
        rows.append({**record, "split": "train", "boxes": boxes, "study_label": study_label, "annotated": annotated})
    faults.report(problems)
    problems.report("images with boxes but of unknown size, whose boxes are left out", sizeless)
    studies = set(labels["StudyInstanceUID"])
    if study_labels:
        problems.report("train studies without a study label", sorted(studies - set(study_labels)))
        problems.report("studies with a study label but without images", sorted(set(study_labels) - studies))
    return rows


def _test_rows(folder: Path, ids: pd.Series, headers, workers, progress, problems: Problems) -> list[dict]:
    problems.report("repeated ids in the sample", ids[ids.duplicated()].unique())
    problems.report("sample ids that are neither _study nor _image", ids[~ids.str.endswith(("_study", "_image"))])
    asked_images = {i.removesuffix("_image") for i in ids if i.endswith("_image")}
    problems.report("sample ids that cannot be a file's name", sorted(filterfalse(_is_name, asked_images)))
    asked_images = set(filter(_is_name, asked_images))
    asked_studies = {i.removesuffix("_study") for i in ids if i.endswith("_study")}
    records, files = _images(folder / "test", headers, workers, progress, problems)
    problems.report("sample images without a file", sorted(asked_images.difference(files)))
    problems.report("test files that the sample does not ask for", files.difference(asked_images))
    records = records.reindex(sorted(asked_images.union(files)))
    records = _complete(records, records["study_id"], None)
    studies = set(records["study_id"]) - {""}
    problems.report("sample studies without an image", sorted(asked_studies - studies))
    problems.report("test studies that the sample does not ask for", sorted(studies - asked_studies))
    unanswered = {"split": "test", "boxes": [], "study_label": None, "annotated": False}
    return [
        {**record, **unanswered, "in_sample": record["image_id"] in asked_images}
        for record in records.to_dict("records")
    ]


def _is_name(image_id: str) -> bool:
    """Whether an image id can be the name of a file: the cache has one for each."""
    return image_id not in ("", ".", "..") and not set(image_id) & set("/\\\0")


def _images(folder: Path, headers, workers, progress, problems: Problems) -> tuple[pd.DataFrame, pd.Index]:
    """The table of IMAGE_COLUMNS by image_id, from DICOM headers or from `headers`, gaps as missing values; and the ids
    that have files."""
    table = pd.DataFrame(columns=list(IMAGE_COLUMNS))
    if folder.is_dir():
        found = scan_images(folder, read=headers is None, workers=workers, progress=progress)
        table = found.table.assign(  # names that are no UTF-8 as they are written to a file, paths as they open
            **{name: found.table[name].map(printable) for name in ("image_id", "study_id", "series_id")}
        )
        problems.report(f"files of {folder.name}/ that do not lie in <study>/<series>/, left out", found.misplaced)
        problems.report(f"headers of {folder.name}/ that cannot be read", found.faults)
        repeated = table["path"][table["image_id"].duplicated()]
        problems.report(f"files of {folder.name}/ whose image id another file has, left out", repeated)
    table = table.drop_duplicates("image_id").set_index("image_id")
    files = table.index.sort_values()
    if headers is not None:
        table = table.combine_first(headers.drop_duplicates("image_id").set_index("image_id"))
    return table.reindex(columns=list(IMAGE_COLUMNS[1:])), files


def _complete(records: pd.DataFrame, studies: pd.Series, problems: Problems | None) -> pd.DataFrame:
    """Images with `studies` (by image_id) as their study_id and every gap filled as described above."""
    records = records.assign(study_id=studies).rename_axis("image_id").reset_index()
    for column in ("study_id", "series_id", "patient_id", "path"):
        records[column] = records[column].where(records[column].notna(), "").astype(str)
    for column in ("rows", "columns"):
        records[column] = pd.to_numeric(records[column]).fillna(0).astype("int64")
    known = records[(records["patient_id"] != "") & (records["study_id"] != "")]
    of_study = dict(zip(known["study_id"], known["patient_id"], strict=True))
    if problems is not None:
        unknown = ~records["study_id"].isin(list(of_study))
        problems.report("images of unknown patients, whose studies stand in", records["image_id"][unknown])
    records["patient_id"] = [
        patient or of_study.get(study) or study or image
        for image, study, patient in zip(records["image_id"], records["study_id"], records["patient_id"], strict=True)
    ]
    return records


def _study_labels(folder: Path, problems: Problems) -> dict[str, str]:
    """Study id -> study label, from train_study_level.csv; studies without exactly one study label are reported and
    left out."""
    path = find_table(folder, "train_study_level.csv")
    if path is None:
        problems.append(f"{no_table(folder, 'train_study_level.csv')}: no study has a study label")
        return {}
    table = read_csv(path, ("id", *STUDY_COLUMNS))
    problems.report(f"repeated ids in {path.name}", table["id"][table["id"].duplicated()])
    table = table.drop_duplicates("id")
    marks = np.stack([numbers(table, column, path) for column in STUDY_COLUMNS], axis=1)
    one = (np.sort(marks, axis=1) == (0, 0, 0, 1)).all(axis=1)
    problems.report(f"studies of {path.name} that have not exactly one study label", table["id"][~one])
    studies = table["id"].str.removesuffix("_study")[one]
    return {study: STUDY_LABELS[place] for study, place in zip(studies, marks[one].argmax(axis=1), strict=True)}


#: What may stand in the place of a number in a table of boxes that a program wrote.
NO_NUMBER = re.compile(r"\b(?:nan|NaN|NAN|null|inf|Infinity)\b")


def parse_boxes(text: str, where: str) -> list[list[float]]:
    """Boxes of train_image_level.csv, the repr of a list of dicts, as [x, y, width, height] in pixels.

    Empty text is no box. None, nan and numbers that are not finite become NaN: see box_fractions. Raises InputError,
    starting with `where`, for anything else than numbers.
    """
    if not text.strip():
        return []
    try:
        values = ast.literal_eval(NO_NUMBER.sub("None", text.strip()))
        boxes = [[_number(box[key]) for key in ("x", "y", "width", "height")] for box in values]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError, OverflowError) as error:
        raise InputError(f"{where}: boxes {text[:80]!r} are no list of x, y, width and height") from error
    return boxes


def _number(value: object) -> float:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else math.nan


#: Sides in pixels below which a box is none: a slip of the mouse, which augmentation and losses divide by.
SMALLEST_BOX = 1.0

#: What can be wrong with boxes, in the words of the index's list of problems.
NOT_FINITE, INVERTED, TINY, OUTSIDE, CLIPPED = BOX_FAULTS = (
    "images with boxes that hold a number that is not finite, left out",
    "images with boxes of negative width or height, left out",
    f"images with boxes of less than {SMALLEST_BOX:g} pixel in width or height, left out",
    "images with boxes that lie outside the image, left out",
    "images with boxes that reach outside the image and were clipped",
)


class BoxFaults(dict):
    """A fault of BOX_FAULTS -> the ids of the images with such a box."""

    def add(self, image_id: str, faults: Iterable[str]) -> None:
        """Note the faults of an image's boxes."""
        for fault in faults:
            self.setdefault(fault, []).append(image_id)

    def report(self, problems: Problems) -> None:
        """Add a sentence for each kind of fault."""
        for fault in BOX_FAULTS:
            problems.report(fault, self.get(fault, ()))


def box_fractions(boxes: Iterable[Sequence[float]], rows: int, columns: int) -> tuple[list[list[float]], list[str]]:
    """Pixel boxes [x, y, width, height] as [x1, y1, x2, y2] in fractions of the image, clipped to [0, 1].

    Boxes that are not finite, inverted, smaller than SMALLEST_BOX (after clipping too) or outside the image are
    dropped. The second value holds those of BOX_FAULTS that occurred; what reaches outside by no more than a millionth
    of the image is rounding, and no fault.
    """
    fractions, faults = [], set()
    for x, y, width, height in boxes:
        corners = [x / columns, y / rows, (x + width) / columns, (y + height) / rows]
        if not all(map(math.isfinite, corners)):
            faults.add(NOT_FINITE)
            continue
        if width < 0 or height < 0:
            faults.add(INVERTED)
            continue
        if min(width, height) < SMALLEST_BOX:
            faults.add(TINY)
            continue
        clipped = [min(max(corner, 0.0), 1.0) for corner in corners]
        sides = (clipped[2] - clipped[0]) * columns, (clipped[3] - clipped[1]) * rows
        if min(sides) < SMALLEST_BOX * (1 - 1e-9):
            faults.add(OUTSIDE)
            continue
        if any(abs(a - b) > 1e-6 for a, b in zip(corners, clipped, strict=True)):
            faults.add(CLIPPED)
        fractions.append(clipped)
    return fractions, [fault for fault in BOX_FAULTS if fault in faults]


def index_table(rows: Sequence[dict]) -> pd.DataFrame:
    """Rows of the index (in_sample False where absent) as a table with its columns' types, in its order."""
    table = pd.DataFrame(rows, columns=list(INDEX_COLUMNS)).astype(
        {"rows": "int64", "columns": "int64", "annotated": bool}
        | dict.fromkeys(("image_id", "study_id", "series_id", "patient_id", "split", "path"), str)
    )
    for column in ("boxes", "study_label"):  # as they are: pandas would turn None into NaN
        table[column] = pd.Series([row[column] for row in rows], dtype=object)
    table["in_sample"] = [bool(row.get("in_sample", False)) for row in rows]
    order = table.assign(split=table["split"] != "train").sort_values(["split", "image_id"], kind="stable").index
    return table.loc[order].reset_index(drop=True)


def write_index(images: pd.DataFrame, path: Path | str) -> None:
    """Write the index as CSV, boxes as JSON and no study label as an empty field; `read_index` gives it back
    exactly."""
    write_csv(images.assign(boxes=images["boxes"].map(json.dumps)), path)


def read_index(path: Path | str) -> pd.DataFrame:
    """Read what `write_index` wrote. Raises InputError where the file is missing, cut off, or no index."""
    rows = read_csv(path, INDEX_COLUMNS, complete=True).to_dict("records")
    try:
        for row in rows:
            row["boxes"], row["study_label"] = _index_boxes(row["boxes"]), row["study_label"] or None
            row["annotated"], row["in_sample"] = row["annotated"] == "True", row["in_sample"] == "True"
            row["path"] = unescaped(row["path"])
        return index_table(rows)
    except (ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no index ({reason}): write it again with `siimcovid index`") from error


def _index_boxes(text: str) -> list[list[float]]:
    """Boxes as `write_index` writes them. Raises ValueError for anything else."""
    boxes = json.loads(text)
    if not isinstance(boxes, list) or not all(
        isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) and 0 <= x <= 1 for x in box)
        for box in boxes
    ):
        raise ValueError(f"boxes {text[:80]!r}")
    return boxes
