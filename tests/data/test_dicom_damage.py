"""Foreign, broken and hostile files end in a DicomError that says why, and in nothing else."""

import pickle

import cv2
import numpy as np
import pytest
from pydicom.uid import JPEGLosslessSV1

from siimcovid.data import dicom_image
from siimcovid.data.dicom_image import DicomError, read_image
from support.dicom_files import jpeg_lossless, values, write


@pytest.fixture
def whole(tmp_path) -> bytes:
    return write(tmp_path / "whole.dcm", values(12, False), 12).read_bytes()


def test_foreign_and_broken_files(tmp_path, whole):
    path = tmp_path / "image.dcm"
    foreign = cv2.imencode(".png", np.zeros((50, 50), np.uint8))[1].tobytes()
    for content, reason in (
        (b"", "is empty"),
        (b"not an image\n" * 100, "is not a DICOM file"),
        (foreign, "is not a DICOM file"),
        (bytes(5000), "is not a DICOM file"),
        (whole[:200], ""),
        (whole[:-50], "breaks off: it holds 732 of 782 bytes"),
        (whole[132:-50], "breaks off"),
    ):
        path.write_bytes(content)
        with pytest.raises(DicomError) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: {reason}")
        assert "\n" not in str(caught.value)
    path.unlink()
    for missing in (path, tmp_path):
        with pytest.raises(DicomError, match="cannot be read from the disk"):
            read_image(missing)


def test_absurd_headers(tmp_path):
    pixels, frame = values(12, False), jpeg_lossless(values(12, False), 12)
    for tags, reason in (
        ({"Rows": 65535, "Columns": 65535}, "absurd size 65535 x 65535"),
        ({"Rows": 0}, "gives no size"),
        ({"Rows": None}, "gives no size"),
        ({"Rows": 24}, "breaks off"),
        ({"PixelData": None}, "no pixel data"),
        ({"syntax": "1.2.840.10008.1.2.4.100", "frames": [frame]}, "cannot be decoded"),  # an image, in the other sense
        ({"syntax": JPEGLosslessSV1, "frames": [frame], "Rows": 9999}, "9999 x 17, its compressed image 23 x 17"),
        ({"syntax": JPEGLosslessSV1, "frames": [b"\0" * 50]}, "has no beginning"),
        ({"syntax": JPEGLosslessSV1, "frames": [frame[:20]]}, "cannot be decoded"),
    ):
        path = write(tmp_path / "a.dcm", pixels, 12, **tags)
        with pytest.raises(DicomError, match=reason):
            read_image(path)


def test_garbage_never_escapes(tmp_path, whole):
    """Whatever stands in the header, there is a picture or a DicomError."""
    rng = np.random.default_rng(0)
    path, pictures = tmp_path / "image.dcm", 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(128, 500)] = rng.integers(256)
        path.write_bytes(content)
        try:
            pictures += read_image(path).dtype == np.uint8
        except DicomError as error:
            assert error.reason  # noqa: PT017
    assert 0 < pictures < 150


def test_reasons_are_printable(tmp_path, whole):
    """An error may quote bytes of the file."""
    path = tmp_path / "image.dcm"
    path.write_bytes(whole.replace(b"1.2.840.10008.1.2.1", b"1.2\n\x07\x00\xff.10008.1.5.1"))
    tags = {"syntax": JPEGLosslessSV1, "frames": [jpeg_lossless(values(12, False), 12)[:60]]}
    for file in (path, write(tmp_path / "cut.dcm", values(12, False), 12, **tags)):
        try:
            read_image(file)
        except DicomError as error:
            assert error.reason.isprintable()  # noqa: PT017


def test_a_codestream_that_ends_the_process_of_gdcm(tmp_path):
    """One bit is stored, two are coded, and the predictor is none: gdcm calls abort."""
    frame = jpeg_lossless(np.array([[0, 1, 1, 0]]), 2).replace(b"\xff\xda\0\x08\1\1\0\1", b"\xff\xda\0\x08\1\1\0\xf0")
    path = write(tmp_path / "a.dcm", np.zeros((1, 4)), 1, syntax=JPEGLosslessSV1, frames=[frame])
    with pytest.raises(DicomError, match="cannot be decoded"):
        read_image(path)


def test_what_is_no_exception_is_an_error_too(tmp_path, whole, monkeypatch):
    class Panic(BaseException):  # Rust's panics are no `Exception`
        pass

    def panic(dataset):
        raise Panic("index out of bounds\nat line 7")

    monkeypatch.setattr(dicom_image, "decode", panic)
    with pytest.raises(DicomError, match="Panic: index out of bounds at line 7"):
        read_image(tmp_path / "whole.dcm")
    monkeypatch.setattr(dicom_image, "decode", lambda dataset: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        read_image(tmp_path / "whole.dcm")


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(DicomError("a.dcm", "is empty")))
    assert (str(error), error.reason) == ("a.dcm: is empty", "is empty")
