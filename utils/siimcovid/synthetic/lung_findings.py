"""Findings in a synthetic image's lungs: kinds, positions, sizes and contrast by study label, and how each is drawn.

`choose_findings` decides on the findings of a study in chest coordinates; `Finding.density` draws one into the lung,
which may cut it off; `visible_box` measures what is then visible, and that box is the ground truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from siimcovid.synthetic.canvas import Canvas, blur, rounded, smooth_noise, smoothstep

#: A finding is visible, and inside its box, from this share of its peak on.
VISIBLE = 0.3

#: Quantiles of the boxes' widths and heights as fractions of the image, counted by study label on the competition's
#: train_image_level.csv (7,853 boxes).
SHARES = (0.0, 0.05, 0.25, 0.50, 0.75, 0.95, 1.0)
WIDTHS = {
    "typical": (0.070, 0.110, 0.170, 0.225, 0.276, 0.352, 0.42),
    "indeterminate": (0.055, 0.087, 0.141, 0.191, 0.242, 0.325, 0.39),
    "atypical": (0.055, 0.092, 0.142, 0.192, 0.245, 0.333, 0.39),
}
HEIGHTS = {
    "typical": (0.090, 0.154, 0.275, 0.396, 0.519, 0.671, 0.78),
    "indeterminate": (0.060, 0.112, 0.193, 0.272, 0.385, 0.559, 0.68),
    "atypical": (0.055, 0.093, 0.165, 0.235, 0.330, 0.494, 0.62),
}
#: Where a box lies in the room its lung leaves it, as the two parameters of a beta distribution: from the chest wall
#: (0) to the mediastinum (1), and from the apex (0) to the diaphragm (1).
LATERAL_TO_MEDIAL = {"typical": (1.5, 2.4), "indeterminate": (3.0, 1.4), "atypical": (2.0, 2.0)}
TOP_TO_BOTTOM = {"typical": (2.4, 1.6), "indeterminate": (2.4, 1.4), "atypical": (2.4, 1.3)}
#: The median share of the lung's air that a boxed finding fills.
CONTRAST = {"typical": 0.42, "indeterminate": 0.50, "atypical": 0.75}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Finding:
    """One finding of a study: `box` is xyxy in chest coordinates, `contrast` the share of the lung's air it fills."""

    kind: str
    box: Box
    contrast: float
    seed: int
    boxed: bool = True

    def density(self, canvas: Canvas, lungs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """The finding as an image in [0, 1] on `canvas`; `lungs` are the masks of the right and the left lung."""
        lung = lungs[int(self.box[0] + self.box[2] > 0)]
        return KINDS[self.kind](np.random.default_rng(self.seed), canvas, self.box) * lung


def visible_box(density: np.ndarray) -> np.ndarray:
    """The box [x1, y1, x2, y2] around the visible part of a density image, as fractions of it."""
    visible = density > VISIBLE * density.max()
    columns, rows = np.flatnonzero(visible.any(0)), np.flatnonzero(visible.any(1))
    height, width = density.shape
    return np.array([columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height])


# How findings look: each draws into `box`, on an empty canvas.


class Window:
    """The part of a canvas in and around a box; `u` and `v` run from -1 to 1 between the box's edges."""

    def __init__(self, canvas: Canvas, box: Box, margin: float = 0.3):
        (x1, y1), (x2, y2) = canvas.pixels(np.reshape(box, (2, 2)))
        low = np.array([x1 - margin * (x2 - x1), y1 - margin * (y2 - y1)]).astype(int).clip(0)
        high = np.array([x2 + margin * (x2 - x1), y2 + margin * (y2 - y1)]).astype(int).clip(low + 2)
        self.canvas, self.place = canvas, (slice(low[1], high[1]), slice(low[0], high[0]))
        rows, columns = (np.arange(side)[part] for side, part in zip(canvas.shape, self.place, strict=True))
        self.u = ((columns + 0.5 - x1) / (x2 - x1) * 2 - 1).astype(np.float32)[None, :]
        self.v = ((rows + 0.5 - y1) / (y2 - y1) * 2 - 1).astype(np.float32)[:, None]

    def noise(self, rng: np.random.Generator, cell: float, octaves: int) -> np.ndarray:
        """Noise with features of `cell` half thoraces."""
        return smooth_noise(rng, (self.v.size, self.u.size), cell * self.canvas.unit, octaves)

    def on_canvas(self, density: np.ndarray) -> np.ndarray:
        """The window's density on the whole canvas."""
        whole = np.zeros(self.canvas.shape, np.float32)
        whole[self.place] = density
        return whole


def _cloud(rng: np.random.Generator, window: Window, box: Box, core: float) -> np.ndarray:
    """An irregular cloud that fills about the box and thins from `core` (0 its centre, 1 its edge) outwards."""
    power = rng.uniform(2.2, 3.2)  # between an ellipse and a rectangle
    radius = (np.abs(window.u) ** power + np.abs(window.v) ** power) ** (1 / power)
    side = min(box[2] - box[0], box[3] - box[1])
    return smoothstep(radius + 0.16 * window.noise(rng, max(side / 3, 0.05), 3), 1.2, core)


def patches(rng: np.random.Generator, canvas: Canvas, box: Box) -> np.ndarray:
    """Ground glass and consolidation in patches that run together: the typical opacity."""
    window = Window(canvas, box)
    texture = np.clip(0.7 + 0.32 * window.noise(rng, rng.uniform(0.13, 0.25), 3), 0.1, 1)
    return blur(window.on_canvas(_cloud(rng, window, box, rng.uniform(0.45, 0.75)) * texture), 0.012 * canvas.unit)


def haze(rng: np.random.Generator, canvas: Canvas, box: Box) -> np.ndarray:
    """A veil with a fine net in it and a wide, soft edge: the indeterminate opacity."""
    window = Window(canvas, box)
    net = np.clip(1 - 1.6 * np.abs(window.noise(rng, 0.055, 2)), 0, 1)
    return window.on_canvas(_cloud(rng, window, box, rng.uniform(0.3, 0.6)) * (0.6 + 0.4 * net))


def block(rng: np.random.Generator, canvas: Canvas, box: Box) -> np.ndarray:
    """A lobe's even consolidation, which ends sharply at a slightly tilted fissure above or below."""
    window = Window(canvas, box)
    side, tilt = rng.choice([-1, 1]), rng.uniform(-0.12, 0.12)
    fissure = smoothstep(side * window.v + tilt * window.u + 0.05 * window.u**2, 1.0, 0.93)
    others = np.maximum(np.abs(window.u), -side * window.v) + 0.05 * window.noise(rng, 0.15, 2)
    return window.on_canvas(
        fissure * smoothstep(others, 1.08, 0.8) * np.clip(0.92 + 0.05 * window.noise(rng, 0.2, 2), 0, 1)
    )


def mass(rng: np.random.Generator, canvas: Canvas, box: Box) -> np.ndarray:
    """A lobulated mass with a clear edge, one in four hollow."""
    window = Window(canvas, box)
    angle, radius = np.arctan2(window.v, window.u), np.hypot(window.u, window.v)
    radius = radius + sum(rng.uniform(0.02, 0.06) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
    density = smoothstep(radius, 1.06, 0.88) * (0.7 + 0.3 * np.sqrt(np.clip(1 - radius**2, 0, 1)))
    if rng.random() < 0.25:
        density = density * (1 - 0.6 * smoothstep(radius, 0.65, 0.5))
    return window.on_canvas(density)


def nodules(rng: np.random.Generator, canvas: Canvas, box: Box) -> np.ndarray:
    """A handful of small round nodules strewn over `box`."""
    places = rng.uniform(box[:2], box[2:], (int(rng.integers(5, 10)), 2))
    return canvas.area(*(canvas.circle(place, rng.uniform(0.025, 0.06)) for place in places), soft=0.008)


def effusion(rng: np.random.Generator, canvas: Canvas, box: Box) -> np.ndarray:
    """Fluid below the top of `box`, its surface rising towards the chest wall."""
    side, top = np.sign(box[0]), box[1]
    surface = [(0.1, top + 0.12), (0.4, top + 0.10), (0.65, top + 0.06), (0.85, top - 0.03), (1.02, top - 0.2)]
    return canvas.area(rounded([(side * x, y) for x, y in [*surface, (1.1, 1.2), (0.1, 1.2)]]), soft=0.018)


KINDS = {
    "patches": patches,
    "haze": haze,
    "block": block,
    "mass": mass,
    "nodules": nodules,
    "effusion": effusion,
}


# Which findings a study label has.


def choose_findings(
    rng: np.random.Generator, study_label: str, boxes: int, canvas: Canvas, lungs: Sequence[np.ndarray]
) -> list[Finding]:
    """Draw the findings of a study.

    Args:
        rng: source of every random number, of the findings' own seeds too.
        study_label: one of core.labels.STUDY_LABELS.
        boxes: how many of the findings have a box: 1 or more for typical and indeterminate, 0 for negative.
        canvas: the patient's position on the image, of which the counted box sizes are fractions.
        lungs: outlines of the right and the left lung, (n, 2) chest coordinates.
    """
    if study_label == "negative":
        return []

    def seed() -> int:
        return int(rng.integers(2**31))

    first = int(rng.integers(2))
    sides = [(first + i) % 2 for i in range(boxes)]  # one lung, then the other, then the first again
    contrast = rng.lognormal(np.log(CONTRAST[study_label]), 0.50)
    findings = []
    for i, size in enumerate(draw_box_sizes(rng, study_label, boxes)):
        floor, floors = sides[:i].count(sides[i]), sides.count(sides[i])
        box = place_box(
            rng, study_label, canvas, lungs[sides[i]], sides[i], size, (floor / floors, (floor + 1) / floors)
        )
        kind = {"typical": "patches", "indeterminate": "haze"}.get(study_label) or str(rng.choice(["mass", "block"]))
        findings.append(Finding(kind, box, float(np.clip(contrast * rng.uniform(0.7, 1.2), 0.10, 0.95)), seed()))
    if study_label == "atypical" and (boxes == 0 or rng.random() < 0.6):
        side = int(rng.choice([-1, 1]))
        if boxes or rng.random() < 0.7:
            findings.append(
                Finding("effusion", (0.5 * side, rng.uniform(0.55, 0.80), 0.9 * side, 1.0), 0.95, seed(), False)
            )
        else:
            for outline in lungs:
                (left, top), (right, bottom) = outline.min(0), outline.max(0)
                findings.append(Finding("nodules", (left, top + 0.15, right, bottom - 0.2), 0.7, seed(), False))
    return findings


def draw_box_sizes(rng: np.random.Generator, study_label: str, count: int) -> np.ndarray:
    """Draw widths and heights (count, 2) as fractions of the image, distributed as the radiologists' boxes of that
    study label.

    Width and height correlate by .54 within a box, and by .68 and .70 between the two lungs' boxes of an image.
    """
    joint = np.array([[1.0, 0.0], [0.54, 0.84]])
    normal = (np.sqrt(0.69) * rng.standard_normal((1, 2)) + np.sqrt(0.31) * rng.standard_normal((count, 2))) @ joint.T
    shares = ndtr(normal)
    return np.stack(
        [np.interp(shares[:, i], SHARES, table[study_label]) for i, table in enumerate((WIDTHS, HEIGHTS))], axis=1
    )


def place_box(
    rng: np.random.Generator,
    study_label: str,
    canvas: Canvas,
    outline: np.ndarray,
    side: int,
    size: Sequence[float],
    floor: tuple[float, float],
) -> Box:
    """Draw the position of a box in a lung, in chest coordinates.

    outline, side: of the lung, side 0 for the right. size: width and height, fractions of the image. floor: the part of
    the lung's height that the box keeps to.
    """
    top, bottom = np.interp(floor, (0, 1), (outline[:, 1].min(), outline[:, 1].max()))
    pixels = np.linalg.norm(canvas.matrix[:, :2], axis=0)  # of half a thorax, and of a lung's height
    width, height = np.asarray(size) * canvas.shape[::-1] / pixels
    height = min(height, 0.98 * (bottom - top))
    y = top + rng.beta(*TOP_TO_BOTTOM[study_label]) * (bottom - top - height)
    crossings = [outline[np.flatnonzero(np.diff(outline[:, 1] > y + part * height)), 0] for part in (0.3, 0.5, 0.7)]
    left, right = min(c.min() for c in crossings), max(c.max() for c in crossings)
    width = min(width, right - left)
    inwards = rng.beta(*LATERAL_TO_MEDIAL[study_label]) * (right - left - width)
    x = left + inwards if side == 0 else right - width - inwards
    return float(x), float(y), float(x + width), float(y + height)
