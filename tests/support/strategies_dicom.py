"""Hypothesis strategies for DICOM files: odd headers, odd pixels, odd wrappings, and damage anywhere."""

import io
import struct
import warnings
from typing import Any

import numpy as np
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from support.dicom_files import jpeg_lossless, table, write

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)

#: Transfer syntaxes that a file may name, whatever it holds.
NAMED = (
    *NATIVE,
    JPEGLosslessSV1,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEG2000,
    RLELossless,
    "1.2.840.10008.1.2.4.100",
    "1",
)

#: Texts in place of numbers.
TEXTS = st.sampled_from(
    [
        "",
        "0",
        "-0",
        ".5",
        "2047,5",
        "1,2,3",
        "NaN",
        "inf",
        "-1e999",
        "1e306",
        "1_0",
        "0x10",
        "12\\x",
        "\\",
        "１２",
        "wide",
    ]
) | st.text(max_size=8)

NUMBERS = (
    st.integers(-70000, 70000).map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda number: f"{number:.8g}")
    | TEXTS
)

NUMBER_NAMES = ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept")
WHOLE_NAMES = (
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PlanarConfiguration"),
    *("Rows", "Columns", "PixelPaddingValue", "PixelPaddingRangeLimit"),
)


def element(name: str, vr: str, value: Any) -> DataElement | None:
    """An element that pydicom can write; None where it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return DataElement(name, vr, value)
    except Exception:
        return None


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """Elements that describe pixels or map them to grey: a few of them, right or wrong."""
    tags: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(NUMBER_NAMES), unique=True)):
        values = draw(st.lists(NUMBERS, min_size=1, max_size=3))
        tags[name] = element(name, draw(st.sampled_from(["LO", "DS"])), "\\".join(values))
    for name in draw(st.lists(st.sampled_from(WHOLE_NAMES), unique=True, max_size=3)):
        number = draw(st.sampled_from([0, 1, 2, 3, 7, 8, 11, 12, 15, 16, 17, 23, 32, 64, 255, 4095, 65535]))
        tags[name] = draw(
            st.sampled_from(
                [element(name, "US", number), element(name, "LO", str(number)), element(name, "FD", number)]
            )
            | st.builds(lambda text, name=name: element(name, "LO", text), TEXTS)
        )
    if draw(st.booleans()):
        words = ["MONOCHROME1", "monochrome2 ", "PALETTE COLOR", "RGB", "YBR_FULL_422", "PURPLE", ""]
        tags["PhotometricInterpretation"] = draw(st.sampled_from(words))
    if draw(st.booleans()):
        tags["VOILUTFunction"] = draw(st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID", "BEND"]))
    if draw(st.booleans()):
        tags["NumberOfFrames"] = element("NumberOfFrames", "LO", draw(TEXTS | st.integers(-1, 3).map(str)))
    for name in draw(st.lists(st.sampled_from(["ModalityLUTSequence", "VOILUTSequence"]), unique=True)):
        tags[name] = [draw(luts())]
    return {name: value for name, value in tags.items() if value is not None}


@st.composite
def luts(draw: st.DrawFn) -> Any:
    """An item of a LUT sequence, whole or broken."""
    signed = draw(st.booleans())
    first = draw(st.integers(-300, 300) if signed else st.integers(0, 70000).map(lambda value: value % 65536))
    entries = draw(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
    item = table(first, draw(st.integers(0, 20)), entries, signed=signed)
    damage = draw(st.sampled_from(["none", "none", "count", "descriptor", "data", "bytes", "absent"]))
    if damage == "count":
        item.LUTDescriptor[0] = draw(st.sampled_from([0, 1, 19, 256, 32767]))
    elif damage == "descriptor":
        item.LUTDescriptor = list(item.LUTDescriptor)[: draw(st.integers(0, 2))] or None
    elif damage == "data":
        item.add_new("LUTData", "LO", draw(TEXTS))
    elif damage == "bytes":
        item.add_new("LUTData", "OW", draw(st.binary(max_size=40)))
    elif damage == "absent":
        del item.LUTData
    return item


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A DICOM file of a small image with an odd header, wrapped well or badly, and maybe damaged."""
    rows, columns, stored = (
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
        draw(st.sampled_from([1, 8, 10, 12, 14, 16])),
    )
    signed, random = draw(st.booleans()), np.random.default_rng(draw(st.integers(0, 99)))
    lowest = -(2 ** (stored - 1)) if signed else 0
    pixels = random.integers(lowest, lowest + 2**stored, (rows, columns))
    kind = draw(st.sampled_from(["native", "native", "lossless", "RLE", "colour"]))
    options: dict[str, Any] = {"signed": signed, "syntax": draw(st.sampled_from(NATIVE))}
    if kind == "colour":
        pixels, stored, options["signed"] = np.stack([pixels & 255] * 3, 2), 8, False
    elif kind == "lossless":
        options |= {"syntax": JPEGLosslessSV1, "frames": [jpeg_lossless(pixels & (2**stored - 1), max(stored, 2))]}
    elif kind == "RLE":
        options |= {"syntax": RLELossless, "frames": [_rle(pixels, 8 if stored <= 8 else 16)]}
    stream = io.BytesIO()
    try:
        write(stream, pixels, stored, **options, **draw(headers()))
    except Exception:  # pydicom refuses to write that header
        stream = io.BytesIO()
        write(stream, pixels, stored, **options)
    return draw(damaged(stream.getvalue()))


def _rle(pixels: np.ndarray, bits: int) -> bytes:
    size = {"rows": pixels.shape[0], "columns": pixels.shape[1], "bits_allocated": bits, "bits_stored": bits}
    kind = {"samples_per_pixel": 1, "number_of_frames": 1, "pixel_representation": 0}
    data = (pixels & (2**bits - 1)).astype(f"<u{bits // 8}").tobytes()
    return RLELosslessEncoder.encode(
        data, **size, **kind, photometric_interpretation="MONOCHROME2", encoding_plugin="pydicom"
    )


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file's bytes with some changed, put in or taken out; as they are in half of the cases."""
    changed = bytearray(content)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2, 5]))):
        place = draw(st.integers(120, max(120, len(changed) - 1)))
        what = draw(st.sampled_from(["byte", "cut", "insert", "remove", "syntax", "length"]))
        if what == "byte" and place < len(changed):
            changed[place] = draw(st.integers(0, 255))
        elif what == "cut":
            del changed[place:]
        elif what == "insert":
            changed[place:place] = draw(st.binary(max_size=12) | st.sampled_from(ELEMENTS))
        elif what == "remove":
            del changed[place : place + draw(st.integers(1, 12))]
        elif what == "syntax":
            _rename_syntax(changed, draw(st.sampled_from(NAMED)))
        elif what == "length" and (start := changed.rfind(b"\xe0\x7f\x10\x00")) >= 0:
            changed[start + 8 : start + 12] = struct.pack("<I", draw(st.sampled_from([0, 1, 8, 10**6, 0xFFFFFFFF])))
    return bytes(changed)


#: Elements that lead a reader astray.
ELEMENTS = (
    struct.pack("<HH2sH", 0x10, 0x10, b"PN", 60000),
    struct.pack("<HH2sHI", 0x08, 0x1140, b"SQ", 0, 0xFFFFFFFF),
    struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
    struct.pack("<HH2sH", 0x28, 0x10, b"US", 2) + b"\xff\xff",
    struct.pack("<HH2sH", 0x28, 0x8, b"IS", 4) + b"many",
)


def _rename_syntax(content: bytearray, syntax: str) -> None:
    start = content.find(struct.pack("<HH2s", 2, 0x10, b"UI"))
    if start >= 0:
        length = struct.unpack_from("<H", content, start + 6)[0]
        content[start + 8 : start + 8 + length] = syntax.encode()[:length].ljust(length, b"\0")
