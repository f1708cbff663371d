"""Files that are either whole or absent: atomic writes and checksums."""

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

if TYPE_CHECKING:  # worker processes import this module, and need no pandas
    import pandas as pd


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to; on success it replaces `path`, on error it is removed.

    The sibling lies in the same folder (so the rename is atomic) and keeps the suffix, which writers look at.
    The folder is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically, with line ends as given."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


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

    Bytes of a file's name that are no UTF-8 (which Python keeps as lone surrogates) are written as the six characters
    of their escape, such as \\udcff: see tables.unescaped.
    """
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=index, lineterminator="\n", errors="backslashreplace")


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
