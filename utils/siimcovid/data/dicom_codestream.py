"""Compressed frames of DICOM pixel data: where the first one is, and the size and kind that it states itself.

In: a data set with its pixel data. Out: the codestream (JPEG, JPEG Lossless, JPEG-LS or JPEG 2000) of the first frame,
also where it is not wrapped as the standard wants it: bare, without a sequence delimiter, or under another transfer
syntax than its own.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    JPEG2000,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
    UID_dictionary,
)

COMPRESSED = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes)
LOSSLESS = (JPEGLossless, JPEGLosslessSV1)

ITEM = b"\xfe\xff\x00\xe0"

#: First bytes of JPEG and JPEG-LS, of a JPEG 2000 codestream and of the file format around one.
BEGINNINGS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")

#: The last two bytes of all these codestreams.
END = b"\xff\xd9"


@dataclass(frozen=True)
class Codestream:
    """Size in pixels, bits per value and components of a compressed image, from its frame header.

    marker: second byte of the frame header's marker, which identifies the kind of compression.
    """

    rows: int
    columns: int
    precision: int
    components: int
    marker: int = 0xC3

    @property
    def syntaxes(self) -> tuple[str, ...]:
        """The transfer syntaxes that it can have, the likeliest first."""
        if self.marker == 0x51:
            return (JPEG2000, *JPEG2000TransferSyntaxes)
        if self.marker == 0xF7:
            return (JPEGLSLossless, *JPEGLSTransferSyntaxes)
        if self.marker == 0xC3:
            return LOSSLESS
        return (JPEGBaseline8Bit if self.marker == 0xC0 else JPEGExtended12Bit, JPEGBaseline8Bit, JPEGExtended12Bit)


def codestream_size(frame: bytes) -> Codestream | None:
    """Read the frame header of a JPEG, JPEG Lossless, JPEG-LS or JPEG 2000 codestream; None where there is none."""
    start = re.search(rb"\xff\x4f\xff\x51", frame[:4096])  # JPEG 2000: start of codestream, then the SIZ segment
    if start and len(frame) >= start.start() + 44:
        right, bottom, left, top = struct.unpack_from(">4I", frame, start.start() + 8)
        (components, depth) = struct.unpack_from(">HB", frame, start.start() + 40)
        return Codestream(bottom - top, right - left, (depth & 0x7F) + 1, components, 0x51)
    position = 2
    while frame[:2] == b"\xff\xd8" and position + 10 <= len(frame):
        mark, code, length = struct.unpack_from(">BBH", frame, position)
        if mark != 0xFF:
            return None
        if code == 0xFF:  # a fill byte
            position += 1
        elif code == 0xF7 or (0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC)):  # SOF55 of JPEG-LS, SOF0 to 15
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, position + 4)
            return Codestream(rows, columns, precision, components, code)
        else:
            position += 2 + length
    return None


def unpack_frame(dataset: Dataset, notices: list[str]) -> bytes | None:
    """The codestream of the first frame; None where the pixels are not compressed, or not by one of these.

    Where its wrapping or the transfer syntax is wrong, `dataset` gets the right one, and `notices` a sentence.
    """
    data = dataset.get("PixelData")
    if not data:
        return None
    syntax = dataset.file_meta.TransferSyntaxUID
    bare = data.startswith(BEGINNINGS)
    if syntax not in (*COMPRESSED, RLELossless) and not _is_compressed_anyway(dataset, data, bare):
        return None
    frame = None if bare else _wrapped_frame(dataset, data)
    if frame is None:
        frame = data if bare else _join_fragments(data, syntax)
        notices.append("its compressed image is not wrapped as the standard demands, but was found")
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.NumberOfFrames = 1
        for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            if name in dataset:
                delattr(dataset, name)
    if syntax == RLELossless:
        return None
    inner = codestream_size(frame)
    if inner is not None and syntax not in inner.syntaxes:
        notices.append(f"its transfer syntax '{str(syntax)[:64]}' is not that of its compressed image, which is used")
        dataset.file_meta.TransferSyntaxUID = inner.syntaxes[0]
    if END not in frame:
        notices.append("its compressed image has no end: the part that is missing is not shown")
    return frame


def _is_compressed_anyway(dataset: Dataset, data: bytes, bare: bool) -> bool:
    """Whether the data are a compressed image though the transfer syntax means uncompressed, or is unknown."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not bare and not data.startswith(ITEM):
        return False
    if not syntax.is_encapsulated if syntax in UID_dictionary else True:
        inner = codestream_size(data if bare else _join_fragments(data, syntax))
        return inner is not None and (inner.rows, inner.columns) == (dataset.get("Rows"), dataset.get("Columns"))
    return False  # a known syntax that is not read here, such as video


def _wrapped_frame(dataset: Dataset, data: bytes) -> bytes | None:
    """The first frame by the standard's rules; None where they are not kept."""
    try:
        frames = int(dataset.get("NumberOfFrames") or 1)
        return get_frame(data, 0, number_of_frames=frames if frames > 0 else 1) or None
    except Exception:  # not a sequence of items, or another number of frames
        return None


def _join_fragments(data: bytes, syntax: str) -> bytes:
    """The fragments of the first frame, joined: up to the one with the end of a codestream, or to the last."""
    joined = b""
    for number, fragment in enumerate(_fragments(data)):
        if number == 0 and not fragment.startswith(BEGINNINGS):
            continue  # the offset table
        joined += fragment
        if syntax != RLELossless and END in fragment:
            break
    return joined


def _fragments(data: bytes) -> Iterator[bytes]:
    """Values of the items that stand one behind the other; the last one may break off."""
    position = 0
    while data[position : position + 4] == ITEM and position + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, position + 4)
        yield data[position + 8 : position + 8 + length]
        position += 8 + length
