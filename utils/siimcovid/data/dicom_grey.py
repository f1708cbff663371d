"""Stored values become 8-bit grey: the one place where a header's look-up tables, window and padding are applied.

In: the stored values and the header. Out: uint8 (rows, columns), 0 black, and a notice for everything in the header
that could not be followed. The chain is that of the competition's kernels, computed in float64:

    stored values -> modality LUT or rescale -> VOI LUT or first window -> highest - value where MONOCHROME1
    -> minus the lowest -> divided by the highest -> times 255, fraction cut off

with pydicom's functions for the first three steps. They get a header that was checked, never the file's own: what is
broken, not finite, or turns every value into the same one is left out and noticed. Pixels of padding
(PixelPaddingValue, or the range from it to PixelPaddingRangeLimit) are black and take no part in lowest and highest.

Every step but "lowest" and "highest" maps each value by itself. So the chain runs once on the few thousand stored
values that occur, and the pixels are looked up in the table that results: the same numbers, bit by bit, in a quarter
of the time.
"""

from collections.abc import Callable

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from siimcovid.data.dicom_decode import Stored
from siimcovid.data.dicom_description import Refused
from siimcovid.data.dicom_luts import read_lut
from siimcovid.data.dicom_numbers import raw_values, read_integer, read_number, read_numbers, shown

#: Weights of red, green and blue in ITU-R BT.601's luma, in thousandths: whole numbers keep a grey picture exact.
LUMA = np.array([299, 587, 114], np.float64)

#: A sigmoid window is flat, within a 256th of its range, so many widths from its centre: ln(255) / 4.
SIGMOID_REACH = 1.386

#: Largest share of an image that padding usually covers; more is noticed.
USUAL_PADDING = 0.5


def to_grey(stored: Stored, dataset: Dataset, notices: list[str]) -> np.ndarray:
    """Map stored values to uint8 (rows, columns), stretched over 0 to 255; an image of one single value is all 0.

    stored: see there. dataset: the header, whose elements of the image pixel module were checked by `decode`.
    notices: gets a sentence for everything in the header that was ignored or repaired.
    Raises Refused where floating point pixels are not finite.
    """
    pixels = stored.pixels
    if pixels.ndim == 3:
        return stretch(pixels[..., :3] @ LUMA)
    header = _Header(dataset, notices)
    if pixels.dtype.itemsize > 2:  # 32-bit or floating point: too many values for a table
        if not np.isfinite(pixels).all():
            raise Refused("has pixels that are not finite numbers")
        return header.map(pixels, header.is_padding(pixels))
    bits = 8 * pixels.dtype.itemsize
    patterns = pixels.view(f"u{pixels.dtype.itemsize}")  # the bits as they lie there: the table is made by them
    counts = cv2.calcHist([patterns], [0], None, [2**bits], [0, 2**bits]).ravel()
    occurring = np.flatnonzero(counts).astype(patterns.dtype)
    whole = occurring.view(pixels.dtype)
    values = _significant(whole, stored, notices)
    padding = header.is_padding(whole)
    if stored.unused_low_bits == 0:
        padding |= header.is_padding(values)
    table = np.zeros(2**bits, np.uint8)
    table[occurring] = header.map(values, padding, counts[occurring])
    try:
        return cv2.LUT(patterns, table)
    except cv2.error:  # before OpenCV 5 tables had 256 entries
        return np.take(table, patterns)


def stretch(values: np.ndarray, inverted: bool = False) -> np.ndarray:
    """Stretch finite values from the lowest to the highest over 0 to 255, the other way round where `inverted`."""
    values = values.astype(np.float64)
    if inverted:
        values = values.max() - values
    values -= values.min()
    highest = values.max()
    if highest == 0:
        return np.zeros(values.shape, np.uint8)
    return (values / highest * 255).astype(np.uint8)


def _significant(values: np.ndarray, stored: Stored, notices: list[str]) -> np.ndarray:
    """Drop the unused bits: above the stored ones or, where HighBit is higher than usual, below them.

    HighBit is BitsStored - 1 by the standard. Where it is higher, old software left the values in the high bits; other
    software only wrote a wrong HighBit. If all values fit into the low bits and use the lowest, it is the latter.
    """
    unused, low = stored.unused_bits, stored.unused_low_bits
    aligned_low = np.right_shift(np.left_shift(values, unused), unused)  # zeros, or the sign, in the unused bits
    if not low:
        return aligned_low
    if np.array_equal(aligned_low, values) and (values & (2**low - 1)).any():
        notices.append("HighBit does not fit the values, which lie in the low bits, and is ignored")
        return aligned_low
    notices.append(f"its values lie {low} bits higher than usual, as its HighBit means")
    above = unused - low
    return np.right_shift(np.left_shift(values, above), unused)


class _Header:
    """What of a DICOM header maps values to grey, checked; `notices` gets what was ignored."""

    def __init__(self, dataset: Dataset, notices: list[str]):
        self.dataset, self.notices = dataset, notices
        self.inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
        self.padding = self._padding_range()

    def map(self, values: np.ndarray, padding: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
        """Grey of values of any shape. padding: which of them are padding; counts: how often each occurs."""
        if padding.all():
            self.notices.append("all of its pixels are padding by PixelPaddingValue, which is ignored")
            padding = np.zeros_like(padding)
        share = float(np.average(padding, weights=counts))
        if share > USUAL_PADDING:
            self.notices.append(f"{share:.0%} of its pixels are padding by PixelPaddingValue and shown black")
        grey = np.zeros(values.shape, np.uint8)
        grey[~padding] = stretch(self._apply_voi(self._apply_modality(values[~padding])), self.inverted)
        return grey

    def is_padding(self, values: np.ndarray) -> np.ndarray:
        """Which values lie in the range of padding."""
        if self.padding is None:
            return np.zeros(values.shape, bool)
        return (values >= self.padding[0]) & (values <= self.padding[1])

    def _padding_range(self) -> tuple[int, int] | None:
        """Lowest and highest value of padding, as signed as the pixels are whatever the elements' own VR is."""
        first = read_integer(self.dataset, "PixelPaddingValue", self.notices)
        if first is None:
            return None
        last = read_integer(self.dataset, "PixelPaddingRangeLimit", self.notices)
        size = 2**self.dataset.BitsAllocated
        half = size // 2 if self.dataset.PixelRepresentation else 0
        ends = [(end + half) % size - half for end in (first, first if last is None else last)]
        return min(ends), max(ends)

    def _apply_modality(self, values: np.ndarray) -> np.ndarray:
        """Modality LUT or, without one, slope and intercept."""
        clean = self._clean = Dataset()  # what is followed; pydicom derives a window's output range from it
        clean.PhotometricInterpretation = self.dataset.PhotometricInterpretation
        clean.BitsStored, clean.PixelRepresentation = self.dataset.BitsStored, self.dataset.PixelRepresentation
        if (item := read_lut(self.dataset, "ModalityLUTSequence", self.notices)) is not None:
            item.LUTDescriptor[2] = 8 if item.LUTDescriptor[2] == 8 else 16
            clean.ModalityLUTSequence = [item]
            mapped = self._try("ModalityLUTSequence", values, apply_modality_lut)
            if mapped is not None:
                return mapped
            del clean.ModalityLUTSequence
        slope = read_number(self.dataset, "RescaleSlope", self.notices)
        intercept = read_number(self.dataset, "RescaleIntercept", self.notices)
        if slope is None and intercept is None:
            return values
        slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
        clean.add_new("RescaleSlope", "FD", slope)
        clean.add_new("RescaleIntercept", "FD", intercept)
        what = f"RescaleSlope {slope:g} with RescaleIntercept {intercept:g}"
        mapped = self._try(what, values, apply_modality_lut)
        if mapped is not None:
            return mapped
        del clean.RescaleSlope, clean.RescaleIntercept
        return values

    def _apply_voi(self, values: np.ndarray) -> np.ndarray:
        """VOI LUT or, without one, the first window that shows something."""
        clean = self._clean
        if (item := read_lut(self.dataset, "VOILUTSequence", self.notices)) is not None:
            clean.VOILUTSequence = [item]
            _, first, depth = item.LUTDescriptor
            if depth == 8 and values.max() - first > 255:  # as pydicom and the kernels have it
                self.notices.append(
                    f"VOILUTSequence has 8 bits: values above {first + 255} start again at its first entry"
                )
            mapped = self._try("VOILUTSequence", values, _apply_voi_table)
            if mapped is not None:
                return mapped
            del clean.VOILUTSequence
        centers = read_numbers(self.dataset, "WindowCenter", self.notices)
        widths = read_numbers(self.dataset, "WindowWidth", self.notices)
        if bool(centers) != bool(widths):
            self.notices.append(f"{'WindowCenter' if centers else 'WindowWidth'} stands alone and is ignored")
        function = self._window_function() if centers and widths else ""
        for center, width in zip(centers, widths, strict=False):
            if center is None or width is None:
                continue
            what = f"the window of centre {center:g} and width {width:g}"
            if width <= 0 or (width < 1 and function == "LINEAR"):
                self.notices.append(f"{what} is ignored: its width is too small")
            elif _is_outside(values, center, width, function):
                low, high = values.min(), values.max()
                self.notices.append(f"{what} is ignored: it lies outside the values, {low:g} to {high:g}")
            else:
                clean.add_new("WindowCenter", "FD", center)
                clean.add_new("WindowWidth", "FD", width)
                clean.VOILUTFunction = function
                mapped = self._try(what, values, apply_voi_lut)
                if mapped is not None:
                    return mapped
        return values

    def _window_function(self) -> str:
        name = next((shown(value).upper() for value in raw_values(self.dataset, "VOILUTFunction")), "LINEAR")
        if name not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            self.notices.append(f"VOILUTFunction '{name}' is unknown: the window is taken as linear")
            return "LINEAR"
        return name

    def _try(
        self, what: str, values: np.ndarray, function: Callable[[np.ndarray, Dataset], np.ndarray]
    ) -> np.ndarray | None:
        """What pydicom's `function` makes of values, None with a notice where that shows nothing of them."""
        try:
            mapped = function(values, self._clean)
        except OverflowError:  # a LUT begins outside the range of the values' type
            mapped = function(values.astype(np.int64), self._clean)
        if not np.isfinite(mapped).all():
            self.notices.append(f"{what} is ignored: it leads to values that are not finite")
        elif mapped.min() == mapped.max() and values.min() != values.max():
            self.notices.append(f"{what} is ignored: it makes every value the same")
        else:
            return mapped
        return None


def _apply_voi_table(values: np.ndarray, header: Dataset) -> np.ndarray:
    """pydicom's apply_voi_lut, which counts a table's entries in 16 bits: larger values would begin anew."""
    if values.dtype.itemsize > 2:
        first = header.VOILUTSequence[0].LUTDescriptor[1]
        values = values.clip(first - 1, first + 2**16 - 1)
    return apply_voi_lut(values, header)


def _is_outside(values: np.ndarray, center: float, width: float, function: str) -> bool:
    """Whether a window shows nothing of the values: all lie where it is flat."""
    if function == "SIGMOID":
        low, high = center - SIGMOID_REACH * width, center + SIGMOID_REACH * width
    elif function == "LINEAR":
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    else:
        low, high = center - width / 2, center + width / 2
    return bool(values.min() != values.max() and (values.max() <= low or values.min() > high))
