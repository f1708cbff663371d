"""The DICOM files of a folder with the patient and size in their headers, or tables that hold the same values.

In: a folder `<study>/<series>/<image>.dcm`, or CSV files. Out: a DataFrame, a row per image (IMAGE_COLUMNS).
Ids come from the names of files and folders, never from the UIDs inside, which the competition made invalid.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from pydicom import dcmread
from pydicom.dataset import Dataset

from siimcovid.core.errors import InputError
from siimcovid.core.progress import progress_bar
from siimcovid.core.tables import numbers, read_csv
from siimcovid.data.dicom_codestream import Codestream, codestream_size, unpack_frame
from siimcovid.data.dicom_file import read_elements
from siimcovid.data.dicom_numbers import one_line, read_integer

#: Threads that read headers, most of the time waiting for the disk (a mounted folder takes milliseconds a file):
#: 6,334 headers take about 5 s of one core, and 7 s where each file answers after 10 ms.
WORKERS = 16

IMAGE_COLUMNS = ("image_id", "study_id", "series_id", "patient_id", "rows", "columns", "path")

#: The titles that the tables of image sizes and patients which circulate for this competition give these columns.
TITLES = {"imageid": "image_id", "studyid": "study_id", "patientid": "patient_id", "dim0": "rows", "dim1": "columns"}


#: Endings of DICOM files, in lower case.
ENDINGS = (".dcm", ".dicom")


class Header(NamedTuple):
    """Patient and size of one image in pixels; `fault` is the reason why rows and columns are 0, and else empty."""

    patient_id: str
    rows: int
    columns: int
    fault: str


class ImageDataset(NamedTuple):
    """The images of one folder."""

    table: pd.DataFrame  # IMAGE_COLUMNS, sorted by path; patient_id, rows and columns are None where none were read
    faults: list[str]  # "<path> (<reason>)" for each header that cannot be read
    misplaced: list[str]  # DICOM files that do not lie in <study>/<series>/ and are left out


def read_header(path: Path | str) -> Header:
    """Read the patient and the size in pixels from one DICOM file, not its pixels. Raises nothing: see Header.fault.

    Where the header is damaged the whole file is read, to find these elements or the size of the compressed image.
    """
    try:
        # force: images without the 128-byte preamble have the same header and are read all the same.
        tags = ["PatientID", "Rows", "Columns"]
        header = _header_of(dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags))
        fault = "no DICOM file, or one without Rows and Columns"
    except Exception as error:  # a damaged header makes pydicom raise nearly anything
        header, fault = None, one_line(f"{type(error).__name__}: {error}")
    if header is None or header.rows <= 0 or header.columns <= 0:
        with suppress(Exception):
            dataset = read_elements(path, [], also=("PatientID",))
            inner = codestream_size(unpack_frame(dataset, []) or b"")
            header = _header_of(dataset, inner)
    if header is None or header.rows <= 0 or header.columns <= 0:
        return Header(header.patient_id if header else "", 0, 0, fault)
    return header


def _header_of(dataset: Dataset, inner: Codestream | None = None) -> Header:
    """Patient and size of a data set; inner: its compressed image, which has the size where the header has none."""
    patient = str(dataset.get("PatientID") or "").strip()
    rows, columns = (read_integer(dataset, name, []) or 0 for name in ("Rows", "Columns"))
    if inner and (rows <= 0 or columns <= 0):
        rows, columns = inner.rows, inner.columns
    return Header(patient, rows, columns, "")


def in_threads(
    function: Callable, items: Sequence, what: str, unit: str, workers: int | None = None, progress: bool = True
) -> list:
    """`[function(item) for item in items]` in threads, with a bar named `what` once it takes more than a second."""
    with ThreadPoolExecutor(workers or WORKERS) as pool:
        done = pool.map(function, items)
        return list(progress_bar(done, what, unit, len(items), delay=1, disable=None if progress else True))


def scan_images(folder: Path, *, read: bool = True, workers: int | None = None, progress: bool = True) -> ImageDataset:
    """List `folder`/<study>/<series>/<image>.dcm and, with `read`, read the headers."""
    studies, what = _inside(folder), f"{folder.name}/"
    found = in_threads(lambda study: _images_of_study(study, read), studies, what, "study", workers, progress)
    table = pd.DataFrame([row for part in found for row in part[0]], columns=list(IMAGE_COLUMNS))
    return ImageDataset(
        table, [fault for part in found for fault in part[1]], [path for part in found for path in part[2]]
    )


def _images_of_study(study: Path, read: bool) -> tuple[list[tuple], list[str], list[str]]:
    rows, faults = [], []
    inside = _inside(study)
    for series in inside:
        for path in _inside(series):
            if (image_id := image_id_of(path)) is None:
                continue
            header = read_header(path) if read else Header(None, None, None, "")
            rows.append((image_id, study.name, series.name, *header[:3], str(path)))
            if header.fault:
                faults.append(f"{path} ({header.fault})")
    return rows, faults, [str(path) for path in (study, *inside) if path.is_file() and image_id_of(path)]


def _inside(folder: Path) -> list[Path]:
    """What a folder holds, sorted; without hidden files such as macOS's "._image.dcm". [] for a path that is a file."""
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if not entry.name.startswith("."))
    except NotADirectoryError:
        return []


def image_id_of(path: Path) -> str | None:
    """The image id of a DICOM file: its name without the ending .dcm or .dicom, in any case; None for other files.

    A name without such an ending, a UID with its dots perhaps, is an id as it is where the file's preamble says DICOM.
    """
    if path.suffix.lower() in ENDINGS:
        return path.stem
    if path.suffix and not path.suffix[1:].isdigit():
        return None
    try:
        with open(path, "rb") as stream:
            return path.name if stream.read(132)[128:] == b"DICM" else None
    except OSError:  # a folder among others
        return None


def read_header_tables(paths: Iterable[Path | str]) -> pd.DataFrame:
    """Join CSV files about images into one table that stands in for DICOM headers.

    Each has a column image_id (or imageid) and any of study_id, series_id, patient_id, rows and columns, which
    TITLES' other names may stand for. Returns IMAGE_COLUMNS without path, a row per image; a value that no file gives
    is missing, and where two files differ the first one counts. Raises InputError naming the file that is wrong.
    """
    columns = [column for column in IMAGE_COLUMNS if column != "path"]
    joined = None
    for path in paths:
        table = read_csv(path).rename(columns=TITLES)
        if "image_id" not in table:
            raise InputError(f"{path} has no column 'image_id': give a table with a row per image")
        for column in {"rows", "columns"} & set(table):
            sizes = numbers(table, column, path)
            wrong = table[column][(sizes < 0) | (sizes % 1 > 0)]
            if len(wrong):
                raise InputError(f"{path}: column {column!r} has {wrong.iloc[0]!r} where pixels should be counted")
            table[column] = sizes
        table = table[[column for column in table if column in columns]].drop_duplicates("image_id")
        table = table.set_index("image_id").replace("", None)
        joined = table if joined is None else joined.combine_first(table)
    return joined.reindex(columns=columns[1:]).reset_index()
