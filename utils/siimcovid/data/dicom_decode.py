"""The stored values of one DICOM image, decoded the fastest way that gives pydicom's own values.

In: a pydicom data set with its pixel data. Out: `Stored`, an array of the values as they are stored and how many of
their high bits mean nothing. No look-up table is applied here; `siimcovid.data.dicom_image` does that.

Three ways, tried in this order:
- uncompressed and ordinary: a view of the bytes that were read, nothing is copied;
- JPEG Lossless (440 of the competition's 6,334 train images): dicomsdl, three to five times faster than the others;
- everything else: whatever decoder pydicom has (gdcm, pylibjpeg, Pillow, its own RLE).

The decoders are C and C++ and believe what they are told, so sizes are checked before any of them is called.
"""

import re
import struct
from dataclasses import dataclass

import numpy as np
import pydicom.pixels
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

try:
    import dicomsdl

    dicomsdl.set_loglevel(dicomsdl.LogLevel.DISABLE)  # what it cannot decode is tried by others, and reported once
except ImportError:  # no wheel for this Python: pydicom's decoders give the same values, more slowly
    dicomsdl = None

#: Images have at most 24 million pixels; more than this is a damaged header that would only exhaust the memory.
MOST_PIXELS = 2**28

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
LOSSLESS = (JPEGLossless, JPEGLosslessSV1)

#: In a JPEG's entropy-coded data a byte 255 is followed by 0, or it is a marker.
MARKER = re.compile(rb"\xff[^\0]")


class Refused(ValueError):
    """An image that is not handed to any decoder, with the reason in words that fit after the file's name."""


@dataclass(frozen=True)
class Stored:
    """Stored values.

    pixels: (rows, columns) for grey, (rows, columns, 3) RGB for colour; in any byte order.
    unused_bits: so many high bits of each value are to be ignored (a signed value's sign lies below them).
    """

    pixels: np.ndarray
    unused_bits: int = 0


def decode(dataset: Dataset) -> Stored:
    """Decode the first frame of `dataset`, which must have a transfer syntax in its file_meta.

    Raises Refused where the header contradicts itself or the data, and whatever pydicom and its decoders raise.
    """
    rows, columns = _size(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    frame = None
    if syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes):
        frame = get_frame(dataset.PixelData, 0, number_of_frames=_frames(dataset))
        _check_codestream(frame, rows, columns)
    if _is_plain(dataset):
        data_type = np.dtype(f"<u{dataset.BitsAllocated // 8}")
        pixels = None
        if syntax in NATIVE:
            there, expected = len(dataset.PixelData), rows * columns * data_type.itemsize
            if there < expected:
                raise Refused(f"breaks off: it holds {there:,} of {expected:,} bytes of pixel data")
            pixels = np.frombuffer(dataset.PixelData, data_type, rows * columns).reshape(rows, columns)
        elif syntax in LOSSLESS and dicomsdl is not None:
            pixels = _decode_lossless(frame, syntax, rows, columns, data_type)
        if pixels is not None:
            if dataset.PixelRepresentation:
                pixels = pixels.view(f"<i{data_type.itemsize}")
            return Stored(pixels, dataset.BitsAllocated - dataset.BitsStored)
    pixels = pydicom.pixels.pixel_array(dataset, index=0)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(pixels, dataset)
    return Stored(pixels)


def _size(dataset: Dataset) -> tuple[int, int]:
    """Rows and columns from the header, refused where no image can be that."""
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not isinstance(rows, int) or not isinstance(columns, int) or rows < 1 or columns < 1:
        raise Refused(f"its header gives no size (Rows {rows}, Columns {columns})")
    if rows * columns * (dataset.get("SamplesPerPixel") or 1) > MOST_PIXELS:
        raise Refused(f"its header gives the absurd size {rows} x {columns}")
    return rows, columns


def _frames(dataset: Dataset) -> int:
    """Number of frames, 1 where the header leaves it out."""
    frames = dataset.get("NumberOfFrames")
    try:
        return 1 if frames is None else int(frames)
    except (TypeError, ValueError):
        raise Refused(f"its number of frames is {str(frames)!r}") from None


def _is_plain(dataset: Dataset) -> bool:
    """Whether this is what nearly every image is: one frame of whole 8- or 16-bit grey values."""
    allocated = dataset.get("BitsAllocated")
    return (
        dataset.get("PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
        and dataset.get("SamplesPerPixel") == 1
        and _frames(dataset) == 1
        and allocated in (8, 16)
        and dataset.get("BitsStored") in range(1, allocated + 1)
        and dataset.get("PixelRepresentation") in (0, 1)
    )


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


@dataclass(frozen=True)
class Codestream:
    """What a compressed image says about itself."""

    rows: int
    columns: int
    precision: int
    components: int


def codestream_size(frame: bytes) -> Codestream | None:
    """Read the frame header of a JPEG, JPEG Lossless, JPEG-LS or JPEG 2000 codestream; None where there is none."""
    start = re.search(rb"\xff\x4f\xff\x51", frame[:4096])  # JPEG 2000: start of codestream, then the SIZ segment
    if start and len(frame) >= start.start() + 44:
        right, bottom, left, top = struct.unpack_from(">4I", frame, start.start() + 8)
        (components, depth) = struct.unpack_from(">HB", frame, start.start() + 40)
        return Codestream(bottom - top, right - left, (depth & 0x7F) + 1, components)
    position = 2
    while frame[:2] == b"\xff\xd8" and position + 10 <= len(frame):
        mark, code, length = struct.unpack_from(">BBH", frame, position)
        if mark != 0xFF:
            return None
        if code == 0xFF:  # a fill byte
            position += 1
        elif code == 0xF7 or (0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC)):  # SOF55 of JPEG-LS, SOF0 to 15
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, position + 4)
            return Codestream(rows, columns, precision, components)
        else:
            position += 2 + length
    return None


def _check_codestream(frame: bytes, rows: int, columns: int) -> None:
    """Refuse a compressed image whose own size differs from the header's: decoders would write past their buffers."""
    inner = codestream_size(frame)
    if inner is None:
        raise Refused("its compressed image has no beginning")
    if (inner.rows, inner.columns) != (rows, columns):
        raise Refused(f"its header says {rows} x {columns}, its compressed image {inner.rows} x {inner.columns}")
