"""A DICOM image as an 8-bit picture.

In: the path of a DICOM file. Out: a uint8 array (rows, columns), 0 black, the way round that a radiologist reads it,
and sentences on what of the file was ignored or repaired. `dicom_file` finds the elements, `dicom_description` checks
what they say of the pixels, `dicom_decode` decodes, and `dicom_grey` turns stored values into grey.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from siimcovid.core.errors import InputError
from siimcovid.data.dicom_decode import decode
from siimcovid.data.dicom_description import Refused
from siimcovid.data.dicom_file import PIXEL_DATA, read_elements
from siimcovid.data.dicom_grey import to_grey
from siimcovid.data.dicom_numbers import one_line


class DicomError(InputError):
    """An image that cannot be read; `reason` is a phrase that fits after the file's name."""

    def __init__(self, path: Path | str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self):  # errors are pickled by their message alone, which is not what this one is made from
        return type(self), (self.path, self.reason)


def read_image(path: Path | str) -> np.ndarray:
    """Read an image as uint8 (rows, columns), 0 black and 255 white; an image of one single value is all 0.

    The first frame where there are several; colour becomes luma (BT.601). Files without preamble, file meta group or
    transfer syntax are read where pydicom can tell what they hold.

    Raises DicomError for everything that cannot be read, whatever goes wrong inside.
    """
    return read_image_with_notices(path)[0]


def read_image_with_notices(path: Path | str) -> tuple[np.ndarray, list[str]]:
    """read_image's pixels, and a short sentence for everything in the file that was ignored, repaired or guessed.

    The sentences fit after the file's name, as in "the window of centre 9999 and width 2 is ignored: it lies outside
    the values, 0 to 4095"; a file that keeps the standard's rules has none. Raises DicomError like read_image.
    """
    notices: list[str] = []
    with _quiet():
        try:
            dataset = _open(path, notices)
            stored = decode(dataset)
            notices += stored.notices
            pixels = to_grey(stored, dataset, notices)
            return pixels, [one_line(notice) for notice in dict.fromkeys(notices)]
        except (DicomError, KeyboardInterrupt, SystemExit):
            raise
        except Refused as error:
            raise DicomError(path, str(error)) from None
        except MemoryError:
            raise DicomError(path, "there is not enough memory to read it") from None
        except OSError as error:
            raise DicomError(path, f"cannot be read from the disk ({error.strerror or error})") from error
        except BaseException as error:  # damaged data raise nearly every type there is, a panic of Rust's among them
            raise DicomError(path, f"cannot be decoded ({one_line(f'{type(error).__name__}: {error}')})") from error


def _open(path: Path | str, notices: list[str]) -> Dataset:
    """Read what a file has of an image's elements, and make sure that there are pixels among them."""
    with open(path, "rb") as stream:
        has_preamble = stream.read(132)[128:] == b"DICM"
        empty = stream.tell() == 0
    if empty:
        raise DicomError(path, "is empty")
    try:
        dataset = read_elements(path, notices)
    except Exception as error:
        if has_preamble or isinstance(error, OSError):
            raise
        raise DicomError(path, "is not a DICOM file") from error
    if not any(name in dataset for name in PIXEL_DATA):
        empty_handed = "holds no pixel data, or breaks off within them"
        raise DicomError(path, empty_handed if has_preamble else f"is not a DICOM file or {empty_handed}")
    return dataset


# Threads read files side by side, and one that leaves `catch_warnings` takes away what another has set there.
warnings.filterwarnings("ignore", message="Invalid value for VR", category=UserWarning)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom for one read: the competition's UIDs and dates are hashes, each of them worth a warning."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
