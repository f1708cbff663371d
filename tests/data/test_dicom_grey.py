"""Stored values become grey as worked out by hand, and what of a header cannot be followed is noticed."""

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import ExplicitVRBigEndian, JPEGLosslessSV1, RLELossless

from siimcovid.data.dicom_image import read_image_with_notices
from support.dicom_files import jpeg_lossless, table, text, write

#: 12-bit values and their grey: (v - 100) / 400 * 255 = 0, 63.75, 127.5, 255.
VALUES = np.array([[100, 200], [300, 500]])
PLAIN = [0, 63, 127, 255]
INVERTED = [255, 191, 127, 0]

#: A window that shows 100 to 300 as 0 to 255: (v - 200) / 200 + 1/2 = 0, 1/2, 1, cut at 1.
EXACT = {"WindowCenter": 200, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"}
WINDOWED = [0, 127, 255, 255]


def assert_grey(path, expected: list[int], *words: str) -> None:
    """Check the grey values, and that there is one notice for each of `words`, which it contains."""
    grey, notices = read_image_with_notices(path)
    assert (grey.ravel().tolist(), grey.dtype) == (expected, np.uint8), notices
    assert len(notices) == len(words), notices
    assert all(word in notice for word, notice in zip(words, notices, strict=True)), notices
    assert not any("\n" in notice for notice in notices)


def window(center, width, function: str | None = None) -> dict:
    return {"WindowCenter": center, "WindowWidth": width} | ({"VOILUTFunction": function} if function else {})


@pytest.mark.parametrize(
    ("tags", "expected", "words"),
    [
        ({}, PLAIN, []),
        (EXACT, WINDOWED, []),
        # wholly outside the values
        (window(9999, 2), PLAIN, ["width 2 is ignored: it lies outside the values, 100 to 500"]),
        (window(-500, 100), PLAIN, ["outside"]),
        (window(600, 200, "LINEAR_EXACT"), PLAIN, ["outside"]),  # 500 is its lowest value
        (window(9999, 20, "SIGMOID"), PLAIN, ["outside"]),
        (window(1e12, 5), PLAIN, ["outside"]),
        (EXACT | window([9999, 200], [2, 200]), WINDOWED, ["outside"]),
        (window(9999, 2) | {"RescaleSlope": 1, "RescaleIntercept": 9800}, WINDOWED[:1] + [255] * 3, []),
        # no width
        (window(300, 0), PLAIN, ["width 0 is ignored: its width is too small"]),
        (window(300, "0.5"), PLAIN, ["width 0.5 is ignored"]),
        (window(300, -400), PLAIN, ["width -400 is ignored"]),
        (window(300, 0, "LINEAR_EXACT"), PLAIN, ["width 0 is ignored"]),
        (EXACT | window([300, 200], [0, 200]), WINDOWED, ["width 0 is ignored"]),
        (EXACT | window([200, 300], [200, 0]), WINDOWED, []),
        # no number
        (window(300, text("WindowWidth", "NaN")), PLAIN, ["WindowWidth 'NaN' is no number"]),
        (window(300, text("WindowWidth", "inf")), PLAIN, ["WindowWidth 'inf' is no number"]),
        (window(300, text("WindowWidth", "wide")), PLAIN, ["WindowWidth 'wide' is no number"]),
        (window(text("WindowCenter", "1_0"), 7), PLAIN, ["WindowCenter '1_0' is no number"]),
        (window(300, text("WindowWidth", "1e999")), PLAIN, ["WindowWidth '1e999' is no number"]),
        (window(300, 1e300), PLAIN, ["makes every value the same"]),
        # a decimal comma
        (EXACT | {"WindowCenter": text("WindowCenter", "200,0")}, WINDOWED, ["WindowCenter '200,0' is read as 200"]),
        (EXACT | {"WindowWidth": text("WindowWidth", "2,0e2")}, WINDOWED, ["WindowWidth '2,0e2' is read as 200"]),
        (EXACT | {"WindowCenter": text("WindowCenter", "1,900,0")}, PLAIN, ["'1,900,0' is no number"]),
        # one without the other, and a function that is none
        ({"WindowCenter": 300}, PLAIN, ["WindowCenter stands alone"]),
        ({"WindowWidth": 300, "WindowCenter": ""}, PLAIN, ["WindowWidth stands alone"]),
        (EXACT | {"VOILUTFunction": "linear_exact"}, WINDOWED, []),
        (window(9999, 2, "BEND"), PLAIN, ["'BEND' is unknown", "outside"]),
    ],
)
def test_windows(tmp_path, tags, expected, words):
    assert_grey(write(tmp_path / "a.dcm", VALUES, 12, **tags), expected, *words)


@pytest.mark.parametrize(
    ("slope", "intercept", "expected", "words"),
    [
        (-1, None, INVERTED, []),
        (-1, "", INVERTED, []),
        (None, 7, PLAIN, []),
        ("", "", PLAIN, []),
        (0, 5, PLAIN, ["RescaleSlope 0 with RescaleIntercept 5 is ignored: it makes every value the same"]),
        (0, None, PLAIN, ["makes every value the same"]),
        (
            "1e306",
            0,
            PLAIN,
            ["RescaleSlope 1e+306 with RescaleIntercept 0 is ignored: it leads to values that are not"],
        ),
        (1, "1e300", PLAIN, ["makes every value the same"]),
        (text("RescaleSlope", "NaN"), 5, PLAIN, ["RescaleSlope 'NaN' is no number"]),
        (text("RescaleSlope", "-inf"), 5, PLAIN, ["RescaleSlope '-inf' is no number"]),
        (text("RescaleSlope", "steep"), 5, PLAIN, ["RescaleSlope 'steep' is no number"]),
        (text("RescaleSlope", "-1,5"), 5, INVERTED, ["RescaleSlope '-1,5' is read as -1.5"]),
        (-1, text("RescaleIntercept", "none"), INVERTED, ["RescaleIntercept 'none' is no number"]),
        ([-1, 2], 0, INVERTED, ["RescaleSlope has 2 values, of which the first is used"]),
        (DataElement("RescaleSlope", "FD", -1.5), DataElement("RescaleIntercept", "US", 3), INVERTED, []),
    ],
)
def test_rescale(tmp_path, slope, intercept, expected, words):
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    tags = {name: value for name, value in tags.items() if value is not None}
    assert_grey(write(tmp_path / "a.dcm", VALUES, 12, **tags), expected, *words)


def without(item, *names: str):
    for name in names:
        delattr(item, name)
    return item


def descriptor(item, *numbers: int):
    item.LUTDescriptor = list(numbers)
    return item


#: 401 entries from value 100 on, falling from 400 to 0: as MONOCHROME1 would be.
FALLING = list(range(400, -1, -1))


@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize(
    ("item", "expected", "words"),
    [
        (table(100, 16, FALLING), INVERTED, []),
        (descriptor(table(100, 16, FALLING), 401, 100, 0), INVERTED, []),  # no depth, which changes nothing
        (table(100, 16, FALLING[:200]), [255, 126, 0, 0], []),  # 400 to 201: 199, 99 and the last for all above
        (descriptor(table(100, 16, FALLING[:20]), 401, 100, 16), PLAIN, ["is ignored: it has 20 of 401 entries"]),
        (descriptor(table(100, 16, FALLING), 401, 100), PLAIN, ["is ignored: its descriptor is damaged"]),
        (table(100, 16, [7] * 401), PLAIN, ["makes every value the same"]),
        (table(100, 16, [7]), PLAIN, ["makes every value the same"]),
        (table(501, 16, FALLING), PLAIN, ["makes every value the same"]),  # begins above all values
        (without(table(100, 16, FALLING), "LUTData"), PLAIN, []),
        (without(table(100, 16, FALLING), "LUTDescriptor"), PLAIN, []),
    ],
)
def test_luts(tmp_path, name, item, expected, words):
    assert_grey(write(tmp_path / "a.dcm", VALUES, 12, **{name: [item]}), expected, *words)


def test_lut_of_bytes(tmp_path):
    """Entries of 8 bits may be packed two to a word; a window serves where the LUT is broken."""
    packed = table(100, 8, [0])
    packed.LUTDescriptor = [201, 100, 8]
    packed.add_new("LUTData", "OW", bytes(range(200, -1, -1)) + b"\0")  # 200 to 0 for values 100 to 300
    assert_grey(write(tmp_path / "a.dcm", VALUES, 12, VOILUTSequence=[packed]), [255, 127, 0, 0])
    packed.add_new("LUTData", "OW", bytes(20))
    path = write(tmp_path / "b.dcm", VALUES, 12, VOILUTSequence=[packed], **EXACT)
    assert_grey(path, WINDOWED, "VOILUTSequence is ignored: it has 10 of 201 entries")


def test_lut_outside_the_range_of_8_bit_values(tmp_path):
    """NumPy 2 refuses to subtract numbers that its 8-bit type cannot hold."""
    pixels = np.array([[10, 20], [30, 50]])
    for first in (-300, 9):
        lut = table(first, 16, list(range(60000, 60000 - 400, -1)), signed=True)
        path = write(tmp_path / "a.dcm", pixels, 8, VOILUTSequence=[lut])
        assert_grey(path, INVERTED)


@pytest.mark.parametrize(
    ("pixels", "tags", "expected", "words"),
    [
        # without padding: v / 300 * 255 = 0, 85, 170, 255; with it (v - 100) / 200 * 255 = 0, 127.5, 255
        ([[0, 100], [200, 300]], {}, [0, 85, 170, 255], []),
        ([[0, 100], [200, 300]], {"PixelPaddingValue": 0}, [0, 0, 127, 255], []),
        ([[4095, 100], [200, 300]], {"PixelPaddingValue": 4095}, [0, 0, 127, 255], []),
        (
            [[0, 100], [200, 300]],
            {"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"},
            [0, 255, 127, 0],
            [],
        ),
        (
            [[0, 9, 100], [200, 300, 300]],
            {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 9},
            [0, 0, 0, 127, 255, 255],
            [],
        ),
        (
            [[0, 9, 100], [200, 300, 300]],
            {"PixelPaddingValue": 9, "PixelPaddingRangeLimit": 0},
            [0, 0, 0, 127, 255, 255],
            [],
        ),
        # a limit without a value means nothing, nor does a value that does not occur
        ([[0, 100], [200, 300]], {"PixelPaddingRangeLimit": 0}, [0, 85, 170, 255], []),
        ([[0, 100], [200, 300]], {"PixelPaddingValue": 77}, [0, 85, 170, 255], []),
        (
            [[0, 100], [200, 300]],
            {"PixelPaddingValue": text("PixelPaddingValue", "x")},
            [0, 85, 170, 255],
            ["no number"],
        ),
        # a window that shows padding only shows nothing
        ([[0, 100], [200, 300]], {"PixelPaddingValue": 0} | window(0, 50), [0, 0, 127, 255], ["outside"]),
        ([[7, 7], [7, 7]], {"PixelPaddingValue": 7}, [0] * 4, ["all of its pixels are padding"]),
        ([[7, 7, 7], [7, 100, 300]], {"PixelPaddingValue": 7}, [0, 0, 0, 0, 0, 255], ["67% of its pixels are padding"]),
    ],
)
def test_padding(tmp_path, pixels, tags, expected, words):
    assert_grey(write(tmp_path / "a.dcm", np.array(pixels), 12, **tags), expected, *words)


@pytest.mark.parametrize("vr", ["SS", "US"])
def test_padding_of_signed_values(tmp_path, vr):
    """The element's own VR is often the wrong one: -2000 and 63536 are the same 16 bits."""
    padding = DataElement("PixelPaddingValue", vr, -2000 if vr == "SS" else 63536)
    for stored, pixels in ((16, [[-2000, -100], [0, 100]]), (12, [[-2000, -100], [0, 100]])):
        path = write(tmp_path / "a.dcm", np.array(pixels), stored, signed=True, PixelPaddingValue=padding)
        assert_grey(path, [0, 0, 127, 255])


@pytest.mark.parametrize("encoding", ["raw", "big endian", "RLE", "JPEG Lossless"])
def test_values_in_the_high_bits(tmp_path, encoding):
    def written(codes, stored, **tags):
        if encoding == "RLE":
            size = {"rows": codes.shape[0], "columns": codes.shape[1], "bits_allocated": 16, "bits_stored": 16}
            kind = {"samples_per_pixel": 1, "number_of_frames": 1, "pixel_representation": 0}
            plain = codes.astype("<u2").tobytes()
            frame = RLELosslessEncoder.encode(plain, **size, **kind, photometric_interpretation="MONOCHROME2")
            tags |= {"syntax": RLELossless, "frames": [frame]}
        elif encoding == "JPEG Lossless":
            tags |= {"syntax": JPEGLosslessSV1, "frames": [jpeg_lossless(codes, 16)]}
        elif encoding == "big endian":
            tags |= {"syntax": ExplicitVRBigEndian}
        return write(tmp_path / "a.dcm", codes, stored, **tags)

    for low, stored in ((2, 14), (4, 12), (6, 10)):
        moved = f"its values lie {low} bits higher"
        assert_grey(written(VALUES << low, stored, HighBit=15), PLAIN, moved)
        assert_grey(written(VALUES << low, stored, HighBit=15, **EXACT), WINDOWED, moved)
        signed = (VALUES - 300) << low & 0xFFFF
        path = written(signed, stored, HighBit=15, PixelRepresentation=1, **EXACT | {"WindowCenter": -100})
        assert_grey(path, WINDOWED, moved)
        junk = (VALUES << low) + [[0, 1], [0, 1]] + (1 << 15)  # below them, as overlays were kept
        assert_grey(written(junk, stored, HighBit=15), PLAIN, moved)
        # a HighBit that the values belie
        odd = np.add(VALUES, [[0, 1], [0, 0]])
        assert_grey(written(odd, stored, HighBit=15, **EXACT), [0, 128, 255, 255], "HighBit does not fit the values")
        assert_grey(written(VALUES, stored, HighBit=3, **EXACT), WINDOWED, "HighBit is 3 and ignored")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"NumberOfFrames": "2"}, []),
        ({"NumberOfFrames": "0"}, ["NumberOfFrames is taken as 1"]),
        ({"BitsStored": 17}, ["BitsStored is 17 and taken as 16"]),
        ({"BitsStored": 0}, ["BitsStored is 0 and taken as 16"]),
        ({"BitsStored": None}, ["BitsStored is None"]),
        ({"BitsAllocated": 12}, ["BitsAllocated is 12 and taken as 16"]),
        ({"BitsAllocated": None}, ["BitsAllocated is None and taken as 16"]),
        ({"PixelRepresentation": 2}, ["PixelRepresentation is 2 and taken as 0"]),
        ({"PixelRepresentation": None}, ["PixelRepresentation is None and taken as 0"]),
        ({"PhotometricInterpretation": "PURPLE"}, ["'PURPLE' and taken as MONOCHROME2: grey may be inverted"]),
        ({"PhotometricInterpretation": None}, ["'' and taken as MONOCHROME2"]),
        ({"PhotometricInterpretation": "monochrome2"}, []),
        ({"SamplesPerPixel": None}, ["SamplesPerPixel is None and taken as 1"]),
        ({"SamplesPerPixel": 0}, ["SamplesPerPixel is 0 and taken as 1"]),
        ({"HighBit": None}, []),
    ],
)
def test_descriptions_that_the_data_complete(tmp_path, tags, words):
    assert_grey(write(tmp_path / "a.dcm", VALUES, 12, **tags), PLAIN, *words)
