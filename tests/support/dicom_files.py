"""DICOM files and JPEG Lossless codestreams for tests, of every kind that images come in, and what they should show."""

import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

ROWS, COLUMNS = 23, 17


def write(
    path: Path | BinaryIO,
    pixels: np.ndarray,
    stored: int,
    *,
    signed: bool = False,
    allocated: int | None = None,
    syntax: str = ExplicitVRLittleEndian,
    frames: list[bytes] | None = None,
    **tags,
) -> Path | BinaryIO:
    """Write pixels (rows, columns[, 3]) as a DICOM file; `tags` are set last, None deletes one.

    A DataElement among them is written with its own VR, whatever the standard's is.
    """
    allocated = allocated or (8 if stored <= 8 else 16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    dataset.PixelRepresentation = int(signed)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = pixels.astype(f"{order}{'i' if signed else 'u'}{allocated // 8}").tobytes()
    dataset.PixelData = encapsulate(frames) if frames else data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if frames or allocated == 8 else "OW"
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        elif isinstance(value, DataElement):
            dataset.add(value)
        else:
            setattr(dataset, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)
    return path


def text(name: str, value: str) -> DataElement:
    """A text where the standard wants a number. It is not checked."""
    return DataElement(name, "LO", value)


def replace_pixels(path: Path, value: bytes, length: int | None = None) -> Path:
    """Let a file end with this value of its pixel data; length: what it says of that, by default what it is."""
    content = path.read_bytes()
    start = content.rindex(b"\xe0\x7f\x10\x00O")
    length = len(value) if length is None else length
    path.write_bytes(content[: start + 8] + struct.pack("<I", length) + value)
    return path


def insert(path: Path, element: bytes, before: str = "SamplesPerPixel") -> Path:
    """Put the bytes of an element in front of another one."""
    content, tag = path.read_bytes(), tag_for_keyword(before)
    start = content.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
    path.write_bytes(content[:start] + element + content[start:])
    return path


def table(first: int, depth: int, entries: list[int], signed: bool = False) -> Dataset:
    """An item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(entries), first, depth])
    item.LUTExplanation = ""
    item.add_new("LUTData", "US", entries)
    return item


def jpeg_lossless(pixels: np.ndarray, precision: int, predictor: int = 1, restart_rows: int = 0) -> bytes:
    """A JPEG Lossless codestream (ITU-T T.81, process 14) of values below 2**precision.

    All seventeen difference categories have codes of five bits. `restart_rows`: a restart marker after so many rows.
    """
    bits, scan, above = [], bytearray(), []

    def flush() -> None:
        bits.extend("1" * (-len(bits) % 8))
        data = int("0" + "".join(bits), 2).to_bytes(len(bits) // 8, "big")
        scan.extend(data.replace(b"\xff", b"\xff\0"))
        bits.clear()

    for y, row in enumerate(pixels.tolist()):
        restart = restart_rows and y and y % restart_rows == 0
        if restart:
            flush()
            scan.extend((0xFF, 0xD0 + (y // restart_rows - 1) % 8))
        for x, value in enumerate(row):
            if y == 0 or restart:
                predicted = row[x - 1] if x else 2 ** (precision - 1)
            elif x == 0:
                predicted = above[0]
            else:
                a, b, c = row[x - 1], above[x], above[x - 1]
                predicted = (a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1)[predictor - 1]
            difference = (value - predicted + 32767) % 65536 - 32767
            category = abs(difference).bit_length()
            bits.extend(f"{category:05b}")
            if 0 < category < 16:
                bits.extend(f"{difference if difference > 0 else difference + 2**category - 1:0{category}b}")
        above = row
    flush()

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    rows, columns = pixels.shape
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xC3, struct.pack(">BHHB", precision, rows, columns, 1) + b"\1\x11\0"),
            segment(0xC4, bytes([0, 0, 0, 0, 0, 17] + [0] * 11 + list(range(17)))),
            segment(0xDD, struct.pack(">H", restart_rows * columns)) if restart_rows else b"",
            segment(0xDA, bytes([1, 1, 0, predictor, 0, 0])) + scan + b"\xff\xd9",
        )
    )


def plain_chain(path: Path) -> np.ndarray:
    """The usual snippet, the definition of the pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        data = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        data = np.max(data) - data
    data = data - np.min(data)
    if np.max(data) > 0:
        data = data / np.max(data)
    return (data * 255).astype(np.uint8)


def values(stored: int, signed: bool) -> np.ndarray:
    """Stored values (ROWS, COLUMNS) that reach both ends of what `stored` bits hold, of which few occur."""
    lowest, highest = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    drawn = np.random.default_rng(stored).normal((lowest + highest) / 2, (highest - lowest) / 6, (ROWS, COLUMNS))
    drawn[0, :2] = lowest, highest
    return drawn.clip(lowest, highest).astype(np.int64)
