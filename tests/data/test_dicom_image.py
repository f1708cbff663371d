"""Every readable image equals the plain chain of pydicom's functions, pixel by pixel; every other one says why not."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_voi_lut
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from siimcovid.data import dicom_decode, dicom_grey
from siimcovid.data.dicom_image import DicomError, read_image
from support.dicom_files import COLUMNS, ROWS, jpeg_lossless, plain_chain, table, values, write


def assert_plain(path: Path) -> None:
    np.testing.assert_array_equal(read_image(path), plain_chain(path))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("stored", [8, 10, 12, 13, 14, 15, 16])
def test_depths(tmp_path, stored, signed, photometric):
    path = write(
        tmp_path / "a.dcm", values(stored, signed), stored, signed=signed, PhotometricInterpretation=photometric
    )
    assert_plain(path)
    assert len(np.unique(read_image(path))) > 30  # the picture is no accident of two empty ones


WINDOWS = {
    "linear": {"WindowCenter": 900, "WindowWidth": 1500},
    "several": {"WindowCenter": [700, 1200], "WindowWidth": [900, 300]},
    "narrow": {"WindowCenter": 700, "WindowWidth": 1},
    "exact": {"WindowCenter": 900, "WindowWidth": 1500.5, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 900, "WindowWidth": 700, "VOILUTFunction": "SIGMOID"},
}
RESCALES = {
    "none": {},
    "plain": {"RescaleSlope": 1, "RescaleIntercept": -1024},
    "fraction": {"RescaleSlope": "0.37", "RescaleIntercept": "11.3"},
    "falling": {"RescaleSlope": -2, "RescaleIntercept": 4095},
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("window", ["none", *WINDOWS])
def test_rescale_and_windows(tmp_path, window, rescale, signed):
    photometric = "MONOCHROME1" if rescale == "fraction" else "MONOCHROME2"
    tags = {**WINDOWS.get(window, {}), **RESCALES[rescale], "PhotometricInterpretation": photometric}
    assert_plain(write(tmp_path / "a.dcm", values(12, signed), 12, signed=signed, **tags))


@pytest.mark.parametrize("stored", [8, 12])
def test_tables(tmp_path, stored):
    falling = [round(4095 * (1 - k / 399) ** 2) for k in range(400)]
    for tags in (
        {"ModalityLUTSequence": [table(20, 16, falling)]},
        {"VOILUTSequence": [table(100, 12, falling), table(0, 8, [1, 2])]},
        {"VOILUTSequence": [table(0, 8, list(range(256)))]},
        {"ModalityLUTSequence": [table(0, 16, falling)], "VOILUTSequence": [table(500, 16, falling)]},
        {"ModalityLUTSequence": [table(9, 16, falling)], **WINDOWS["linear"]},
        {"VOILUTSequence": [table(100, 12, falling)], **WINDOWS["linear"]},  # the table is preferred
        {"VOILUTSequence": [table(100, 12, falling)], **RESCALES["fraction"]},
    ):
        assert_plain(write(tmp_path / "a.dcm", values(stored, False), stored, **tags))
    signed_table = {"VOILUTSequence": [table(-50, 12, falling, signed=True)]}
    assert_plain(write(tmp_path / "a.dcm", values(stored, True), stored, signed=True, **signed_table))


def test_empty_elements_are_none(tmp_path):
    empty = table(0, 16, [0])
    empty.LUTDescriptor = empty.LUTData = None
    pixels = values(12, False)
    without = write(tmp_path / "without.dcm", pixels, 12, **RESCALES["falling"])
    path = write(tmp_path / "with.dcm", pixels, 12, **RESCALES["falling"], ModalityLUTSequence=[empty])
    np.testing.assert_array_equal(read_image(path), plain_chain(without))
    bare = write(tmp_path / "bare.dcm", pixels, 12)
    path = write(tmp_path / "a.dcm", pixels, 12, RescaleSlope="", RescaleIntercept="", WindowCenter="", WindowWidth="")
    np.testing.assert_array_equal(read_image(path), plain_chain(bare))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("stored", "allocated"), [(5, 8), (10, 16), (12, 16), (15, 16)])
def test_junk_above_the_stored_bits_is_ignored(tmp_path, stored, allocated, signed):
    pixels = values(stored, signed) & (2**stored - 1)
    junk = np.random.default_rng(0).integers(0, 2 ** (allocated - stored), pixels.shape) << stored
    path = write(tmp_path / "a.dcm", pixels | junk, stored, allocated=allocated, PixelRepresentation=int(signed))
    assert_plain(path)
    clean = write(tmp_path / "clean.dcm", values(stored, signed), stored, allocated=allocated, signed=signed)
    np.testing.assert_array_equal(read_image(path), read_image(clean))


def test_one_single_value_is_black(tmp_path):
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        path = write(tmp_path / "a.dcm", np.full((4, 5), 700), 12, PhotometricInterpretation=photometric)
        with np.errstate(all="raise"):  # 0 / 0 is not relied on to become 0
            np.testing.assert_array_equal(read_image(path), np.zeros((4, 5), np.uint8))


def test_worked_by_hand(tmp_path):
    # (v - 100) / 400 * 255 = 0, 63.75, 127.5, 255; turned over: 400 - (v - 100), so 255, 191.25, 127.5, 0
    pixels = np.array([[100, 200], [300, 500]])
    assert read_image(write(tmp_path / "a.dcm", pixels, 12)).tolist() == [[0, 63], [127, 255]]
    turned = write(tmp_path / "b.dcm", pixels, 12, PhotometricInterpretation="MONOCHROME1")
    assert read_image(turned).tolist() == [[255, 191], [127, 0]]


def test_without_16_bit_tables(tmp_path, monkeypatch):
    """OpenCV before 5 looks up tables of 256 entries only."""

    def old(source: np.ndarray, table: np.ndarray) -> np.ndarray:
        raise cv2.error("lut.size() == 256")

    path = write(tmp_path / "a.dcm", values(12, True), 12, signed=True)
    monkeypatch.setattr(dicom_grey.cv2, "LUT", old)
    assert_plain(path)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_uncompressed_syntaxes(tmp_path, syntax):
    for stored in (8, 13):
        assert_plain(write(tmp_path / "a.dcm", values(stored, True), stored, signed=True, syntax=syntax))


def test_odd_encodings(tmp_path):
    pixels = values(12, False)
    assert_plain(write(tmp_path / "a.dcm", pixels * 1000, 32, allocated=32))
    frame = RLELosslessEncoder.encode(
        pixels.astype("<u2").tobytes(),
        rows=ROWS,
        columns=COLUMNS,
        bits_allocated=16,
        bits_stored=12,
        samples_per_pixel=1,
        number_of_frames=1,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )
    assert_plain(write(tmp_path / "b.dcm", pixels, 12, syntax=RLELossless, frames=[frame]))


@pytest.mark.skipif(dicom_decode.dicomsdl is None, reason="dicomsdl is not installed")
@pytest.mark.parametrize("predictor", range(1, 8))
def test_jpeg_lossless(tmp_path, predictor):
    syntax = JPEGLosslessSV1 if predictor == 1 else JPEGLossless
    for stored in (8, 12, 15, 16):
        for signed in (False, True):
            codes = values(stored, signed) & (2**stored - 1)
            frame = jpeg_lossless(codes, stored, predictor)
            tags = {"syntax": syntax, "frames": [frame], "PixelRepresentation": int(signed)}
            path = write(tmp_path / "a.dcm", codes, stored, **tags)
            assert_plain(path)
            plain = write(tmp_path / "b.dcm", values(stored, signed), stored, signed=signed)
            np.testing.assert_array_equal(read_image(path), plain_chain(plain))
            fast = dicom_decode._decode_lossless(frame, syntax, ROWS, COLUMNS, np.dtype("u1" if stored == 8 else "<u2"))
            np.testing.assert_array_equal(fast, codes)


def test_jpeg_lossless_by_other_decoders(tmp_path, monkeypatch):
    codes = values(12, False)
    restarts = jpeg_lossless(codes, 12, restart_rows=4)  # dicomsdl does not get to see these
    assert_plain(write(tmp_path / "a.dcm", codes, 12, syntax=JPEGLosslessSV1, frames=[restarts]))
    whole = jpeg_lossless(codes, 12)
    broken = whole[:-200] + b"\xff\xe5" + whole[-198:]
    for frame in (
        restarts,
        broken,
        whole[:-2],
        whole[:-200],
        jpeg_lossless(codes, 12).replace(b"\x0c\0", b"\x07\0", 1),
    ):
        assert dicom_decode._decode_lossless(frame, JPEGLosslessSV1, ROWS, COLUMNS, np.dtype("<u2")) is None
    monkeypatch.setattr(dicom_decode, "dicomsdl", None)
    assert_plain(write(tmp_path / "a.dcm", codes, 12, syntax=JPEGLosslessSV1, frames=[whole]))


def test_the_first_of_several_frames(tmp_path):
    first, second = values(12, False), values(10, False)
    one = write(tmp_path / "one.dcm", first, 12)
    two = write(tmp_path / "two.dcm", np.concatenate([first, second]), 12, Rows=ROWS, NumberOfFrames=2)
    np.testing.assert_array_equal(read_image(two), plain_chain(one))
    frames = [jpeg_lossless(first, 12), jpeg_lossless(second, 12)]
    compressed = write(tmp_path / "c.dcm", first, 12, syntax=JPEGLosslessSV1, frames=frames, NumberOfFrames=2)
    np.testing.assert_array_equal(read_image(compressed), plain_chain(one))


def test_colour_becomes_luma(tmp_path):
    grey = values(8, False)
    path = write(tmp_path / "grey.dcm", np.stack([grey] * 3, 2), 8)
    np.testing.assert_array_equal(read_image(path), plain_chain(write(tmp_path / "g.dcm", grey, 8)))
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]], [[0, 0, 0], [100, 100, 100]]])
    # .299, .587, .114, their sum, 0, and 100 itself
    assert read_image(write(tmp_path / "rgb.dcm", colours, 8)).tolist() == [[76, 149], [29, 255], [0, 100]]


def test_without_preamble_meta_or_syntax(tmp_path):
    whole = write(tmp_path / "whole.dcm", values(12, False), 12, **WINDOWS["linear"])
    expected = plain_chain(whole)
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        dataset = pydicom.dcmread(write(tmp_path / "a.dcm", values(12, False), 12, syntax=syntax, **WINDOWS["linear"]))
        bare = dataset.copy()
        del bare.file_meta
        bare.save_as(tmp_path / "bare.dcm", implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
        np.testing.assert_array_equal(read_image(tmp_path / "bare.dcm"), expected)


def test_silence(tmp_path, caplog):
    tags = {"VOILUTSequence": [table(0, 8, list(range(256)))], **RESCALES["fraction"], "StudyDate": "5c3ef1"}
    path = write(tmp_path / "a.dcm", values(12, False), 12, **tags)
    logger = logging.getLogger("pydicom")
    logger.setLevel(logging.INFO)
    with warnings.catch_warnings(record=True) as used:
        warnings.simplefilter("always")
        caplog.clear()
        read_image(path)
        assert (len(used), len(caplog.records), logger.level) == (0, 0, logging.INFO)
        apply_voi_lut(np.zeros((2, 2)), pydicom.dcmread(path))  # what it would have said, and still says elsewhere
        assert (len(used), len(caplog.records)) == (1, 1)


def test_nothing_heavy_is_imported():
    """Each worker process pays for it."""
    code = "import sys, siimcovid.data.dicom_image, siimcovid.data.image_cache\n"
    code += "print({'torch', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


#: What cannot be read of the real files, and why.
UNREADABLE = {
    "MR_truncated.dcm": "breaks off: it holds 8,130 of 8,192 bytes of pixel data",
    "meta_missing_tsyntax.dcm": "its header gives no size",
    "no_meta.dcm": "is not a DICOM file",  # its first byte is one too many
}


def test_real_files(real):
    paths = sorted((real / "dicom").iterdir())
    assert len(paths) == 24
    for path in paths:
        if path.name in UNREADABLE:
            with pytest.raises(DicomError, match=UNREADABLE[path.name]):
                read_image(path)
            continue
        image = read_image(path)
        if path.name == "SC_rgb_jpeg_dcmtk.dcm":
            assert image.shape == (100, 100)  # the plain chain gives colour
        elif path.name == "CR-MONO1-10-chest_nopreamble":  # the plain chain fails; the same image with a preamble
            np.testing.assert_array_equal(image, plain_chain(real / "dicom" / "gdcm-CR-MONO1-10-chest.dcm"))
        elif path.name == "JPEGLosslessP14SV1_1s_1f_u_16_16.dcm":  # its LUTs and rescale are empty
            assert image.shape == (535, 800)
            assert len(np.unique(image)) > 100
        elif path.name == "badVR.dcm":  # its number of frames is '1A'
            assert image.shape == (10, 10)
        else:
            np.testing.assert_array_equal(image, plain_chain(path), err_msg=path.name)


def test_identifiers_that_are_no_uids_are_no_news_in_any_thread():
    """The competition's are hashes; what one thread silences, another must not bring back."""
    script = (
        "from siimcovid.data import dicom_image\n"
        "from pydicom import DataElement, config\n"
        "DataElement(0x0020000D, 'UI', '215d5a459a13', config.WARN)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
