"""A DICOM image as an 8-bit picture.

In: the path of a DICOM file. Out: a uint8 array (rows, columns), 0 black, the way round that a radiologist reads it.

The pixels are defined as the chain that every kernel of the competition uses, computed in float64:

    stored values -> modality LUT or rescale -> VOI LUT or first window -> highest - value where MONOCHROME1
    -> minus the lowest -> divided by the highest -> times 255, fraction cut off

with pydicom's own functions for the first three steps. Every step but "lowest" and "highest" maps each value by itself.
So the chain need not see millions of pixels: it runs once on the few thousand stored values that occur, which also
gives the same lowest and highest, and the result is a table through which the pixels are looked up. Same numbers in,
same functions, hence the same pixels, bit by bit.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from siimcovid.core.errors import InputError
from siimcovid.data.dicom_decode import Refused, Stored, decode

#: Weights of red, green and blue in ITU-R BT.601's luma, in thousandths: whole numbers keep a grey picture exact.
LUMA = np.array([299, 587, 114], np.float64)


class DicomError(InputError):
    """An image that cannot be read; `reason` says why in words that fit after the file's name."""

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
    with _quiet():
        try:
            dataset = _open(path)
            return _picture(decode(dataset), dataset)
        except (DicomError, KeyboardInterrupt, SystemExit):
            raise
        except Refused as error:
            raise DicomError(path, str(error)) from None
        except MemoryError:
            raise DicomError(path, "there is not enough memory to read it") from None
        except OSError as error:
            raise DicomError(path, f"cannot be read from the disk ({error.strerror or error})") from error
        except BaseException as error:  # damaged data raise nearly every type there is, a panic of Rust's among them
            raise DicomError(path, f"cannot be decoded ({_one_line(error)})") from error


def _open(path: Path | str) -> Dataset:
    """Read a whole data set and make sure that it has pixels and a transfer syntax."""
    with open(path, "rb") as stream:
        has_preamble = stream.read(132)[128:] == b"DICM"
        empty = stream.tell() == 0
    if empty:
        raise DicomError(path, "is empty")
    try:
        dataset = pydicom.dcmread(path, force=True)
        has_pixels = any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    except Exception as error:
        if has_preamble:
            raise
        raise DicomError(path, "is not a DICOM file") from error
    if not has_pixels:
        empty_handed = "holds no pixel data, or breaks off within them"
        raise DicomError(path, empty_handed if has_preamble else f"is not a DICOM file or {empty_handed}")
    if "TransferSyntaxUID" not in dataset.file_meta:  # then it was read as what its first bytes look like
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _picture(stored: Stored, dataset: Dataset) -> np.ndarray:
    """Map stored values to grey through a table of the values that occur."""
    pixels = stored.pixels
    if pixels.ndim == 3:
        return _stretch(pixels[..., :3] @ LUMA, dataset)
    if pixels.dtype.itemsize > 2:  # 32-bit or floating point: too many values for a table
        return _stretch(_apply_luts(pixels, dataset), dataset)
    bits = 8 * pixels.dtype.itemsize
    patterns = pixels.view(f"u{pixels.dtype.itemsize}")  # the bits as they lie there: the table is made by them
    counts = cv2.calcHist([patterns], [0], None, [2**bits], [0, 2**bits])
    occurring = np.flatnonzero(counts).astype(patterns.dtype)
    values = np.left_shift(occurring.view(pixels.dtype), stored.unused_bits)
    values = np.right_shift(values, stored.unused_bits)  # clears the unused bits, or fills them with the sign
    table = np.zeros(2**bits, np.uint8)
    table[occurring] = _stretch(_apply_luts(values, dataset), dataset)
    try:
        return cv2.LUT(patterns, table)
    except cv2.error:  # before OpenCV 5 tables had 256 entries
        return np.take(table, patterns)


def _apply_luts(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Modality LUT or rescale, then VOI LUT or the first window, by pydicom.

    What stands in the header without a value counts as absent, as it does in pydicom for the VOI LUT.
    """
    for name in ("RescaleSlope", "RescaleIntercept", "VOILUTFunction"):
        if name in dataset and dataset[name].is_empty:
            del dataset[name]
    for item in dataset.get("ModalityLUTSequence") or []:
        if item.get("LUTDescriptor") is None or item.get("LUTData") is None:
            del dataset.ModalityLUTSequence
            break
    return apply_voi_lut(apply_modality_lut(values, dataset), dataset)


def _stretch(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Turn MONOCHROME1 over and stretch lowest to highest over 0 to 255."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise Refused("its look-up tables lead to values that are not finite")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = values.max() - values
    values -= values.min()
    highest = values.max()
    if highest == 0:
        return np.zeros(values.shape, np.uint8)
    return (values / highest * 255).astype(np.uint8)


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


def _one_line(error: BaseException) -> str:
    """An exception's type and text as one line that is never long."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:299] + "…"
