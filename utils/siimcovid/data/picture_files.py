"""An image that is a PNG or JPEG file already, as NIH's are, as an 8-bit picture.

In: the path of the file. Out: uint8 (rows, columns), 0 black, upright, and sentences on what was done to it. Colour
becomes luma (BT.601), palettes and interlaced files are read, and 16-bit values are stretched from the lowest to the
highest as a DICOM's are, since files of 16 bits often hold values of 12.
"""

from pathlib import Path

import cv2
import numpy as np

from siimcovid.data.dicom_grey import stretch
from siimcovid.data.dicom_image import DicomError

#: Endings of files that are read here; all else is read as DICOM.
PICTURES = (".png", ".jpg", ".jpeg")

#: What stands at the end of a whole file, by its first bytes.
ENDS = {b"\x89PNG\r\n\x1a\n": b"IEND", b"\xff\xd8": b"\xff\xd9"}

#: PNG's colour types with an alpha channel, and where in the file the type stands.
WITH_ALPHA, COLOUR_TYPE = (4, 6), 25


def is_picture(path: Path | str) -> bool:
    """Whether a file's name says PNG or JPEG."""
    return str(path).lower().endswith(PICTURES)


def read_picture(path: Path | str) -> tuple[np.ndarray, list[str]]:
    """Read a PNG or JPEG file: uint8 (rows, columns), and a short sentence for each thing done to it.

    A file is turned as its EXIF orientation says, and transparency is ignored; both are noticed. Raises DicomError for
    a file that cannot be read, is damaged or breaks off.
    """
    notices = []
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DicomError(path, f"cannot be read from the disk ({error.strerror or error})") from error
    content = data.tobytes()
    end = next((end for start, end in ENDS.items() if content.startswith(start)), None)
    image = _decode(data, cv2.IMREAD_GRAYSCALE) if end and end in content else None
    if image is None:
        raise DicomError(path, "is no whole PNG or JPEG")
    if b"Exif" in content or b"eXIf" in content:
        unturned = _decode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
        if not np.array_equal(unturned, image):
            notices.append("is turned as its EXIF orientation says")
    if end == b"IEND" and content[COLOUR_TYPE] in WITH_ALPHA:
        alpha = _decode(data, cv2.IMREAD_UNCHANGED)[..., 3]
        if alpha.min() < np.iinfo(alpha.dtype).max:
            notices.append("has transparent pixels, which are shown as if they were not")
    return image if image.dtype == np.uint8 else stretch(image), notices


def _decode(data: np.ndarray, flags: int) -> np.ndarray | None:
    """OpenCV's decoder at the depth that the file has; None where it refuses."""
    try:
        return cv2.imdecode(data, flags if flags == cv2.IMREAD_UNCHANGED else flags | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        return None
