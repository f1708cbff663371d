"""Drawing for the synthetic images: soft shapes and smooth noise in chest coordinates, as float32 images in [0, 1].

Chest coordinates: x runs from -1, the patient's right chest wall and so the image's left, over 0, the spine, to 1; y
from 0 at the lung's apex to 1 at the costophrenic angle. One matrix maps them to pixels. Widths and radii are given in
half thoraces, the unit of x.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

SUBPIXEL = 4  # binary digits after the point in the coordinates OpenCV draws with


def rounded(outline: Sequence, closed: bool = True, times: int = 3) -> np.ndarray:
    """Cut an outline's corners (Chaikin): (n, 2) points to a smooth curve of about n * 2**times points.

    A corner survives where its point is given twice.
    """
    points = np.asarray(outline, float)
    for _ in range(times):
        after = np.roll(points, -1, axis=0)
        cut = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
        points = cut if closed else np.concatenate([points[:1], cut[:-2], points[-1:]])
    return points


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, sigma in pixels; wide ones on a reduced image, where they cost as little as narrow ones."""
    if sigma < 0.3:
        return image
    step = int(sigma // 3)
    if step < 2:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    rows, columns = image.shape
    small = cv2.resize(image, (max(columns // step, 1), max(rows // step, 1)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / step, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 1) -> np.ndarray:
    """Noise of spread .9, its features about `cell` pixels wide; each further octave is half as wide and strong."""
    rows, columns = shape
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        grid = [max(int(np.ceil(side / cell * 2**octave)) + 1, 2) for side in shape]
        values = rng.standard_normal(grid, np.float32) * 0.5**octave
        total += cv2.resize(values, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return total / math.sqrt(sum(0.25**octave for octave in range(octaves)))


def smoothstep(value: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 before `start`, 1 after `end` (which may be the smaller one), a cubic between."""
    t = np.clip((value - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


class Canvas:
    """Pixels (rows, columns) and the 2 x 3 matrix from chest coordinates to them; `unit` is half a thorax in pixels."""

    def __init__(self, shape: tuple[int, int], matrix: np.ndarray):
        self.shape, self.matrix = shape, matrix
        self.unit = float(np.hypot(*matrix[:, 0]))

    def pixels(self, points: Sequence) -> np.ndarray:
        """Chest coordinates (n, 2) to pixels (n, 2)."""
        return np.asarray(points, float) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def shifted(self, pixels: Sequence[float]) -> "Canvas":
        """The same chest, moved by `pixels` (x, y)."""
        return Canvas(self.shape, self.matrix + np.column_stack([np.zeros((2, 2)), pixels]))

    def area(self, *outlines: Sequence, soft: float = 0.0) -> np.ndarray:
        """Filled outlines, blurred by `soft` half thoraces."""
        mask = np.zeros(self.shape, np.uint8)
        for outline in outlines:
            cv2.fillPoly(mask, [self._fixed(outline)], 255, cv2.LINE_AA, SUBPIXEL)
        return blur(mask.astype(np.float32) / 255, soft * self.unit)

    def strokes(self, paths: Sequence[Sequence], width: float, soft: float = 0.0) -> np.ndarray:
        """Lines along `paths`, `width` half thoraces wide, blurred by `soft` half thoraces."""
        mask = np.zeros(self.shape, np.uint8)
        lines = [self._fixed(path) for path in paths]
        cv2.polylines(mask, lines, False, 255, max(round(width * self.unit), 1), cv2.LINE_AA, SUBPIXEL)
        return blur(mask.astype(np.float32) / 255, soft * self.unit)

    def circle(self, centre: Sequence[float], radius: float) -> np.ndarray:
        """Outline of what is a circle on the image, in chest coordinates; `radius` in half thoraces."""
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        tall = np.hypot(*self.matrix[:, 1]) / self.unit
        return np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius / tall * np.sin(angle)], axis=1)

    def noise(self, rng: np.random.Generator, cell: float, octaves: int = 1) -> np.ndarray:
        """`smooth_noise` with features of `cell` half thoraces."""
        return smooth_noise(rng, self.shape, cell * self.unit, octaves)

    def _fixed(self, points: Sequence) -> np.ndarray:
        return np.round(self.pixels(points) * 2**SUBPIXEL).astype(np.int32)
