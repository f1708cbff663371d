"""The cache: every image of an index as an upright 8-bit picture at the working size, written once.

In: the index (image_id and path of each row count). Out, in one folder:

    <image_id>.png   8-bit grey, 0 black; sides in the image's proportions, the longer one the working size or, where
                     the image is smaller, the image's own
    failures.csv     image_id, path, reason: the images without a picture; always there when `prepare` is done
    notices.csv      image_id, notice: a row for everything in an image's file that was ignored, repaired or guessed,
                     so that its picture may not show what was meant; always there too
    prepared.csv     image_id, source_bytes, source_modified_ns, size, reason, notices: what each picture was made of

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
from siimcovid.data.dicom_image import DicomError, read_image_with_notices
from siimcovid.data.picture_files import is_picture, read_picture

if TYPE_CHECKING:  # the worker processes import this module, and need neither pandas nor tqdm
    import pandas as pd

#: Version of the pictures: raised when the same file would become other pixels, so that nothing trained on the old ones
#: is taken for trained on these.
VERSION = 1

#: Seconds that one image may take; the slowest decoder needs about 3 for the largest.
LIMIT = 300.0

#: Seconds after which a temporary file is no running process's any more.
ABANDONED = 600.0

FAILURE_COLUMNS = ("image_id", "path", "reason")
NOTICE_COLUMNS = ("image_id", "notice")

#: File names need not be UTF-8, nor the ids that are made of them: such bytes are written as they are.
ENCODING: dict[str, str] = {"encoding": "utf-8", "errors": "surrogateescape"}


class Made(NamedTuple):
    """A line of prepared.csv: what a picture was made of.

    reason: why there is none, empty where there is one. notices: what was noticed, separated by tabs.
    """

    source_bytes: int
    source_modified_ns: int
    size: int
    reason: str
    notices: str = ""


class Outcome(NamedTuple):
    """What became of one image: `reason` is empty where it has a picture."""

    reason: str
    notices: tuple[str, ...] = ()


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
    share the work on one folder; a call without it afterwards finds everything made. What was noticed of these images
    is then in notices.csv, see read_notices.
    Raises InputError for a size or number of workers below 1 and for an image_id that stands there twice.
    """
    from siimcovid.core.progress import progress_bar

    folder = Path(folder)
    workers = processors() if workers is None else workers
    if size < 1 or workers < 1:
        raise InputError(f"size {size} and workers {workers}: give at least 1 for each")
    if images["image_id"].duplicated().any():
        raise InputError(f"image {images['image_id'][images['image_id'].duplicated()].iloc[0]!r} is there twice")
    images = images.iloc[part[0] :: part[1]]
    make_folder(folder)
    paths = dict(zip(images["image_id"], images["path"], strict=True))
    made = _read_journal(folder)
    done, todo = _sort(paths, folder, size, made)
    if todo:
        jobs = [(paths[image], _picture_path(folder, image), size) for image in todo]
        quiet = None if progress else True
        bar = progress_bar(None, "prepare", "image", len(paths), initial=len(done), delay=1, disable=quiet)
        with bar, _journal(folder, made, part) as journal:
            for (_, picture, _), outcome in run_apart(_make, jobs, workers, LIMIT):
                if isinstance(outcome, Lost):
                    picture.unlink(missing_ok=True)
                    outcome = Outcome(outcome.reason)
                image = picture.stem
                done[image] = todo[image]._replace(reason=outcome.reason, notices="\t".join(outcome.notices))
                _write_line(journal, image, done[image])
                bar.update()
    failed = [(image, path, done[image].reason) for image, path in paths.items() if done[image].reason]
    noticed = [(image, notice) for image in paths for notice in done[image].notices.split("\t") if notice]
    _write_table(folder / "notices.csv", noticed, NOTICE_COLUMNS)
    return _write_table(folder / "failures.csv", failed, FAILURE_COLUMNS)


def read_notices(folder: Path | str) -> "pd.DataFrame":
    """notices.csv as a table, NOTICE_COLUMNS: what the last `prepare` noticed of its images; empty where none ran."""
    import pandas as pd

    try:
        return pd.read_csv(
            Path(folder) / "notices.csv", dtype=str, keep_default_na=False, encoding_errors="surrogateescape"
        )
    except FileNotFoundError:
        return pd.DataFrame(columns=list(NOTICE_COLUMNS), dtype=str)


def _sort(
    paths: dict[str, str], folder: Path, size: int, made: dict[str, Made]
) -> tuple[dict[str, Made], dict[str, Made]]:
    """Which images are done, with or without a picture, and which have to be made; of what, by image_id."""
    pictures = _pictures(folder)
    done, todo = {}, {}
    for image, path in paths.items():
        source, known = _source(path, size), made.get(image)
        if source.reason:
            _picture_path(folder, image).unlink(missing_ok=True)
            done[image] = source
        elif known and known[:3] == source[:3] and (known.reason or image in pictures):
            done[image] = known
        else:
            todo[image] = source
    return done, todo


def _write_table(path: Path, rows: list[tuple], columns: tuple[str, ...]) -> "pd.DataFrame":
    """Write rows of text as a CSV file, and return them as a table."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(columns), dtype=str)
    write_csv(table, path)
    return table


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


def _make(job: tuple[str, Path, int]) -> Outcome:
    """Make one picture, in a worker process."""
    path, picture, size = job
    cv2.setNumThreads(1)  # the processes share the processors among them already
    try:
        image, notices = read_picture(path) if is_picture(path) else read_image_with_notices(path)
    except DicomError as error:
        picture.unlink(missing_ok=True)  # an older one, of another image by this name
        return Outcome(error.reason)
    data = cv2.imencode(".png", fit(image, size), (cv2.IMWRITE_PNG_COMPRESSION, 1))[1]
    with atomic_path(picture) as temporary:
        data.tofile(temporary)
    return Outcome("", tuple(notices))


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
        with suppress(FileNotFoundError), open(journal, newline="", **ENCODING) as stream:
            for line in csv.reader(stream):
                with suppress(ValueError):  # the titles, or a torn line
                    image, source_bytes, modified, size, reason, notices = line
                    made[image] = Made(int(source_bytes), int(modified), int(size), reason, notices)
    return made


@contextmanager
def _journal(folder: Path, made: dict[str, Made], part: tuple[int, int]) -> Iterator[TextIO]:
    """prepared.csv, or a part's prepared-<k>-of-<n>.csv, written anew with a line for each image, and open for more."""
    path = folder / ("prepared.csv" if part[1] == 1 else f"prepared-{part[0]}-of-{part[1]}.csv")
    with atomic_path(path) as temporary, open(temporary, "w", newline="", **ENCODING) as stream:
        csv.writer(stream, lineterminator="\n").writerow(("image_id", *Made._fields))
        for image, line in made.items():
            _write_line(stream, image, line)
    with open(path, "a", newline="", buffering=1, **ENCODING) as stream:  # a line reaches the disk when it ends
        yield stream


def _write_line(stream: TextIO, image: str, line: Made) -> None:
    csv.writer(stream, lineterminator="\n").writerow((image, *line))
