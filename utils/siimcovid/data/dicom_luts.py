"""Look-up tables of a DICOM header, as far as they are whole.

In: a data set and the keyword of its sequence. Out: an item with plain numbers that pydicom's functions can apply, or
None with a notice for a table that is broken.
"""

from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from siimcovid.data.dicom_numbers import raw_values, read_numbers

#: Bits of an entry that pydicom can apply.
DEPTHS = (8, *range(10, 17))


def read_lut(dataset: Dataset, keyword: str, notices: list[str]) -> Dataset | None:
    """The first item of ModalityLUTSequence or VOILUTSequence, with LUTDescriptor and LUTData as lists of numbers.

    None where there is no item, or one without a descriptor or without data; None with a notice where it is broken:
    the descriptor has not three whole numbers, or there are fewer entries than it says. A depth that does not fit the
    entries becomes 16, which changes no entry.
    """
    items = raw_values(dataset, keyword)
    if not items:
        return None
    if not isinstance(items[0], Dataset):
        notices.append(f"{keyword} is damaged and ignored")
        return None
    descriptor, data = read_numbers(items[0], "LUTDescriptor", []), _raw_data(items[0])
    if not descriptor or data is None:
        return None
    if len(descriptor) != 3 or any(value is None or value != int(value) for value in descriptor):
        notices.append(f"{keyword} is ignored: its descriptor is damaged")
        return None
    count, first, depth = (int(value) for value in descriptor)
    count = count % 2**16 or 2**16  # 65,536 is written as 0, and read as negative where it is taken as signed
    entries = _entries(data, count, little=dataset.original_encoding[1] is not False)
    if len(entries) < count:
        notices.append(f"{keyword} is ignored: it has {len(entries):,} of {count:,} entries")
        return None
    if dataset.PixelRepresentation and 2**15 <= first < 2**16:
        first -= 2**16  # a negative value that was written as unsigned
    entries = entries[:count]
    if depth not in DEPTHS or max(entries) >= 2**depth or _is_packed(data, count):
        depth = 16
    if count == 1:
        count, entries = 2, entries * 2  # pydicom takes a list of one for a number
    item = Dataset()
    item.add_new("LUTDescriptor", "SL", [count % 2**16, first, depth])
    item.add_new("LUTData", "UL", entries)
    return item


def _raw_data(item: Dataset) -> Any:
    """LUTData as pydicom reads it, or its bytes where it cannot."""
    try:
        return item["LUTData"].value if "LUTData" in item else None
    except Exception:  # nearly any type, for a value that does not fit its VR
        return getattr(item.get_item("LUTData"), "value", None)


def _entries(data: Any, count: int, little: bool) -> list[int]:
    """Entries of 8 or 16 bits; [] where they are no whole numbers."""
    if isinstance(data, bytes):
        if _is_packed(data, count):
            return list(data)
        return np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2").tolist()
    try:
        return [int(entry) % 2**16 for entry in ([data] if isinstance(data, (int, float)) else data)]
    except (TypeError, ValueError, OverflowError):
        return []


def _is_packed(data: Any, count: int) -> bool:
    """Whether the entries have 8 bits each, two to a word."""
    return isinstance(data, bytes) and len(data) in (count, count + 1) and len(data) < 2 * count
