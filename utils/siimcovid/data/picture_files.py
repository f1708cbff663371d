"""An image that is a PNG or JPEG file already, as NIH's are, as an 8-bit picture.

In: the path of the file, or its bytes. Out: uint8 (rows, columns), 0 black, upright, and sentences on what was done to
it. Colour becomes luma (BT.601), palettes and interlaced files are read, and 16-bit values are stretched from the
lowest to the highest as a DICOM's are, since files of 16 bits often hold values of 12.

Pillow reads the header and makes sure that the file is whole, since OpenCV before version 5 fills what is missing of
one that breaks off. OpenCV decodes, since Pillow drops the low byte of 16-bit greys with alpha and of 16-bit colours.
"""

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from siimcovid.data.dicom_grey import stretch
from siimcovid.data.dicom_image import DicomError

#: Endings of files that are read here; all else is read as DICOM.
PICTURES = (".png", ".jpg", ".jpeg")

#: A file's first bytes, by its kind.
SIGNATURES = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff"}

#: Chunks of a PNG that make its picture, and the one that may turn it. Text, colour profiles and the rest may be
#: damaged or unpack to any size, and change nothing here.
PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"eXIf"}

#: PNG's colour types with an alpha channel, and where in the file the type stands.
WITH_ALPHA, COLOUR_TYPE = (4, 6), 25

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


def is_picture(path: Path | str) -> bool:
    """Whether a file's name says PNG or JPEG."""
    return str(path).lower().endswith(PICTURES)


def picture_kind(start: bytes) -> str | None:
    """Which of SIGNATURES a file is, by its first bytes; None for another."""
    return next((kind for kind, signature in SIGNATURES.items() if start.startswith(signature)), None)


def read_picture(path: Path | str) -> tuple[np.ndarray, list[str]]:
    """Read a PNG or JPEG file: uint8 (rows, columns), and a short sentence for each thing done to it.

    Raises DicomError for a file that cannot be read, is damaged or breaks off.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DicomError(path, f"cannot be read from the disk ({error.strerror or error})") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of many pixels and of damaged EXIF
            return decode_picture(data, picture_kind(data[:8]) or "")
    except MemoryError:
        raise DicomError(path, "there is not enough memory to read it") from None
    except Image.DecompressionBombError:
        raise DicomError(path, f"has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly any type
        raise DicomError(path, "is no whole PNG or JPEG") from error


def decode_picture(
    data: bytes, kind: str, check_size: Callable[[int, int], None] = lambda rows, columns: None
) -> tuple[np.ndarray, list[str]]:
    """Decode the bytes of a PNG or JPEG file: what `read_picture` returns.

    8-bit values stay as they are, also those of palettes and of 1, 2 or 4 bits. The picture is turned as its EXIF
    orientation says, and transparency is ignored, as it hides nothing of a radiograph; both are noticed. Other metadata
    are not read.

    kind: of SIGNATURES. check_size: called with rows and columns as stored before any pixel is decoded.
    Raises whatever Pillow and OpenCV raise for a damaged file, and whatever check_size does.
    """
    notices = []
    data = _without_metadata(data) if kind == "PNG" else data
    with Image.open(io.BytesIO(data), formats=[kind]) as picture:  # reads the header only
        check_size(picture.height, picture.width)
        turn = UPRIGHT.get(_exif_orientation(picture))
        picture.load()  # strict: a file that breaks off is refused
    grey = _decode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    if kind == "PNG" and data[COLOUR_TYPE] in WITH_ALPHA:
        alpha = _decode(data, cv2.IMREAD_UNCHANGED)[..., 3]
        if alpha.min() < np.iinfo(alpha.dtype).max:
            notices.append("has transparent pixels, which are shown as if they were not")
    grey = grey if grey.dtype == np.uint8 else stretch(grey)
    if turn is not None:
        grey = np.asarray(Image.fromarray(grey).transpose(turn))
        notices.append("is turned as its EXIF orientation says")
    return grey, notices


def _decode(data: bytes, flags: int) -> np.ndarray:
    """What OpenCV decodes. Raises ValueError where it refuses, MemoryError where memory is short."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise
    if pixels is None:
        raise ValueError("OpenCV cannot decode this picture")
    return pixels


def _without_metadata(data: bytes) -> bytes:
    """A PNG file with PNG_CHUNKS alone; one that breaks off breaks off at the same place."""
    parts, position = [data[:8]], 8
    while position + 8 <= len(data):
        length, chunk = struct.unpack(">I4s", data[position : position + 8])
        if chunk in PNG_CHUNKS:
            parts.append(memoryview(data)[position : position + length + 12])
        position += length + 12  # length and name before the chunk's data, a checksum after them
    return b"".join(parts)


def _exif_orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where it is not given or damaged."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value[0] if isinstance(value, (tuple, bytes)) else value)
    except Exception:  # EXIF is a file of its own, which may be damaged in any way
        return 1
