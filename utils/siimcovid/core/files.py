"""Files that are either whole or absent: atomic writes and checksums. Also text, JSON and CSV as they are written here.

A place that cannot be written to (a file where a folder should be, a folder where a file should be, a full disk, no
permission, a name that is too long) raises OutputError, in one sentence that names it.
"""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siimcovid.core.errors import OutputError

if TYPE_CHECKING:  # worker processes import this module, and need no pandas
    import pandas as pd

#: What to do about an OSError, by its number.
WAYS_OUT = {
    errno.ENOSPC: "free some room, or name another place",
    errno.EDQUOT: "free some room, or name another place",
    errno.EROFS: "name another place",
    errno.EACCES: "name another place, or let this user write there",
    errno.EPERM: "name another place, or let this user write there",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name another place, or move the file away",
    errno.EEXIST: "name another place, or move the file away",
}


def make_folder(folder: Path | str) -> Path:
    """Make a folder with all those above it, unless it is there. Raises OutputError where that cannot be."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _output_error(folder, error) from error
    return folder


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to; on success it replaces `path`, on error it is removed.

    The sibling lies in the same folder (so the rename is atomic) and keeps the suffix, by which writers choose
    a format. The folder is made where it is missing. Raises OutputError where the place cannot be written to.
    """
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(f".{path.stem[:40]}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, OutputError) or not _concerns(error, temporary, path):
            raise
        raise _output_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_writable(path: Path | str) -> None:
    """Make the folder of the file `path`. Raises OutputError where it cannot be made, or `path` is itself a folder.

    For commands that work long before they write: called first, it spares the work.
    """
    path = Path(path)
    make_folder(path.parent)
    if os.path.isdir(path):
        raise _output_error(path, IsADirectoryError(errno.EISDIR, "it is a folder"))
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name that no file can have
        raise _output_error(path, error) from error


def _concerns(error: OSError, *paths: Path) -> bool:
    """Whether an OSError is about one of the paths, or about no file in particular (as that of a full disk)."""
    names = {os.fspath(path) for path in paths}
    return error.errno in WAYS_OUT and (error.filename is None or os.fsdecode(error.filename) in names)


def _output_error(path: Path, error: Exception) -> OutputError:
    number = getattr(error, "errno", None)
    blocking = next((above for above in (path, *path.parents) if os.path.isfile(above)), None)
    if number in (errno.ENOTDIR, errno.EEXIST) and blocking is not None:
        reason = f"{blocking} is a file, not a folder"
    else:
        reason = getattr(error, "strerror", None) or str(error)
    made = OutputError(f"{path} cannot be written, {reason}: {WAYS_OUT.get(number, 'name another place')}")
    made.errno = number
    return made


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically, with line ends as given; for bytes of file names that are no UTF-8 see write_csv."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically: two-space indent, keys in the order given, a final newline, NaN refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def nan_to_null(value: Any) -> Any:
    """The same tree of dicts, lists and tuples with None, JSON's null, in the place of every NaN."""
    if isinstance(value, Mapping):
        return {key: nan_to_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_csv(table: "pd.DataFrame", path: Path | str, index: bool = False) -> None:
    """Write a table as CSV atomically: UTF-8, lines end in a line feed, with `index` the row labels come first.

    Bytes of a file's name that are no UTF-8, which Python keeps as lone surrogates, are written as their escapes, such
    as \\udcff; tables.unescaped makes them paths again.
    """
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=index, lineterminator="\n", encoding="utf-8", errors="backslashreplace")


def link(source: Path | str, target: Path | str) -> None:
    """Give a file a second name, which takes no room; where the disk cannot, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
