"""A PNG or JPEG file as 8-bit grey.

In: the path of a file of a known kind. Out: uint8 (rows, columns), 0 black, upright. It runs where a crash of the
decoders does no harm: see uploaded_files.py.
"""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

#: A file's first bytes, by its kind.
SIGNATURES = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff"}

#: Chunks of a PNG that make its picture, and the one that may turn it. Text, colour profiles and the rest may be
#: damaged or unpack to any size, and change nothing here.
PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}

#: EXIF orientation -> what makes the picture upright, as Pillow's exif_transpose has it.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Weights of blue, green and red in ITU-R BT.601's luma, in the order of OpenCV's channels.
BGR_LUMA = np.array([0.114, 0.587, 0.299])


def picture_kind(start: bytes) -> str | None:
    """Which of SIGNATURES a file is, by its first bytes; None for another."""
    return next((kind for kind, signature in SIGNATURES.items() if start.startswith(signature)), None)


def decode_picture(path: Path | str, kind: str, check_size: Callable[[int, int], None]) -> np.ndarray:
    """Decode a PNG or JPEG file as uint8 (rows, columns).

    8-bit values stay as they are, also those of palettes and of 1, 2 or 4 bits; 16-bit ones are stretched from the
    lowest to the highest, since they rarely use the whole range. Colour becomes luma (BT.601); transparency is left
    out, as it hides nothing of a radiograph. The orientation of EXIF is followed, as browsers do; other metadata are
    not read. check_size is called with rows and columns as stored before any pixel is decoded.

    Raises whatever Pillow raises for a damaged file, and whatever check_size does.
    """
    data = Path(path).read_bytes()
    data = _without_metadata(data) if kind == "PNG" else data
    with Image.open(io.BytesIO(data), formats=[kind]) as picture:  # reads the header only
        check_size(picture.height, picture.width)
        turn = UPRIGHT.get(_exif_orientation(picture))
        picture.load()  # strict: OpenCV fills what is missing of a file that breaks off
        # 16-bit greys with alpha and 16-bit colours lose their low byte in Pillow
        grey = _decode_deep_png(data) if kind == "PNG" and data[24] == 16 else np.asarray(picture.convert("L"))
    return grey if turn is None else np.asarray(Image.fromarray(grey).transpose(turn))


def _without_metadata(data: bytes) -> bytes:
    """A PNG file with PNG_CHUNKS alone; one that breaks off breaks off at the same place."""
    parts, position = [data[:8]], 8
    while position + 8 <= len(data):
        length, chunk = struct.unpack(">I4s", data[position : position + 8])
        if chunk in PNG_CHUNKS:
            parts.append(memoryview(data)[position : position + length + 12])
        position += length + 12  # length and name before the chunk's data, a checksum after them
    return b"".join(parts)


def _decode_deep_png(data: bytes) -> np.ndarray:
    """A whole PNG file of 16 bits a channel as uint8: its luma from the lowest to the highest value."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    values = values.astype(np.float64) if values.ndim == 2 else values[..., :3] @ BGR_LUMA
    values -= values.min()
    highest = values.max()
    return (values / highest * 255).astype(np.uint8) if highest > 0 else np.zeros(values.shape, np.uint8)


def _exif_orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where it is not given or damaged."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value[0] if isinstance(value, (tuple, bytes)) else value)
    except Exception:  # EXIF is a file of its own, which may be damaged in any way
        return 1
