"""The cache: every image of an index as an upright 8-bit picture at the working size, written once.

In: the index (image_id and path of each row count). Out, in one folder:

    <image_id>.png   8-bit grey, 0 black; sides in the image's proportions, the longer one the working size or, where
                     the image is smaller, the image's own
    failures.csv     image_id, path, reason: the images without a picture; always there when `prepare` is done
    prepared.csv     image_id, source_bytes, source_modified_ns, size, reason: what each picture was made of

prepared.csv (with prepared-<k>-of-<n>.csv where machines share the work) grows by a line per image, so a run that was
killed goes on where it stopped. An image is made again when its
file's length or date or the working size has changed, or its picture is gone; nothing else is, failures included.
"""

import csv
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import cv2
import numpy as np

from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, make_folder, write_csv
from siimcovid.core.processes import Lost, processors, run_apart
from siimcovid.data.dicom_image import DicomError, read_image

if TYPE_CHECKING:  # the worker processes import this module, and need neither pandas nor tqdm
    import pandas as pd

#: Seconds that one image may take; the slowest decoder needs about 3 for the largest.
LIMIT = 300.0

#: Seconds after which a temporary file is no running process's any more.
ABANDONED = 600.0

#: Endings of images that are pictures already, as NIH's are; all else is read as DICOM.
PICTURES = (".png", ".jpg", ".jpeg")

FAILURE_COLUMNS = ("image_id", "path", "reason")


class Made(NamedTuple):
    """A line of prepared.csv: what a picture was made of; `reason` says why there is none, and is empty else."""

    source_bytes: int
    source_modified_ns: int
    size: int
    reason: str


def prepare(
    images: "pd.DataFrame",
    folder: Path | str,
    size: int,
    workers: int | None = None,
    progress: bool = True,
    part: tuple[int, int] = (0, 1),
) -> "pd.DataFrame":
    """Make every image's picture that `folder` lacks, and return failures.csv as a table.

    images: rows of the index. size: longer side in pixels. workers: number of processes, by default one for each
    processor. part: (k, n) makes every n-th image from number k on, with a journal of its own, so that n machines can
    share the work on one folder; a call without it afterwards finds everything made.
    Raises InputError for a size or number of workers below 1 and for an image_id that stands there twice.
    """
    import pandas as pd
    from tqdm import tqdm

    folder = Path(folder)
    workers = processors() if workers is None else workers
    if size < 1 or workers < 1:
        raise InputError(f"size {size} and workers {workers}: give at least 1 for each")
    if images["image_id"].duplicated().any():
        raise InputError(f"image {images['image_id'][images['image_id'].duplicated()].iloc[0]!r} is there twice")
    images = images.iloc[part[0] :: part[1]]
    make_folder(folder)
    made, pictures = _read_journal(folder), _pictures(folder)
    reasons: dict[str, str] = {}  # of every image that is settled; empty where there is a picture
    todo: dict[str, Made] = {}
    paths = dict(zip(images["image_id"], images["path"], strict=True))
    for image, path in paths.items():
        source = _source(path, size)
        known = made.get(image)
        if source.reason:
            _picture_path(folder, image).unlink(missing_ok=True)
            reasons[image] = source.reason
        elif known and known[:3] == source[:3] and (known.reason or image in pictures):
            reasons[image] = known.reason
        else:
            todo[image] = source
    if todo:
        jobs = [(paths[image], _picture_path(folder, image), size) for image in todo]
        bar = tqdm(total=len(paths), initial=len(reasons), desc="prepare", unit="image", delay=1, disable=not progress)
        with bar, _journal(folder, made, part) as journal:
            for (_, picture, _), result in run_apart(_make, jobs, workers, LIMIT):
                image, reason = picture.stem, result
                if isinstance(result, Lost):
                    picture.unlink(missing_ok=True)
                    reason = result.reason
                reasons[image] = reason
                _write_line(journal, image, todo[image]._replace(reason=reason))
                bar.update()
    failed = [(image, path, reasons[image]) for image, path in paths.items() if reasons[image]]
    failures = pd.DataFrame(failed, columns=list(FAILURE_COLUMNS), dtype=str)
    write_csv(failures, folder / "failures.csv")
    return failures


def read(folder: Path | str, image_id: str) -> np.ndarray:
    """Read an image's picture from the cache: uint8 (rows, columns). Raises InputError where it is missing or
    damaged."""
    path = _picture_path(Path(folder), image_id)
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
    except (FileNotFoundError, cv2.error):
        pixels = None
    if pixels is None:
        state = "is damaged: delete it and prepare again" if path.exists() else "is missing: prepare the images first"
        raise InputError(f"{path} {state} (failures.csv beside it says which images cannot be read)")
    return pixels


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Shrink an image (rows, columns) in proportion until its longer side is `size`; a smaller one stays as it is."""
    rows, columns = image.shape
    longest = max(rows, columns)
    if longest <= size:
        return image
    shape = max(1, round(columns * size / longest)), max(1, round(rows * size / longest))
    return cv2.resize(image, shape, interpolation=cv2.INTER_AREA)


def _make(job: tuple[str, Path, int]) -> str:
    """Make one picture, in a worker process. Returns "", or the reason why the image cannot be read."""
    path, picture, size = job
    cv2.setNumThreads(1)  # the processes share the processors among them already
    try:
        image = fit(_read_picture(path) if path.lower().endswith(PICTURES) else read_image(path), size)
    except DicomError as error:
        picture.unlink(missing_ok=True)  # an older one, of another image by this name
        return error.reason
    data = cv2.imencode(".png", image, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1]
    with atomic_path(picture) as temporary:
        data.tofile(temporary)
    return ""


def _read_picture(path: str) -> np.ndarray:
    """A PNG or JPEG image as uint8 (rows, columns). Raises DicomError for one that is damaged."""
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error):
        image = None
    if image is None:
        raise DicomError(path, "is no whole PNG or JPEG")
    return image


def _picture_path(folder: Path, image_id: str) -> Path:
    return folder / f"{image_id}.png"


def _source(path: str, size: int) -> Made:
    """What a picture of the image `path` would be made of; `reason` where there is no such file."""
    if not path:
        return Made(0, 0, size, "has no file in the competition folder")
    try:
        state = os.stat(path)
    except OSError as error:
        return Made(0, 0, size, f"cannot be read from the disk ({error.strerror})")
    return Made(state.st_size, state.st_mtime_ns, size, "")


def _pictures(folder: Path) -> set[str]:
    """Ids of the images that have a picture. Temporary files that a killed run left behind are removed."""
    found = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            name, suffix = os.path.splitext(entry.name)
            if suffix == ".png" and not name.startswith("."):
                found.add(name)
            elif suffix in (".png", ".csv") and name.startswith("."):
                with suppress(FileNotFoundError):
                    if time.time() - entry.stat().st_mtime > ABANDONED:
                        os.unlink(entry)
    return found


def _read_journal(folder: Path) -> dict[str, Made]:
    """prepared.csv by image_id; the last line of an image counts, and a line that a killed run tore does not."""
    made = {}
    for journal in sorted(folder.glob("prepared*.csv")):
        with suppress(FileNotFoundError), open(journal, newline="", encoding="utf-8") as stream:
            for line in csv.reader(stream):
                with suppress(ValueError):  # the titles, or a torn line
                    image, source_bytes, modified, size, reason = line
                    made[image] = Made(int(source_bytes), int(modified), int(size), reason)
    return made


@contextmanager
def _journal(folder: Path, made: dict[str, Made], part: tuple[int, int]) -> Iterator[TextIO]:
    """prepared.csv, or a part's prepared-<k>-of-<n>.csv, written anew with a line for each image, and open for more."""
    path = folder / ("prepared.csv" if part[1] == 1 else f"prepared-{part[0]}-of-{part[1]}.csv")
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerow(("image_id", *Made._fields))
        for image, line in made.items():
            _write_line(stream, image, line)
    with open(path, "a", newline="", encoding="utf-8", buffering=1) as stream:  # a line reaches the disk when it ends
        yield stream


def _write_line(stream: TextIO, image: str, line: Made) -> None:
    csv.writer(stream, lineterminator="\n").writerow((image, *line))
