"""The one place that finds input folders: given by hand, or by their marker files below Kaggle's mounts.

Kaggle mounts inputs as `/kaggle/input/<slug>`, `/kaggle/input/competitions/<slug>` or
`/kaggle/input/datasets/<owner>/<slug>`, and has changed its mind before, so a folder is known by what lies in it.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from siimcovid.core.errors import InputError
from siimcovid.core.tables import find_table

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
KAGGLE_TEMP = Path("/kaggle/temp")
COMPETITION_SLUG = "siim-covid19-detection"
SEARCH_DEPTH = 4  # datasets/<owner>/<slug>, and one folder more where an archive was unpacked into a folder of its own
SEARCH_WIDTH = 200  # a folder with more folders in it is data, and is not searched for inputs
WEIGHTS_MARKERS = "manifest.json and .safetensors files"
DATA_FOLDERS = {"train", "test", "images"}


def scratch_folder(output: Path) -> Path:
    """Where a run keeps files that nobody wants after it: in its output folder, but on Kaggle beside it.

    Kaggle keeps all of /kaggle/working as the kernel's output; /kaggle/temp is as large and ends with the session.
    """
    if not output.is_relative_to(KAGGLE_WORKING):
        return output
    try:
        KAGGLE_TEMP.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / "siimcovid"
    return KAGGLE_TEMP


def is_competition(folder: Path | str) -> bool:
    """Whether `folder` holds sample_submission.csv, and with it train_image_level.csv, train/ or test/."""
    folder = Path(folder)
    return find_table(folder, "sample_submission.csv") is not None and (
        find_table(folder, "train_image_level.csv") is not None
        or (folder / "test").is_dir()
        or (folder / "train").is_dir()
    )


def is_weights(folder: Path | str) -> bool:
    """Whether `folder` holds offline weights: manifest.json, written by `siimcovid weights`, beside .safetensors."""
    folder = Path(folder)
    return (folder / "manifest.json").is_file() and any(folder.glob("*.safetensors"))


def find_competition(explicit: Path | str | None = None, root: Path | str = KAGGLE_INPUT) -> Path:
    """The competition folder: `explicit` where it is given, else the one below `root`.

    Of several below `root` the one named as the competition's slug is taken; without it they are an InputError, as are
    none at all and an `explicit` that is no competition folder.
    """
    if explicit:
        return _checked(explicit, is_competition, "competition folder", "sample_submission.csv and train/ or test/")
    found = find_folders(Path(root), is_competition)
    named = [folder for folder in found if folder.name == COMPETITION_SLUG]
    return _only(
        named or found,
        f"no competition folder below {root}: attach the competition {COMPETITION_SLUG} to the notebook, or name "
        "the folder that holds sample_submission.csv and train/ or test/",
        "competition folders",
    )


def find_weights(explicit: Path | str | None = None, root: Path | str = KAGGLE_INPUT) -> Path:
    """The folder of offline weights: `explicit` where it is given, else the only one below `root`; else InputError."""
    if explicit:
        return _checked(explicit, is_weights, "folder of weights", WEIGHTS_MARKERS)
    return _only(find_folders(Path(root), is_weights), _no_weights(root), "folders of weights")


def find_all_weights(explicit: Path | str | None = None, root: Path | str = KAGGLE_INPUT) -> list[Path]:
    """All folders of offline weights: `explicit` first where it is given, then those below `root`.

    Raises InputError where `explicit` is none, or without it there is none below `root`.
    """
    given = [_checked(explicit, is_weights, "folder of weights", WEIGHTS_MARKERS)] if explicit else []
    mounted = find_folders(Path(root), is_weights)
    found = given + [folder for folder in mounted if not any(folder.samefile(other) for other in given)]
    if not found:
        raise InputError(_no_weights(root))
    return found


def _no_weights(root: Path | str) -> str:
    return (
        f"no weights below {root}: attach the dataset with manifest.json and .safetensors files, or name a folder "
        "that `siimcovid weights` or a training run wrote"
    )


def _checked(folder: Path | str, marked: Callable[[Path], bool], kind: str, marker: str) -> Path:
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        state = f"{folder} is a file" if folder.is_file() else f"no folder {folder}"
        raise InputError(f"{state}: give the {kind}, which holds {marker}")
    if not marked(folder):
        raise InputError(f"{folder} is no {kind}: give the folder that holds {marker}")
    return folder


def _only(found: list[Path], absent: str, kind: str) -> Path:
    if not found:
        raise InputError(absent)
    if len(found) > 1:
        raise InputError(f"several {kind} ({', '.join(map(str, found))}): name the one to use")
    return found[0]


def find_folders(root: Path, marked: Callable[[Path], bool]) -> list[Path]:
    """Marked folders in `root` and at most SEARCH_DEPTH below it, sorted; what lies inside a marked one is not read."""
    found, level = [], [root] if root.is_dir() else []
    for depth in range(SEARCH_DEPTH + 1):
        found += [folder for folder in level if marked(folder)]
        if depth < SEARCH_DEPTH:
            level = [inner for folder in level if not marked(folder) for inner in _subfolders(folder)]
    return sorted({folder.resolve(): folder for folder in sorted(found, reverse=True)}.values())  # a link counts once


def _subfolders(folder: Path) -> list[Path]:
    """The folders inside `folder` in which inputs may lie: none where there are too many, and no image folders."""
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    except OSError:  # a mount that may not be listed holds nothing that could be read
        return []
    return [] if len(names) > SEARCH_WIDTH else sorted(folder / name for name in names if name not in DATA_FOLDERS)
