"""A DICOM header's description of its pixels (size, bits, colour), checked against the data before anything is decoded.

In: a data set with its pixel data. Out: the same data set with whole numbers and known words in the elements that the
decoders use. The decoders are C and C++ and do not check what they are given.
"""

from pydicom.dataset import Dataset

from siimcovid.data.dicom_codestream import COMPRESSED, Codestream, codestream_size
from siimcovid.data.dicom_numbers import raw_values, read_integer, shown

#: Images have at most 24 million pixels; more than this is a damaged header that would only exhaust the memory.
MOST_PIXELS = 2**28

GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT")

FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}


class Refused(ValueError):
    """An image that is not handed to any decoder, with the reason in words that fit after the file's name."""


def check_description(dataset: Dataset, frame: bytes | None, notices: list[str]) -> None:
    """Check and complete the elements of `dataset` that describe its pixels.

    frame: the first frame's codestream where it is compressed. An element that is absent or damaged gets the value that
    the data or the other elements imply, and `notices` a sentence. Raises Refused where they imply none, where the size
    is absurd, or where the header and the codestream give different sizes.
    """
    inner = codestream_size(frame) if frame is not None else None
    if frame is not None and inner is None and dataset.file_meta.TransferSyntaxUID in COMPRESSED:
        raise Refused("its compressed image has no beginning")
    _check_colour(dataset, inner, notices)
    _check_size(dataset, inner, notices)
    frames = read_integer(dataset, "NumberOfFrames", notices)
    if (frames is None or frames < 1) and "NumberOfFrames" in dataset:
        notices.append("NumberOfFrames is taken as 1")
        frames = 1
    if frames is not None:
        dataset.NumberOfFrames = frames
    _check_bits(dataset, inner, notices)
    if dataset.SamplesPerPixel > 1 and read_integer(dataset, "PlanarConfiguration", notices) not in (0, 1):
        dataset.PlanarConfiguration = 0


def _check_colour(dataset: Dataset, inner: Codestream | None, notices: list[str]) -> None:
    """SamplesPerPixel and PhotometricInterpretation."""
    word = next((shown(value).upper() for value in raw_values(dataset, "PhotometricInterpretation")), "")
    samples = read_integer(dataset, "SamplesPerPixel", notices)
    if samples not in (1, 3):
        implied = inner.components if inner else 3 if word in COLOUR else 1
        notices.append(f"SamplesPerPixel is {samples} and taken as {implied}")
        samples = implied
    if word not in GREY + COLOUR:
        implied = "MONOCHROME2" if samples == 1 else "RGB"
        notices.append(f"PhotometricInterpretation is '{word}' and taken as {implied}: grey may be inverted")
        word = implied
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = word, samples


def _check_size(dataset: Dataset, inner: Codestream | None, notices: list[str]) -> None:
    """Rows and Columns; decoders would write past their buffers where the compressed image has another size."""
    rows, columns = read_integer(dataset, "Rows", notices), read_integer(dataset, "Columns", notices)
    if inner and not (rows and columns and rows > 0 and columns > 0):
        notices.append("its header gives no size: that of its compressed image is used")
        rows, columns = inner.rows, inner.columns
    if not rows or not columns or rows < 1 or columns < 1:
        raise Refused(f"its header gives no size (Rows {rows}, Columns {columns})")
    if rows * columns * dataset.SamplesPerPixel > MOST_PIXELS:
        raise Refused(f"its header gives the absurd size {rows} x {columns}")
    if inner and (inner.rows, inner.columns) != (rows, columns):
        raise Refused(f"its header says {rows} x {columns}, its compressed image {inner.rows} x {inner.columns}")
    dataset.Rows, dataset.Columns = rows, columns


def _check_bits(dataset: Dataset, inner: Codestream | None, notices: list[str]) -> None:
    """BitsAllocated, BitsStored, HighBit and PixelRepresentation."""
    allocated = read_integer(dataset, "BitsAllocated", notices)
    if allocated not in (1, 8, 16, 32, 64):
        implied = _implied_bits(dataset, inner)
        if implied is None:
            raise Refused(f"its header gives no bits per pixel (BitsAllocated {allocated})")
        notices.append(f"BitsAllocated is {allocated} and taken as {implied}")
        allocated = implied
    stored = read_integer(dataset, "BitsStored", notices)
    damaged = stored is None or not 1 <= stored <= allocated
    if damaged:
        implied = min(inner.precision, allocated) if inner else allocated
        if stored is not None or not any(name in dataset for name in FLOATS):
            notices.append(f"BitsStored is {stored} and taken as {implied}")
        stored = implied
    high = read_integer(dataset, "HighBit", notices)
    if high is None or not stored - 1 <= high < allocated:
        if high is not None and not damaged:
            notices.append(f"HighBit is {high} and ignored")
        high = stored - 1
    signed = read_integer(dataset, "PixelRepresentation", notices)
    if signed not in (0, 1):
        if not any(name in dataset for name in FLOATS):
            notices.append(f"PixelRepresentation is {signed} and taken as 0 (no negative values)")
        signed = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, high
    dataset.PixelRepresentation = signed


def _implied_bits(dataset: Dataset, inner: Codestream | None) -> int | None:
    """Bits per value by the codestream's precision or the length of the data; None where neither tells."""
    if inner:
        return 8 if inner.precision <= 8 else 16
    for name, bits in FLOATS.items():
        if name in dataset:
            return bits
    count = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * (dataset.get("NumberOfFrames") or 1)
    length = len(dataset.get("PixelData") or b"")
    return next((8 * size for size in (1, 2, 4) if length in (count * size, count * size + 1)), None)
