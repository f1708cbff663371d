"""Borders and burned-in markers of radiographs are covered, to measure what a model takes from them.

Hospitals burn in their own markers at their own place, and their borders differ (DeGrave, Janizek and Lee 2021; report,
section 2.3). evaluation/shortcut_check.py predicts the covered images.
"""

import numpy as np

from siimcovid.core.opencv import cv2

#: Share of the side that is border, at each of the four.
BORDER = 0.08

#: Half the width of a marker's widest stroke, and its longest side with the letters beside it, as shares of the side.
STROKE, LONGEST = 0.018, 0.2

#: Share of each axis, in the middle, where nothing counts as a marker: who places one keeps it off the lungs, and what
#: is bright and small there is a vessel, a rib or the very opacity.
MIDDLE = 0.5

#: A marker's grey: as a share of the brightest there is (the 99.9th percentile), and above what surrounds it, of 255.
BRIGHT, CONTRAST = 0.8, 45

#: Gap between letters that belong together, and half the width of a seam, as shares.
GAP, SEAM = 0.012, 0.006

#: Side in pixels at which what is hidden is filled, and the deviations of the blurs there, from coarse to fine.
FILLED, BLURS = 128, (10.0, 4.0, 1.5)

#: Weight of the coarser blur's mean beside the finer one's, which counts with the share of its surroundings known.
COARSE = 0.02


def cover(pixels: np.ndarray) -> np.ndarray:
    """A copy of an image, uint8 (rows, columns), without its borders and burned-in markers.

    In their place stands the mean of what is known around it, weighted by a Gaussian that is the narrower the nearer
    the known is (normalised convolution, Knutsson and Westin 1993), and over a seam of 2 * SEAM both are blended: a
    patch of one grey, or a sharp edge, would be a marker itself and say where one was. The border goes on every image,
    so it says nothing of any.
    """
    hidden = markers(pixels)
    # the seam reaches inwards, and ends where the border does
    ring = [max(1, round((BORDER - 2 * SEAM) * length)) for length in pixels.shape]
    hidden[: ring[0]] = hidden[-ring[0] :] = 1
    hidden[:, : ring[1]] = hidden[:, -ring[1] :] = 1
    return _hide(pixels, hidden)


def _hide(pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """A copy of an image in which what is around stands where `hidden` is 1, as `cover` says.

    Both are blended over the next 2 * SEAM; beyond, the image stays as it is.
    """
    seam = _square(SEAM, max(pixels.shape))
    wide = cv2.dilate(hidden, seam)
    share = cv2.blur(wide.astype(np.float32), seam.shape)  # falls to 0 two seams away from what is hidden
    share[hidden > 0] = 1  # not nearly: of what was there nothing may be left
    image = pixels.astype(np.float32)
    filling = _fill(image, 1 - wide.astype(np.float32) if not wide.all() else np.ones_like(image))
    return np.rint(image * (1 - share) + filling * share).astype(np.uint8)


def _fill(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(rows, columns) float32: local means of an image where `known` is 1, and smoothly on where it is 0."""
    rows, columns = image.shape
    scale = min(1.0, FILLED / max(rows, columns))
    shape = max(1, round(columns * scale)), max(1, round(rows * scale))
    weights, values = (cv2.resize(layer, shape, interpolation=cv2.INTER_AREA) for layer in (known, known * image))
    filling = np.full_like(weights, values.sum() / weights.sum())
    for deviation in BLURS:
        weight, value = (cv2.GaussianBlur(layer, (0, 0), deviation) for layer in (weights, values))
        filling = (value + COARSE * filling) / (weight + COARSE)
    return cv2.resize(filling, (columns, rows), interpolation=cv2.INTER_LINEAR)


def markers(pixels: np.ndarray) -> np.ndarray:
    """Where an image's markers are: uint8 (rows, columns), 1 there and 0 elsewhere.

    Strokes that are narrow, bright and brighter than what surrounds them (white top-hat), joined to words, outside the
    image's middle. What is longer than a word, as a catheter or a rib, stays.
    """
    side = max(pixels.shape)
    contrast = cv2.morphologyEx(pixels, cv2.MORPH_TOPHAT, _square(STROKE, side))
    bright = pixels >= BRIGHT * np.percentile(pixels, 99.9)
    strokes = (bright & (contrast >= CONTRAST)).astype(np.uint8)
    words = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, _square(GAP, side))
    _, number, boxes, _ = cv2.connectedComponentsWithStats(words)
    longest = boxes[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
    word = longest <= LONGEST * side
    word[0] = False  # the background
    found = cv2.dilate(word[number].astype(np.uint8), _square(SEAM, side))  # with the soft rim of a stroke
    inner = [round(length * (1 - MIDDLE) / 2) for length in pixels.shape]
    found[inner[0] : pixels.shape[0] - inner[0], inner[1] : pixels.shape[1] - inner[1]] = 0
    return found


def _square(share: float, side: int) -> np.ndarray:
    """A kernel of ones that reaches `share` of the side, at least a pixel, to each side of its middle."""
    reach = max(1, round(share * side))
    return np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
