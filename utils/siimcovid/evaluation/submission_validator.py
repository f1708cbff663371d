"""Checks a submission's format against the sample submission, naming every fault with its line.

In:  the submission, the sample submission (header and ids) and, if at hand, a CSV of image sizes: image_id with rows
     and columns, or with dim0 and dim1. Each may be gzipped.
Out: a `Verdict`. The standard library alone does it, so the answer is there before pandas would be imported.

A sound row holds tuples `label confidence xmin ymin xmax ymax`, separated by spaces:
- a `_study` row: study labels, each at most once, with the dummy box 0 0 1 1;
- an `_image` row: any number of `opacity` boxes with xmin < xmax and ymin < ymax inside the image, up to its edge, and
  at most one `none` with the dummy box.
Rows may come in any order. A confidence must be finite and nothing more: the metric only ranks them. A box may begin
before the left or upper edge by 0.3 % of its side, since the competition's own truth does so once (by 0.26 %, image
6ea732c63929).
"""

import csv
import gzip
import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from siimcovid.core.errors import InputError
from siimcovid.core.labels import CLASSES, STUDY_LABELS

NAMES = ("label", "confidence", "xmin", "ymin", "xmax", "ymax")
LABELS = {"study": STUDY_LABELS, "image": ("none", "opacity")}
UNBOUNDED = (sys.float_info.max, sys.float_info.max)  # the size of an image whose size is not known; below infinity
OVERHANG = 0.003
SIZE_COLUMNS = (("rows", "columns"), ("dim0", "dim1"))


@dataclass
class Holdings:
    """What the sound rows of a submission hold."""

    rows: dict[str, int] = field(default_factory=lambda: {"study": 0, "image": 0})
    confidences: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in CLASSES})
    most_boxes: int = 0  # in one image

    def add(self, kind: str, tuples: list[tuple]) -> None:
        """Count one row of parsed tuples (label, five numbers)."""
        self.rows[kind] += 1
        for label, confidence, *_ in tuples:
            self.confidences[label].append(confidence)
        if kind == "image":
            self.most_boxes = max(self.most_boxes, sum(parts[0] == "opacity" for parts in tuples))

    def as_text(self) -> str:
        """A line for the rows, one for the boxes and one for each class."""
        boxes, images = len(self.confidences["opacity"]), self.rows["image"]
        lines = [
            f"study rows {self.rows['study']}, image rows {images}",
            f"boxes {boxes}: {boxes / max(images, 1):.2f} an image, at most {self.most_boxes}",
        ]
        for name, values in self.confidences.items():
            extent = f", confidence {min(values):g} to {max(values):g}" if values else ""
            lines.append(f"{name:<14}{len(values):>8}{extent}")
        return "\n".join(lines)


@dataclass
class Verdict:
    """Faults, each one sentence that begins with its line, in order of lines; and what the sound rows hold."""

    faults: list[str] = field(default_factory=list)
    holdings: Holdings = field(default_factory=Holdings)


def validate(submission: Path, sample: Path, sizes: Path | None = None) -> Verdict:
    """Check a submission.

    Raises InputError where a file cannot be read, or where `sample` or `sizes` is not what it should be.
    """
    header, sample_lines = _read_sample(sample)
    size_of = read_sizes(sizes) if sizes else {}
    text = _read(submission)
    verdict, first_line = Verdict(), {}
    if not text.strip():
        verdict.faults.append("line 1: the file is empty")
        return verdict
    if text.startswith("\ufeff"):
        verdict.faults.append("line 1: a byte order mark stands before the header; write plain UTF-8")
        text = text[1:]
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    at, delimiter, columns, has_header = _header(lines[0].removesuffix("\r"), header, sample_lines, verdict.faults)

    for number, line in enumerate(lines[has_header:], start=1 + has_header):
        row = _Row(line.removesuffix("\r"), delimiter, columns, at)
        faults = list(row.faults)
        if row.identifier is not None:
            if row.identifier in first_line:
                faults.append(f"the id is repeated, first on line {first_line[row.identifier]}")
            elif row.identifier not in sample_lines:
                faults.append("the id is not in the sample")
            first_line.setdefault(row.identifier, number)
            kind = row.identifier.rpartition("_")[2]
            if row.text is not None and kind in LABELS:
                size = size_of.get(row.identifier.removesuffix("_image"), UNBOUNDED)
                tuples = _parse(row.text)
                if tuples is None or not _is_sound(kind, tuples, size):
                    faults += _row_faults(kind, row.text, size)
                if not faults:
                    verdict.holdings.add(kind, tuples)
        where = f"line {number}: " + (f"{row.identifier}: " if row.identifier else "")
        verdict.faults += [where + fault for fault in faults]
    missing = [name for name in sample_lines if name not in first_line]
    verdict.faults += [f"line {sample_lines[name]} of the sample: {name}: the id is missing" for name in missing]
    verdict.faults = [fault if fault.isprintable() else ascii(fault)[1:-1] for fault in verdict.faults]
    return verdict


def _read(path: Path) -> str:
    """The file's text; bytes that are no UTF-8 become lone surrogates, which `_Row` reports on their line."""
    try:
        data = Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return data.decode("utf-8", errors="surrogateescape")


def _read_sample(path: Path) -> tuple[list[str], dict[str, int]]:
    """The sample's header and its ids with their lines."""
    rows = list(csv.reader(_read(path).removeprefix("\ufeff").splitlines()))
    if not rows or len(rows[0]) != 2:
        raise InputError(f"{path} is no sample submission: its header must have two columns, an id and the predictions")
    lines = {row[0]: number for number, row in enumerate(rows, start=1) if number > 1 and row}
    strange = [name for name in lines if name.rpartition("_")[2] not in LABELS]
    if strange or not lines:
        raise InputError(
            f"{path} is no sample submission: ids must end in _study or _image ({strange[:1] or 'no rows'})"
        )
    return rows[0], lines


def read_sizes(path: Path) -> dict[str, tuple[float, float]]:
    """Image id -> (rows, columns); images of unknown size (0) are left out."""
    table = csv.DictReader(_read(path).removeprefix("\ufeff").splitlines())
    names = table.fieldnames or []
    pair = next((pair for pair in SIZE_COLUMNS if {"image_id", *pair} <= set(names)), None)
    if pair is None:
        raise InputError(f"{path} must have the columns image_id, rows, columns (or image_id, dim0, dim1), not {names}")
    try:
        sizes = {line["image_id"]: (float(line[pair[0]]), float(line[pair[1]])) for line in table}
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} has a size that is no number: {error}") from error
    return {name: size for name, size in sizes.items() if min(size) > 0}


def _header(
    line: str, header: list[str], ids: Mapping[str, int], faults: list[str]
) -> tuple[tuple[int, int], str, int, bool]:
    """Where id and predictions stand, the delimiter, the number of columns, and whether the line is a header at all.

    Whatever can be guessed is reported once, here, and the rows are then read accordingly.
    """
    delimiter = max(",;\t|", key=line.count)  # the first of equals
    if delimiter != ",":
        faults.append(f"line 1: the fields are separated by {delimiter!r} instead of ','")
    fields = _split(line, delimiter) or [line]
    has_header = fields[0] not in ids
    if not has_header:
        faults.append(f"line 1: the header {','.join(header)!r} is missing")
    elif fields != header:
        faults.append(f"line 1: the header is {','.join(fields)!r} instead of {','.join(header)!r}")
    at = (fields.index(header[0]), fields.index(header[1])) if set(header) <= set(fields) else (0, 1)
    return at, delimiter, len(fields), has_header


def _split(line: str, delimiter: str) -> list[str] | None:
    """The fields of one line, None where a quote is left open."""
    if '"' not in line:
        return line.split(delimiter)
    csv.field_size_limit(max(csv.field_size_limit(), len(line)))
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return None


class _Row:
    """One line taken apart: identifier and text, None where the line does not have them, and the faults in doing so."""

    def __init__(self, line: str, delimiter: str, columns: int, at: tuple[int, int]):
        self.identifier, self.text, self.faults = None, None, []
        if not line.strip():
            self.faults = ["the line is empty"]
            return
        if not line.isascii() and any("\udc80" <= character <= "\udcff" for character in line):
            self.faults.append("bytes that are not UTF-8")
        fields = _split(line, delimiter)
        if fields is None:
            self.faults.append("the line's quotes are not balanced")
            fields = line.split(delimiter)
        if len(fields) != columns:
            self.faults.append(f"{len(fields)} fields instead of {columns}")
        if len(fields) > at[0]:
            self.identifier = fields[at[0]]
        if len(fields) > at[1]:
            self.text = fields[at[1]]


def _parse(text: str) -> list[tuple] | None:
    """(label, confidence, xmin, ymin, xmax, ymax) of each tuple, or None where the text is anything but six-tuples.

    Python's float takes "1_0" and other scripts' digits; those count as no number.
    """
    tokens = text.split()
    if not tokens or len(tokens) % 6 or "_" in text or not (text.isascii() and text.isprintable()):
        return None
    try:
        return list(zip(tokens[::6], *(list(map(float, tokens[nth::6])) for nth in range(1, 6)), strict=True))
    except ValueError:
        return None


def _is_sound(kind: str, tuples: list[tuple], size: tuple[float, float]) -> bool:
    """True only where `_row_faults` would find nothing; the quick way through sound rows (comparisons fail on nan)."""
    rows, columns = size
    once = list(LABELS[kind]) if kind == "study" else ["none"]
    for label, confidence, x1, y1, x2, y2 in tuples:
        if not -math.inf < confidence < math.inf:
            return False
        if label == "opacity":
            if kind != "image" or not (0 <= x1 < x2 <= columns and 0 <= y1 < y2 <= rows):
                return False
        elif label not in once or (x1, y1, x2, y2) != (0, 0, 1, 1):
            return False
        else:
            once.remove(label)
    return True


def _row_faults(kind: str, text: str, size: tuple[float, float]) -> Iterator[str]:
    """Every fault of one PredictionString, each naming its tuple."""
    if not (text.isascii() and text.isprintable()):
        yield "the predictions hold characters other than printable ASCII"
    tokens = text.split()
    if not tokens:
        yield "the predictions are empty"
    seen = set()
    for number, parts in enumerate(_tuples(tokens), start=1):
        for fault in _tuple_faults(kind, parts, size, seen):
            yield f"tuple {number} ({' '.join(parts)}): {fault}"


def _tuples(tokens: list[str]) -> list[list[str]]:
    """Tokens cut into tuples: every six where that puts known labels first, otherwise before each word."""
    if len(tokens) % 6 == 0 and set(tokens[::6]) <= set(CLASSES):
        return [tokens[start : start + 6] for start in range(0, len(tokens), 6)]
    cuts = [index for index, token in enumerate(tokens) if index == 0 or _number(token) is None]
    return [tokens[start:end] for start, end in zip(cuts, [*cuts[1:], len(tokens)], strict=True)]


def _tuple_faults(kind: str, parts: list[str], size: tuple[float, float], seen: set[str]) -> Iterator[str]:
    label = parts[0]
    if label not in CLASSES:
        yield f"the label {label!r} is unknown; the labels are {', '.join(CLASSES)}"
    elif label not in LABELS[kind]:
        yield f"the label {label!r} is misplaced: a row of this kind takes {', '.join(LABELS[kind])}"
    elif label in seen and label != "opacity":
        yield f"the label {label!r} is repeated"
    seen.add(label)
    if len(parts) != len(NAMES):
        yield f"{len(parts)} values instead of {len(NAMES)} ({' '.join(NAMES)})"
        return
    numbers = [_number(token) for token in parts[1:]]
    for name, token, number in zip(NAMES[1:], parts[1:], numbers, strict=True):
        if number is None:
            yield f"{name} {token!r} is no number"
        elif not math.isfinite(number):
            yield f"{name} {token!r} is not finite"
    if any(number is None or not math.isfinite(number) for number in numbers):
        return
    if label == "opacity":
        yield from _box_faults(numbers[1:], size)
    elif label in CLASSES and numbers[1:] != [0, 0, 1, 1]:
        yield "the dummy box must be 0 0 1 1"


def _box_faults(box: list[float], size: tuple[float, float]) -> Iterator[str]:
    x1, y1, x2, y2 = box
    for axis, low, high, extent, side in (("x", x1, x2, size[1], "columns"), ("y", y1, y2, size[0], "rows")):
        if low >= high:
            yield f"the box is inverted or empty: {axis}min {low:g} is not below {axis}max {high:g}"
        if min(low, high) < -OVERHANG * abs(high - low):
            yield f"the box is outside the image: {axis}min {min(low, high):g} is below 0"
        if max(low, high) > extent:
            yield f"the box is outside the image: {axis}max {max(low, high):g} is above its {extent:g} {side}"


def _number(token: str) -> float | None:
    try:
        return None if "_" in token or not token.isascii() else float(token)
    except ValueError:
        return None
