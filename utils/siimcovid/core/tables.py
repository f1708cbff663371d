"""Reading other people's CSV files: as text, with errors that name the file, the column and the value."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from siimcovid.core.errors import InputError


def find_table(folder: Path | str, name: str) -> Path | None:
    """The CSV file `name` in `folder`, plain or gzipped (`name` + ".gz"); None where there is neither."""
    return next((path for path in (Path(folder) / name, Path(folder) / f"{name}.gz") if path.is_file()), None)


def read_csv(path: Path | str, columns: Sequence[str] = (), header: int | None = 0) -> pd.DataFrame:
    """Read a CSV file (plain or .gz) as text: an id such as 123456789e12 must not become a number, nor NA a gap.

    `header` is the line of the column titles, None where there is none. Raises InputError naming the file where it is
    no CSV, and the first of `columns` that it lacks.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, header=header).fillna("")
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path} is empty: fetch it again") from error
    except (OSError, EOFError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise InputError(f"{path} cannot be read as CSV ({error}): fetch it again") from error
    if missing := [column for column in columns if column not in table]:
        raise InputError(f"{path} has no column {missing[0]!r} (it has {', '.join(table)}): give the original file")
    return table


def numbers(table: pd.DataFrame, column: str, path: Path | str) -> pd.Series:
    """A column of text as finite floats; InputError names the file, the column and the first value that is none."""
    values = pd.to_numeric(table[column], errors="coerce")
    wrong = table[column][~values.abs().lt(float("inf"))]
    if len(wrong):
        raise InputError(f"{path}: column {column!r} has {wrong.iloc[0]!r} where a number should stand")
    return values.astype(float)


def some(items: Sequence[str], shown: int = 3) -> str:
    """The first of many names, for a message: "a, b, c and 7 more"."""
    more = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {more:,} more" if more > 0 else "")
