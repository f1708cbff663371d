"""Reading other people's CSV files: as text, with errors that name the file, the column, the line and the value."""

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from siimcovid.core.errors import InputError

#: Endings of a table's file: plain, and as Kaggle and its users pack it.
PACKED = ("", ".gz", ".zip")

#: What damaged, foreign or encrypted files make the readers raise.
UNREADABLE = (OSError, EOFError, UnicodeError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, csv.Error)


def find_table(folder: Path | str, name: str) -> Path | None:
    """The CSV file `name` in `folder`, plain, gzipped or zipped (`name` + ".gz", ".zip"); None where there is none."""
    return next((path for end in PACKED if (path := Path(folder) / f"{name}{end}").is_file()), None)


def no_table(folder: Path | str, name: str) -> str:
    """The beginning of a message that `folder` has no CSV file `name`, with what lies there by a similar name."""
    stem = name.split(".")[0].lower()
    try:
        similar = sorted(entry.name for entry in Path(folder).iterdir() if entry.name.lower().startswith(stem))
    except OSError:
        similar = []
    return f"no {name} in {folder}" + (f", only {printable(some(similar))}" if similar else "")


def read_csv(path: Path | str, columns: Sequence[str] = (), complete: bool = False) -> pd.DataFrame:
    """Read a CSV file (plain, .gz or .zip) as text: an id such as 123456789e12 must not become a number, nor NA a gap.

    The first line holds the column titles. A title that is empty or there twice gets a number, unless it is one of
    `columns`.

    Raises:
        InputError: naming the file, where it is missing, damaged or no CSV, has a line of more or fewer fields than
            titles, lacks one of `columns` or has it twice, and with `complete` (for files that this package wrote)
            where the last line has no end.
    """
    content = _content(path)
    try:  # without titles, or pandas takes the first column for row labels where each line has a comma too many
        table = pd.read_csv(
            io.BytesIO(content), dtype=str, keep_default_na=False, header=None, encoding="utf-8-sig", low_memory=False
        )
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path} is empty: fetch it again") from error
    except pd.errors.ParserError as error:
        found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        what = _ragged(*map(int, found.groups())) if found else f"cannot be read as CSV ({_line(error)})"
        raise InputError(f"{path} {what}: correct it, or fetch it again") from error
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read as CSV ({_line(error)}): fetch it again") from error
    if complete and not content.endswith(b"\n"):
        raise InputError(f"{path} is cut off in its last line: write it again")
    if (table.iloc[:, -1] == "").any() and (short := _short_line(content, table.shape[1])):
        raise InputError(
            f"{path} has {short[1]} fields in line {short[0]}, where the titles are {table.shape[1]}: the file was cut "
            "off, or a comma is missing; fetch it again"
        )
    titles = table.iloc[0].tolist()
    if missing := [column for column in columns if column not in titles]:
        shown = some([repr(title)[1:-1] for title in titles], 20)
        raise InputError(f"{path} has no column {missing[0]!r} (it has {shown}): give the original file")
    if repeated := [column for column in columns if titles.count(column) > 1]:
        raise InputError(f"{path} has the column {repeated[0]!r} {titles.count(repeated[0])} times: remove all but one")
    return table.iloc[1:].reset_index(drop=True).set_axis(_distinct(titles), axis=1)


def read_lines(path: Path | str) -> list[list[str]]:
    """The fields of each line of a CSV file without titles, whose lines may differ in length; empty lines are left out.

    Raises InputError where the file is missing, damaged or no CSV.
    """
    try:
        text = io.StringIO(_content(path).decode("utf-8-sig"), newline="")
        return [line for line in csv.reader(text, strict=True) if any(field.strip() for field in line)]
    except (UnicodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV ({_line(error)}): fetch it again") from error


def _content(path: Path | str) -> bytes:
    """A file's bytes, unpacked. Raises InputError where it is missing or damaged."""
    path = Path(path)
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                return stream.read()
        if path.suffix == ".zip":
            return _zipped(path)
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give the file's name") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder: give a CSV file") from None
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read as CSV ({_line(error)}): fetch it again") from error


def _zipped(path: Path) -> bytes:
    """The table in a .zip: the file named as it is, or the only one. Raises ValueError where there are others."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        named = [name for name in names if name.rsplit("/", 1)[-1] == path.stem]
        if len(named or names) != 1:
            raise ValueError(f"it holds {len(names)} files, none or several of them {path.stem}")
        return archive.read((named or names)[0])


def _ragged(titles: int, line: int, fields: int) -> str:
    return (
        f"has {fields} fields in line {line}, where the lines before it have {titles}: a comma too many, at the end of "
        "the line perhaps, or a text without quotes"
    )


def _short_line(content: bytes, titles: int) -> tuple[int, int] | None:
    """The first line with fewer fields than titles, which pandas fills up, and their number; None where there is none.

    So it is too where a field is longer than the csv module reads.
    """
    lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    with suppress(csv.Error):
        return next(((lines.line_num, len(line)) for line in lines if 0 < len(line) < titles), None)
    return None


def _line(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _distinct(titles: Sequence[str]) -> list[str]:
    """Titles with a number behind those that are empty or were there before."""
    seen: dict[str, int] = {}
    named = []
    for title in titles:
        seen[title] = seen.get(title, 0) + 1
        named.append(title if seen[title] == 1 and title else f"{title}.{seen[title]}")
    return named


def numbers(table: pd.DataFrame, column: str, path: Path | str) -> pd.Series:
    """A column of text as finite floats; InputError names the file, the column and the first value that is none."""
    values = pd.to_numeric(table[column], errors="coerce").astype(float)
    wrong = table[column][~values.abs().lt(float("inf"))]
    if len(wrong):
        raise InputError(f"{path}: column {column!r} has {wrong.iloc[0][:80]!r} where a number should stand")
    return values


def some(items: Sequence[str], shown: int = 3) -> str:
    """The first of many names, for a message: "a, b, c and 7 more"."""
    more = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {more:,} more" if more > 0 else "")


def printable(text: str) -> str:
    """Text in which bytes of a file's name that are no UTF-8 (lone surrogates in Python) stand as escapes: \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def unescaped(text: str) -> str:
    """The inverse of `printable`: a path that can be opened again."""
    return re.sub(r"\\ud[c-f][0-9a-f]{2}", lambda escape: chr(int(escape[0][2:], 16)), text)
