"""PNG and JPEG files of every kind as 8-bit grey: right values, right way up, whatever stands beside the pixels."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from siimcovid.data.picture_files import decode_picture, picture_kind
from support.png_chunks import chunk, png

#: 12-bit values, (40, 50), rising to 3998.
DEEP = (np.arange(2000).reshape(40, 50) * 2).astype(np.uint16)
GREY = (DEEP.astype(np.float64) / 3998 * 255).astype(np.uint8)  # what they should become


@pytest.fixture
def decode():
    """Decode bytes as a file of their kind."""
    return lambda data: decode_picture(data, picture_kind(data))[0]


def saved(pixels: np.ndarray | Image.Image, kind: str = "PNG", **settings) -> bytes:
    data = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(data, kind, **settings)
    return data.getvalue()


def layers(grey: np.ndarray, count: int, alpha: int | None = None) -> np.ndarray:
    """The same grey `count` times, and a constant alpha."""
    return np.dstack([grey] * count + ([] if alpha is None else [np.full_like(grey, alpha)]))


SCREEN = np.arange(256, dtype=np.uint8)
PALETTE = bytes(value for grey in SCREEN[::-1] for value in (grey, grey, grey))  # reversed: 0 is white
BITS = np.random.default_rng(0).integers(0, 2, (40, 50)).astype(bool)

KINDS = {
    "8 bits": (lambda: png(GREY), GREY),
    "8 bits, low values": (lambda: png(GREY // 8), GREY // 8),  # not stretched: they fill their range as they like
    "12 of 16 bits": (lambda: png(DEEP), GREY),
    "12 of 16 bits, shifted left": (lambda: png(DEEP << 4), GREY),
    "12 of 16 bits, sBIT": (lambda: png(DEEP, chunk(b"sBIT", b"\x0c")), GREY),
    "16 bits, by Pillow": (lambda: saved(Image.fromarray(DEEP)), GREY),
    "16 bits of one value": (lambda: png(DEEP * 0 + 700), GREY * 0),
    "8 bits with alpha": (lambda: png(layers(GREY, 1, 255)), GREY),
    "8 bits, transparent": (lambda: png(layers(GREY, 1, 0)), GREY),
    "12 of 16 bits with alpha": (lambda: png(layers(DEEP, 1, 65535)), GREY),
    "12 of 16 bits, transparent": (lambda: png(layers(DEEP, 1, 0)), GREY),
    "12 of 16 bits, one grey transparent": (lambda: png(DEEP, chunk(b"tRNS", b"\0\0")), GREY),
    "colour": (lambda: png(layers(GREY, 3)), GREY),
    "colour with alpha": (lambda: png(layers(GREY, 3, 9)), GREY),
    "16-bit colour": (lambda: png(layers(DEEP, 3)), GREY),
    "16-bit colour with alpha": (lambda: png(layers(DEEP, 3, 65535)), GREY),
    "16-bit red": (lambda: png(np.dstack([DEEP, DEEP * 0, DEEP * 0])), GREY),
    "palette": (lambda: png(GREY, palette=PALETTE), 255 - GREY),
    "palette with transparency": (lambda: png(GREY, chunk(b"tRNS", bytes(256)), palette=PALETTE), 255 - GREY),
    "1 bit": (lambda: saved(Image.fromarray(BITS)), BITS * np.uint8(255)),
    "2 bits": (lambda: saved(Image.fromarray(GREY // 64 * 85).quantize(4), bits=2), GREY // 64 * 85),
    "animated": (lambda: saved(GREY, save_all=True, append_images=[Image.fromarray(255 - GREY)]), GREY),
    "long text": (lambda: png(GREY, chunk(b"tEXt", b"k\0" + b"x" * (3 << 20))), GREY),
    "text that inflates": (lambda: png(GREY, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80 << 20)))), GREY),
    "profile that inflates": (lambda: png(GREY, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(80 << 20)))), GREY),
    "damaged text": (lambda: png(GREY, chunk(b"iTXt", b"\xff")), GREY),
    "damaged EXIF": (lambda: png(GREY, chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")), GREY),
}


@pytest.mark.parametrize("name", KINDS)
def test_png(name, decode):
    make, expected = KINDS[name]
    found = decode(make())
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1  # luma's rounding


def interlaced(pixels: np.ndarray) -> bytes:
    """A PNG of 8 or 16 bits in Adam7's seven passes."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    order = f">u{pixels.dtype.itemsize}"
    lines = [
        b"\0" + line.astype(order).tobytes()
        for row, column, down, right in passes
        for line in pixels[row::down, column::right]
    ]
    data = bytearray(png(pixels))
    data[28] = 1
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data[:33]) + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("pixels", [GREY, DEEP, layers(DEEP, 3)], ids=["grey", "16-bit grey", "16-bit colour"])
def test_interlaced(pixels, decode):
    assert np.abs(decode(interlaced(pixels)).astype(int) - GREY).max() <= 1


def exif(orientation: int, kind: str = "H", count: int = 1, more: bytes = b"", tail: bytes = b"") -> bytes:
    """EXIF with an orientation of TIFF type BYTE, SHORT or LONG; `more` are further entries of twelve bytes, and
    `tail` what they point to, at 38 after one."""
    value = struct.pack(f">{kind}", orientation).ljust(4, b"\0")
    entry = struct.pack(">HHI", 0x0112, {"B": 1, "H": 3, "I": 4}[kind], count) + value
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1 + len(more) // 12) + entry + more + bytes(4) + tail


#: What an orientation says of a stored picture: how it becomes upright.
TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.T,
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).T,
    8: lambda p: np.rot90(p),
}
SPREAD = struct.pack(">HHII", 0x011A, 5, 1, 38) + struct.pack(">HHII", 0x011B, 5, 1, 0xFFFFFFF0)  # resolutions
DRESSES = {
    "short": {},
    "byte": {"kind": "B"},
    "long": {"kind": "I"},
    "two values": {"count": 2},
    "rationals that lie nowhere": {"more": SPREAD},
    "rational by zero": {"more": struct.pack(">HHII", 0x011A, 5, 1, 38), "tail": struct.pack(">II", 72, 0)},
    "negative rational": {"more": struct.pack(">HHII", 0x011A, 10, 1, 38), "tail": struct.pack(">ii", -72, 1)},
    "rational that is no number": {
        "more": struct.pack(">HHII", 0x011A, 12, 1, 38),
        "tail": struct.pack(">d", float("nan")),
    },
}


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "deep PNG"])
def test_orientation(kind, orientation, dress, decode):
    data = exif(orientation, **DRESSES[dress])
    if kind == "JPEG":
        file = saved(GREY, "JPEG", quality=100, exif=data)
    else:
        file = png(DEEP if "deep" in kind else GREY, chunk(b"eXIf", data[6:]))
    expected = TURNS[orientation](GREY)
    found = decode(file)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 3  # JPEG's loss


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 9,
        exif(0),
        exif(9),
        exif(6)[:20],
        exif(6).replace(b"\0\x03", b"\0\x05"),
        exif(1, more=struct.pack(">HHII", 0x8769, 4, 1, 8)),  # an EXIF folder inside itself
    ],
)
def test_exif_that_says_nothing(data, decode):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = decode(saved(GREY, "JPEG", quality=100, exif=data))
    assert np.abs(found.astype(int) - GREY).max() <= 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: saved(layers(GREY, 3), "JPEG", quality=100),
        lambda: saved(GREY, "JPEG", quality=100, progressive=True),
        lambda: saved(Image.fromarray(layers(GREY, 3)).convert("CMYK"), "JPEG", quality=100),
        lambda: saved(GREY, "JPEG", quality=100, comment=b"x" * 60_000),
        lambda: saved(GREY, "JPEG", quality=100, icc_profile=b"no profile" * 9000),
        lambda: saved(GREY, "JPEG", quality=100) + b"\0" * 1000,
    ],
    ids=["colour", "progressive", "CMYK", "long comment", "bad profile", "zeros after the end"],
)
def test_jpeg(make, decode):
    assert np.abs(decode(make()).astype(int) - GREY).max() <= 3


@pytest.mark.parametrize("data", [png(GREY)[:-100], png(DEEP)[:-100], png(layers(DEEP, 3))[:-100]])
def test_png_that_breaks_off_is_refused(data, decode):
    with pytest.raises((OSError, SyntaxError, ValueError)):
        decode(data)


def test_size_is_checked_before_a_pixel_is_decoded():
    sizes = []

    def refuse(rows: int, columns: int) -> None:
        sizes.append((rows, columns))
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        decode_picture(png(DEEP)[:100], "PNG", refuse)
    assert sizes == [(40, 50)]
