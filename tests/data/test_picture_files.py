"""PNG and JPEG files become grey as worked out by hand."""

import io

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from siimcovid.data import image_cache
from siimcovid.data.dicom_image import DicomError
from siimcovid.data.picture_files import is_picture, read_picture
from support.png_files import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, png

EIGHT = np.array([[10, 20], [30, 50]])
TWELVE = np.array([[100, 200], [300, 500]])  # (v - 100) / 400 * 255 = 0, 63.75, 127.5, 255
OPAQUE, GLASS = np.full((2, 2), 65535), np.array([[0, 65535], [65535, 65535]])


def stack(*channels: np.ndarray) -> np.ndarray:
    return np.stack(channels, 2)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("values", "kind", "bits", "expected", "words"),
    [
        (EIGHT, GREY, 8, [10, 20, 30, 50], []),
        (TWELVE, GREY, 16, [0, 63, 127, 255], []),
        (TWELVE * 100, GREY, 16, [0, 63, 127, 255], []),
        (np.full((2, 2), 700), GREY, 16, [0, 0, 0, 0], []),
        (stack(EIGHT, OPAQUE >> 8), GREY_ALPHA, 8, [10, 20, 30, 50], []),
        (stack(EIGHT, GLASS >> 8), GREY_ALPHA, 8, [10, 20, 30, 50], ["transparent"]),
        (stack(TWELVE, OPAQUE), GREY_ALPHA, 16, [0, 63, 127, 255], []),
        (stack(TWELVE, GLASS), GREY_ALPHA, 16, [0, 63, 127, 255], ["transparent"]),
        (stack(EIGHT, EIGHT, EIGHT), RGB, 8, [10, 20, 30, 50], []),
        (stack(TWELVE, TWELVE, TWELVE), RGB, 16, [0, 63, 127, 255], []),
        (stack(TWELVE, TWELVE, TWELVE, OPAQUE), RGB_ALPHA, 16, [0, 63, 127, 255], []),
    ],
)
def test_png(tmp_path, values, kind, bits, expected, words, interlaced):
    path = tmp_path / "a.png"
    path.write_bytes(png(values, kind, bits, interlaced=interlaced))
    assert_picture(path, expected, words)


def assert_picture(path, expected, words):
    pixels, notices = read_picture(path)
    assert (pixels.ravel().tolist(), pixels.dtype, pixels.ndim) == (expected, np.uint8, 2)
    assert [word in notice for word, notice in zip(words, notices, strict=True)] == [True] * len(words)


def test_palette(tmp_path):
    palette = bytes([10] * 3 + [255, 0, 0] + [0, 255, 0] + [50] * 3)  # .299 and .587 of 255 are 76 and 150
    for alpha in (b"", b"\0\xff"):
        (tmp_path / "a.png").write_bytes(png(np.array([[0, 1], [2, 3]]), PALETTE, 8, palette=palette, alpha=alpha))
        pixels, notices = read_picture(tmp_path / "a.png")
        assert np.abs(pixels.ravel().astype(int) - [10, 76, 150, 50]).max() <= 1
        assert notices == []


@pytest.mark.parametrize("ending", ["png", "jpeg"])
def test_exif_orientation(tmp_path, ending):
    """What lay on its side stands; the same file without the tag is the same picture as it lies."""
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :8] = 200
    for orientation, upright in (
        (1, pixels),
        (3, pixels[::-1, ::-1]),
        (6, np.rot90(pixels, -1)),
        (8, np.rot90(pixels)),
    ):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "a", ending, exif=exif, quality=100)
        shown, notices = read_picture(tmp_path / "a")
        assert shown.shape == upright.shape
        assert np.abs(shown.astype(int) - upright).max() <= 2
        assert notices == (["is turned as its EXIF orientation says"] if orientation > 1 else [])


def test_a_bad_exif_block_does_not_matter(tmp_path):
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x011A] = 72.0  # a resolution, whose denominator is made 0
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(stream, "jpeg", exif=exif)
    whole = stream.getvalue()
    start = whole.index(b"Exif")
    for content in (
        whole.replace(b"\0\0\0\x01\xff\xdb", b"\0\0\0\0\xff\xdb"),
        whole[: start + 6] + b"\xff" * 8 + whole[start + 14 :],
    ):
        (tmp_path / "a.jpg").write_bytes(content)
        assert abs(int(read_picture(tmp_path / "a.jpg")[0].mean()) - 90) <= 1


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_what_breaks_off_is_refused(tmp_path, ending):
    whole = cv2.imencode(ending, np.tile(np.arange(64, dtype=np.uint8), (64, 1)))[1].tobytes()
    for content in (b"", b"no picture", whole[:-12], whole[: len(whole) // 2], whole[:20]):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(DicomError, match="is no whole PNG or JPEG"):
            read_picture(tmp_path / "a")
    with pytest.raises(DicomError, match="cannot be read from the disk"):
        read_picture(tmp_path / "absent")


def test_names():
    assert [is_picture(name) for name in ("a.png", "a.JPG", "a.jpeg", "a.dcm", "png")] == [True] * 3 + [False] * 2


def test_prepare_reads_12_bits_in_16(tmp_path):
    (tmp_path / "a.png").write_bytes(png(TWELVE, GREY, 16))
    images = pd.DataFrame({"image_id": ["a"], "path": [str(tmp_path / "a.png")]})
    assert image_cache.prepare(images, tmp_path / "cache", 8, workers=1, progress=False).empty
    assert image_cache.read(tmp_path / "cache", "a").tolist() == [[0, 63], [127, 255]]
