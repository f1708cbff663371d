"""The same image under several image ids: found among the prepared images, kept on one side of a fold, trained on once.

In: rows of the index and the cache. Out: groups of image ids; and the rows with one image of each group. A file in the
cache, thumbnails.npz, keeps a thumbnail of each image, so that only the first call reads the images:

    image_id  (n,) text
    state     (n, 2) int64, length in bytes and date in ns of the picture that the thumbnail is of
    pixels    (n, SIDE, SIDE) uint8, the image stretched to a square, area averages

A competitor's list of duplicates, train_duplicates.csv (plain, .gz or .zip; see read_duplicates), is used too where it
lies in the competition folder.

Images are compared by details finer than a lung, since blurred chest images resemble each other: of thumbnails as they
are, the two most similar images of NIH's that are not the same correlate by .97, and a copy with another greyscale
curve by .99. After a high pass, whose strongest edges (a collimator's, a frame's) are clipped to the common ones, it is

    different images   at most .71 among 782 of NIH's, several of a patient included; .84 among the 375 synthetic ones
    copies, the worst of 969   JPEG at quality 75 .994; shrunk to .7 of the side .980; that, JPEG and inverted .979; the
                      window cut by 1 % at both ends .981; gamma 1.5 .954
"""

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path
from siimcovid.core.processes import processors
from siimcovid.core.tables import find_table, read_lines
from siimcovid.data import image_cache

#: Side of a thumbnail in pixels, and the deviation of the blur that is subtracted from it, in the same.
SIDE, BLUR = 48, 2.0

#: Absolute correlation from which two images are the same: between the figures above, nearer to the copies', since a
#: image that is wrongly left out of training is lost.
SAME = 0.93

#: Standard deviation, in grey levels of 255, below which an image shows nothing that could be compared.
CONTRAST = 0.5

#: Images that are compared with all others at once.
BLOCK = 512

LIST, MEMORY = "train_duplicates.csv", "thumbnails.npz"


def find(images: pd.DataFrame, folder: Path) -> list[list[str]]:
    """Groups of two or more image ids of the same image, those of the list included, each sorted.

    images: rows of the index whose image lies in the cache `folder`; one that cannot be read resembles nothing. Chains
    are one group: of a copy's copy, all three. Raises InputError where the list is no CSV.
    """
    names = images["image_id"].tolist()
    place = {name: k for k, name in enumerate(names)}
    pairs = list(same(thumbnails(names, Path(folder))))
    for group in listed(images):
        known = [place[name] for name in group if name in place]
        pairs += [(known[0], other) for other in known[1:]]
    if not pairs:
        return []
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = np.array(pairs).T
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(len(names), len(names)))
    label = pd.Series(connected_components(graph, directed=False)[1], index=names)
    label = label[label.duplicated(keep=False)]
    return sorted(sorted(group.index) for _, group in label.groupby(label))


def listed(images: pd.DataFrame) -> list[list[str]]:
    """The groups of the list in the folder that the images lie in, as <folder>/train/<study>/<series>/<image>.dcm."""
    parents = next((Path(path).parents for path in images["path"] if path), ()) if "path" in images else ()
    path = find_table(parents[3], LIST) if len(parents) > 3 else None
    return read_duplicates(path) if path else []


def read_duplicates(path: Path | str) -> list[list[str]]:
    """Image ids that show the same image, from a CSV without titles: a set of ids, with or without _image, a line.

    Lines may be of any length. Raises InputError where the file is no CSV.

    The list that circulates for this competition has lost its ids' leading zeros; they are put back, to 12 digits.
    """
    return [
        [name.strip().removesuffix("_image").zfill(12) for name in line if name.strip()] for line in read_lines(path)
    ]


def once(images: pd.DataFrame, groups: Iterable[Sequence[str]]) -> pd.DataFrame:
    """The rows with one image of each group, in their order; without groups, the same rows.

    Copies may be of several studies, and their truth may differ. Kept is an annotated copy before one that is not;
    then one with boxes before one without, since an opacity is overlooked sooner than invented; then one of
    the study label that most of those left have; then the first by its id.
    """
    left_out: set[str] = set()
    for group in groups:
        copies = images[images["image_id"].isin(group)].sort_values("image_id")
        names = copies["image_id"]
        for better in (copies["annotated"], copies["boxes"].map(len) > 0):
            copies = copies[better[copies.index]] if better[copies.index].any() else copies
        if copies["study_label"].notna().any():
            counts = copies.groupby("study_label")["image_id"].transform("size").fillna(0)
            copies = copies[counts == counts.max()]
        left_out |= {*names} - {*copies["image_id"].head(1)}
    return images[~images["image_id"].isin(left_out)] if left_out else images


def same(pixels: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs (k, l), k < l, of thumbnails (n, SIDE, SIDE) that show one image, upright or inverted in grey."""
    fine = np.stack([_fine(square) for square in pixels]) if len(pixels) else np.empty((0, SIDE * SIDE), np.float32)
    for start in range(0, len(fine), BLOCK):
        likeness = np.triu(np.abs(fine[start : start + BLOCK] @ fine[start:].T), 1)
        for k, other in zip(*np.nonzero(likeness >= SAME), strict=True):
            yield start + int(k), start + int(other)


def _fine(square: np.ndarray) -> np.ndarray:
    """A thumbnail without what is coarse, of length 1 and mean 0: (SIDE * SIDE,) float32. Zeros where it is flat."""
    grey = square.astype(np.float32)
    fine = grey - cv2.GaussianBlur(grey, (0, 0), BLUR)
    if (deviation := float(fine.std())) < CONTRAST:
        return np.zeros(fine.size, np.float32)
    fine = fine.clip(-deviation, deviation).ravel()
    fine -= fine.mean()
    return fine / np.linalg.norm(fine)


def thumbnails(names: Sequence[str], folder: Path) -> np.ndarray:
    """(n, SIDE, SIDE) uint8 thumbnails of the images of these image ids; black where one cannot be read."""
    known = _read(folder / MEMORY)
    states = {name: state for name in names if (state := _state(folder, name))}
    new = [name for name, state in states.items() if name not in known or known[name][0] != state]
    if new:
        with ThreadPoolExecutor(processors()) as threads:
            made = zip(new, threads.map(lambda name: _shrunk(folder, name), new), strict=True)
            known |= {name: (states[name], square) for name, square in made}
        with suppress(OSError):  # a full or read-only disk: the next call reads the images again
            _write(folder / MEMORY, known)
    black = np.zeros((SIDE, SIDE), np.uint8)
    found = [known[name][1] if name in states else black for name in names]
    return np.stack(found) if found else np.empty((0, SIDE, SIDE), np.uint8)


def _state(folder: Path, name: str) -> tuple[int, int] | None:
    try:
        state = os.stat(folder / f"{name}.png")
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _shrunk(folder: Path, name: str) -> np.ndarray:
    try:
        pixels = image_cache.read(folder, name)
    except InputError:  # training on it raises the error
        return np.zeros((SIDE, SIDE), np.uint8)
    return cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _read(path: Path) -> dict[str, tuple[tuple[int, int], np.ndarray]]:
    """Image id -> state and thumbnail; empty where the file is missing, damaged or of another side."""
    try:
        with np.load(path) as stored:
            names, states, pixels = (stored[key] for key in ("image_id", "state", "pixels"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    if pixels.shape != (len(names), SIDE, SIDE):
        return {}
    return {str(n): ((int(s[0]), int(s[1])), square) for n, s, square in zip(names, states, pixels, strict=True)}


def _write(path: Path, known: dict[str, tuple[tuple[int, int], np.ndarray]]) -> None:
    states, pixels = zip(*known.values(), strict=True)
    with atomic_path(path) as temporary:
        np.savez(temporary, image_id=np.array(list(known)), state=np.array(states), pixels=np.stack(pixels))
