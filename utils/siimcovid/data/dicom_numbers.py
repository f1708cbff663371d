"""Numbers of a DICOM header, read whatever stands where they should.

In: a data set and the keyword of an element. Out: finite numbers, and a notice for each text that had to be repaired or
left out. Nothing here raises for damaged data.
"""

import math
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset


def read_numbers(dataset: Dataset, keyword: str, notices: list[str]) -> list[float | None]:
    """The values of an element as floats, None in place of one that is no finite number; [] where there is none.

    A decimal comma is read as a point. `notices` gets a sentence for everything that was read differently or not at
    all.
    """
    return [_number(value, keyword, notices) for value in raw_values(dataset, keyword)]


def read_number(dataset: Dataset, keyword: str, notices: list[str]) -> float | None:
    """The first value of an element that should have one; None where it is absent, empty or no finite number."""
    values = read_numbers(dataset, keyword, notices)
    if len(values) > 1:
        notices.append(f"{keyword} has {len(values)} values, of which the first is used")
    return values[0] if values else None


def read_integer(dataset: Dataset, keyword: str, notices: list[str]) -> int | None:
    """The same for a whole number."""
    value = read_number(dataset, keyword, notices)
    return None if value is None or value != int(value) else int(value)


def raw_values(dataset: Dataset, keyword: str) -> list[Any]:
    """The values of an element as pydicom reads them, or as text where it cannot; [] where it is absent or empty."""
    if keyword not in dataset:
        return []
    try:
        value = dataset[keyword].value
    except Exception:  # pydicom raises nearly any type for a value that does not fit its VR
        value = getattr(dataset.get_item(keyword), "value", None)
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    texts = [one.strip(" \0") if isinstance(one, str) else one for one in values]
    return [] if all(one is None or one == "" for one in texts) else texts


def shown(value: Any) -> str:
    """A header's value for a notice: one short line without control characters."""
    return one_line(f"{value:g}" if isinstance(value, float) else str(value), 40)


def one_line(text: str, longest: int = 300) -> str:
    """A text of any origin as one printable line of at most `longest` letters."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _number(value: Any, keyword: str, notices: list[str]) -> float | None:
    try:
        number = float(value.replace(",", ".") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (isinstance(value, str) and "_" in value):
        notices.append(f"{keyword} '{shown(value)}' is no number and is ignored")
        return None
    if isinstance(value, str) and "," in value:
        notices.append(f"{keyword} '{shown(value)}' is read as {number:g}")
    return number
