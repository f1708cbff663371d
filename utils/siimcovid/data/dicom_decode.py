"""The stored values of one DICOM image, decoded the fastest way that gives pydicom's own values.

In: a pydicom data set with its pixel data. Out: `Stored`, an array of the values as they are stored and how many of
their bits are unused. No look-up table is applied here; `siimcovid.data.dicom_image` does that.

Three ways, tried in this order:
- uncompressed and ordinary: a view of the bytes that were read, nothing is copied;
- JPEG Lossless (440 of the competition's 6,334 train images): dicomsdl, three to five times faster than the others;
- everything else: whatever decoder pydicom has (pylibjpeg, gdcm, Pillow, its own RLE).

The decoders are C and C++ and do not check what they are given, so sizes are checked before any of them is called.
"""

import re
import struct
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pydicom.pixels
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from siimcovid.data.dicom_codestream import LOSSLESS, codestream_size, unpack_frame
from siimcovid.data.dicom_description import Refused, check_description

try:
    import dicomsdl

    dicomsdl.set_loglevel(dicomsdl.LogLevel.DISABLE)  # what it cannot decode is tried by others, and reported once
except ImportError:  # no wheel for this Python: pydicom's decoders give the same values, more slowly
    dicomsdl = None

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)

#: In a JPEG's entropy-coded data a byte 255 is followed by 0, or it is a marker.
MARKER = re.compile(rb"\xff[^\0]")


@dataclass(frozen=True)
class Stored:
    """Stored values.

    pixels: (rows, columns) for grey, (rows, columns, 3) RGB for colour; in any byte order.
    unused_bits: so many bits of each value are to be ignored, usually the high ones (a signed value's sign lies below
    them). unused_low_bits: so many of them are the low ones, as the header's HighBit has it.
    notices: what of the header was corrected before decoding.
    """

    pixels: np.ndarray
    unused_bits: int = 0
    unused_low_bits: int = 0
    notices: tuple[str, ...] = ()


def decode(dataset: Dataset) -> Stored:
    """Decode the first frame of `dataset`, which must have a transfer syntax in its file_meta.

    The header's description of the pixels is checked first and corrected in `dataset` where the data imply another one.
    Raises Refused where the header contradicts itself or the data, and
    whatever pydicom and its decoders raise.
    """
    notices: list[str] = []
    frame = unpack_frame(dataset, notices)
    check_description(dataset, frame, notices)
    rows, columns, syntax = dataset.Rows, dataset.Columns, dataset.file_meta.TransferSyntaxUID
    if _is_plain(dataset):
        data_type = np.dtype(f"<u{dataset.BitsAllocated // 8}")
        pixels = None
        if syntax in NATIVE or (syntax == ExplicitVRBigEndian and dataset.BitsAllocated == 16):
            there, expected = len(dataset.PixelData), rows * columns * data_type.itemsize
            if there < expected:
                raise Refused(f"breaks off: it holds {there:,} of {expected:,} bytes of pixel data")
            order = data_type.newbyteorder(">") if syntax == ExplicitVRBigEndian else data_type
            pixels = np.frombuffer(dataset.PixelData, order, rows * columns).reshape(rows, columns)
            pixels = pixels.astype(data_type, copy=False)
        elif syntax in LOSSLESS and dicomsdl is not None:
            pixels = _decode_lossless(frame, syntax, rows, columns, data_type)
        elif syntax == RLELossless:
            pixels = _decode_rle(dataset)
        if pixels is not None:
            if dataset.PixelRepresentation:
                pixels = pixels.view(f"<i{data_type.itemsize}")
            low = dataset.HighBit + 1 - dataset.BitsStored
            return Stored(pixels, dataset.BitsAllocated - dataset.BitsStored, low, tuple(notices))
    # gdcm ends the process over some damaged codestreams of JPEG Lossless, which pylibjpeg refuses; same pixels
    plugin = "pylibjpeg" if syntax in LOSSLESS and find_spec("libjpeg") else ""
    pixels = pydicom.pixels.pixel_array(dataset, index=0, decoding_plugin=plugin)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(pixels, dataset)
    return Stored(pixels, notices=tuple(notices))


def _is_plain(dataset: Dataset) -> bool:
    """Whether this is what nearly every image is: whole 8- or 16-bit grey values."""
    return (
        dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2")
        and dataset.SamplesPerPixel == 1
        and dataset.BitsAllocated in (8, 16)
        and "PixelData" in dataset
    )


def _decode_rle(dataset: Dataset) -> np.ndarray:
    """Decode RLE by pydicom with all bits of each value, those above BitsStored too, which HighBit may mean."""
    whole = Dataset()
    whole.update(dataset)
    whole.file_meta = dataset.file_meta
    whole.set_original_encoding(*dataset.original_encoding)
    for name, value in {"BitsStored": dataset.BitsAllocated, "PixelRepresentation": 0}.items():
        whole.add_new(name, "US", value)  # a new element: the data sets share their other ones
    return np.ascontiguousarray(pydicom.pixels.pixel_array(whole, index=0), f"<u{dataset.BitsAllocated // 8}")


def _decode_lossless(frame: bytes, syntax: str, rows: int, columns: int, data_type: np.dtype) -> np.ndarray | None:
    """Decode a JPEG Lossless codestream by dicomsdl; None where it cannot.

    dicomsdl crashes on damaged headers and on data shorter than they promise, and does not notice a scan that breaks
    off. It therefore never sees the file, only a tiny one made here around the codestream, whose size was checked,
    and only a codestream of one component in one unbroken scan.
    """
    kind = codestream_size(frame)
    if kind is None or (kind.precision > 8) != (data_type.itemsize == 2) or kind.components != 1:
        return None
    marker = MARKER.search(frame, frame.find(b"\xff\xda") + 2)  # the first one after the start of the scan
    if marker is None or marker.group() != b"\xff\xd9":  # not the end of the image
        return None
    bits = 8 * data_type.itemsize
    dataset = dicomsdl.open_memory(_wrap(frame, syntax, rows, columns, bits))
    pixels = np.empty((rows, columns), data_type)
    try:
        dataset.copyFrameData(0, pixels)
    except (dicomsdl.DicomException, RuntimeError):
        return None
    return pixels


def _wrap(frame: bytes, syntax: str, rows: int, columns: int, bits: int) -> bytes:
    """A minimal DICOM file, Explicit VR Little Endian, around one compressed grey frame."""

    def short(element: int, value: int) -> bytes:
        return struct.pack("<HH2sHH", 0x0028, element, b"US", 2, value)

    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(uid)) + uid
    frame += b"\0" * (len(frame) % 2)
    return b"".join(
        (
            b"\0" * 128 + b"DICM",
            struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(meta)) + meta,
            short(0x0002, 1),  # samples per pixel
            struct.pack("<HH2sH12s", 0x0028, 0x0004, b"CS", 12, b"MONOCHROME2 "),
            short(0x0010, rows),
            short(0x0011, columns),
            short(0x0100, bits),
            short(0x0101, bits),
            short(0x0102, bits - 1),
            short(0x0103, 0),
            struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF),
            struct.pack("<HHI", 0xFFFE, 0xE000, 0),  # an empty offset table
            struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)) + frame,
            struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        )
    )
