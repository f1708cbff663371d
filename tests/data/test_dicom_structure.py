"""Damage in any element but the pixels does not matter, and pixels are read whatever they are wrapped in."""

import struct

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLosslessSV1

from siimcovid.data.dicom_headers import read_header
from siimcovid.data.dicom_image import DicomError, read_image, read_image_with_notices
from support.dicom_files import COLUMNS, ROWS, insert, jpeg_lossless, plain_chain, replace_pixels, text, values, write

CODES = values(12, False)
FRAME = jpeg_lossless(CODES, 12)
FRAME += b"\0" * (len(FRAME) % 2)
UNDEFINED = 0xFFFFFFFF


def item(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value) if length is None else length) + value


DELIMITER = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
TRAILING = struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 8) + bytes(8)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGBaseline8Bit, ExplicitVRLittleEndian, "1.2\n\x07.4.5"])
@pytest.mark.parametrize(
    ("value", "length", "noticed"),
    [
        (item(b"") + item(FRAME) + DELIMITER, UNDEFINED, False),
        (FRAME, None, True),  # bare, of defined length
        (FRAME, UNDEFINED, True),
        (FRAME + DELIMITER, UNDEFINED, True),
        (item(b"") + item(FRAME), UNDEFINED, True),  # no delimiter
        (item(b"") + item(FRAME), None, False),  # of defined length
        (item(b"") + item(FRAME) + TRAILING, UNDEFINED, True),
        (item(FRAME) + DELIMITER, UNDEFINED, True),  # no offset table
        (item(b"") + item(FRAME[:100]) + item(FRAME[100:]) + DELIMITER, UNDEFINED, False),
        (item(b"") + item(FRAME, len(FRAME) + 1000), UNDEFINED, True),
    ],
)
def test_wrappings(tmp_path, syntax, value, length, noticed):
    plain = write(tmp_path / "plain.dcm", CODES, 12)
    path = write(tmp_path / "a.dcm", CODES, 12, syntax=JPEGLosslessSV1, frames=[FRAME])
    replace_pixels(path, value, length)
    content = path.read_bytes()
    old, new = JPEGLosslessSV1.encode(), syntax.encode()
    start = content.index(struct.pack("<HH2sH", 2, 0x10, b"UI", len(old)))
    padded = new + b"\0" * (len(old) - len(new))
    path.write_bytes(content[: start + 8] + padded + content[start + 8 + len(old) :])
    pixels, notices = read_image_with_notices(path)
    np.testing.assert_array_equal(pixels, plain_chain(plain))
    assert all(notice.isprintable() for notice in notices)
    assert bool(notices) or not (noticed or syntax != JPEGLosslessSV1)


def test_size_from_the_compressed_image(tmp_path):
    expected = plain_chain(write(tmp_path / "plain.dcm", CODES, 12))
    for tags in ({"Rows": None}, {"Columns": 0}, {"Rows": text("Rows", "tall")}):
        path = write(tmp_path / "a.dcm", CODES, 12, syntax=JPEGLosslessSV1, frames=[FRAME], **tags)
        pixels, notices = read_image_with_notices(path)
        np.testing.assert_array_equal(pixels, expected)
        assert "its header gives no size: that of its compressed image is used" in notices


def test_what_breaks_off_is_refused_or_noticed(tmp_path):
    path = write(tmp_path / "a.dcm", CODES, 12, syntax=JPEGLosslessSV1, frames=[FRAME])
    for length in (20, 60, 150, len(FRAME) - 40):
        replace_pixels(path, item(b"") + item(FRAME)[: 8 + length], UNDEFINED)
        try:
            notices = read_image_with_notices(path)[1]
        except DicomError as error:
            assert error.reason  # noqa: PT017
        else:
            assert any("no end" in notice for notice in notices)


def explicit(group: int, element: int, vr: bytes, length: int, value: bytes = b"") -> bytes:
    if vr in (b"OB", b"SQ", b"UN"):
        return struct.pack("<HH2sHI", group, element, vr, 0, length) + value
    return struct.pack("<HH2sH", group, element, vr, length) + value


BROKEN = {
    "a length that swallows the pixels": explicit(0x10, 0x10, b"PN", 60000, b"Doe"),
    "a length that swallows a part of the header": explicit(0x10, 0x10, b"PN", 30, b"Doe^J "),
    "an odd length": explicit(0x10, 0x20, b"LO", 3, b"abc"),
    "a sequence without end": explicit(0x08, 0x1140, b"SQ", UNDEFINED, item(b"", UNDEFINED)),
    "a sequence of nothing like items": explicit(0x08, 0x1140, b"SQ", 8, b"notitems"),
    "a sequence whose item is longer than itself": explicit(0x08, 0x1140, b"SQ", 16, item(bytes(8), 4000)),
    "a text of another kind": explicit(0x20, 0x13, b"IS", 4, b"abc "),
    "bytes of no character set": explicit(0x10, 0x10, b"PN", 4, b"\xff\xfe\x81\x9f"),
    "a character set that is none": explicit(0x08, 0x05, b"CS", 8, b"KLINGON "),
    "no VR": explicit(0x10, 0x40, b"\0\0", 2, b"F "),
    "an unknown VR": explicit(0x10, 0x40, b"ZZ", 2, b"F "),
    "garbage": bytes(range(200, 256)) * 3,
    "zeros": bytes(64),
    "a delimiter out of place": DELIMITER,
}


@pytest.mark.parametrize("before", ["SamplesPerPixel", "Columns", "BitsStored"])
@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("compressed", [False, True])
def test_damage_in_other_elements(tmp_path, what, before, compressed):
    expected = plain_chain(write(tmp_path / "plain.dcm", CODES, 12))
    tags = {"syntax": JPEGLosslessSV1, "frames": [FRAME]} if compressed else {}
    path = write(tmp_path / "a.dcm", CODES, 12, **tags)
    np.testing.assert_array_equal(read_image(insert(path, BROKEN[what], before)), expected)
    assert read_header(path)[1:] == (ROWS, COLUMNS, "")


def test_damage_in_an_implicit_header(tmp_path):
    expected = plain_chain(write(tmp_path / "plain.dcm", CODES, 12))
    path = write(tmp_path / "a.dcm", CODES, 12, syntax=ImplicitVRLittleEndian)
    insert(path, struct.pack("<HHI", 0x10, 0x10, 60000) + b"Doe^", "Columns")
    pixels, notices = read_image_with_notices(path)
    np.testing.assert_array_equal(pixels, expected)
    assert len(notices) == 1
    assert "its header is damaged" in notices[0]


def test_an_icon_is_not_the_image(tmp_path):
    """An icon's own rows, columns and pixels lie within a sequence, before the image's pixels."""
    expected = plain_chain(write(tmp_path / "plain.dcm", CODES, 12))
    path = write(tmp_path / "a.dcm", CODES, 12)
    icon = explicit(0x28, 0x10, b"US", 2, b"\2\0") + explicit(0x28, 0x11, b"US", 2, b"\2\0")
    icon += explicit(0x7FE0, 0x10, b"OB", 4, bytes(4))
    insert(path, explicit(0x88, 0x200, b"SQ", len(item(icon)), item(icon)), "PixelData")
    insert(path, BROKEN["a length that swallows the pixels"], "SamplesPerPixel")
    np.testing.assert_array_equal(read_image(path), expected)
