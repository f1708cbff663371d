"""The body on a synthetic image: outlines, bones, vessels and soft tissue as attenuation, in chest coordinates
(canvas.py).

Attenuations add up along the beam, so a body is a sum of shapes: 0 is air, about 0.3 lung, 0.6 the chest wall and 0.9
the spine or the liver. `Anatomy` holds what is the same in all studies of a patient.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from siimcovid.synthetic.canvas import Canvas, blur, rounded

RIGHT_LUNG = [  # from the apex down the mediastinum, along the diaphragm and up the chest wall
    (-0.40, 0.00), (-0.23, 0.06), (-0.16, 0.20), (-0.17, 0.38), (-0.20, 0.52), (-0.25, 0.66), (-0.26, 0.78),
    (-0.25, 0.86), (-0.28, 0.86), (-0.42, 0.83), (-0.58, 0.84), (-0.74, 0.89), (-0.88, 0.96), (-0.95, 1.01),
    (-0.97, 0.99), (-0.99, 0.80), (-0.96, 0.58), (-0.88, 0.34), (-0.75, 0.15), (-0.60, 0.03),
]  # fmt: skip
LEFT_LUNG = [
    (0.40, 0.00), (0.23, 0.06), (0.18, 0.18), (0.25, 0.27), (0.21, 0.36), (0.25, 0.45), (0.38, 0.56), (0.52, 0.70),
    (0.57, 0.82), (0.57, 0.87), (0.62, 0.87), (0.72, 0.88), (0.87, 0.95), (0.95, 1.01), (0.97, 0.99), (0.99, 0.80),
    (0.96, 0.58), (0.88, 0.34), (0.75, 0.15), (0.60, 0.03),
]  # fmt: skip
HALF_TORSO = [  # from the neck down
    (0.0, -0.9), (0.27, -0.9), (0.29, -0.38), (0.42, -0.24), (0.95, -0.15), (1.40, -0.06), (1.50, 0.10),
    (1.28, 0.34), (1.18, 0.62), (1.20, 1.0), (1.24, 1.8), (0.0, 1.8),
]  # fmt: skip
ARM = [
    (1.30, -0.06), (1.52, 0.00), (1.72, 0.30), (1.84, 1.0), (1.86, 1.8), (1.46, 1.8), (1.44, 1.0), (1.36, 0.40),
    (1.20, 0.20),
]  # fmt: skip
HEART = [
    (0.0, 0.34), (0.20, 0.40), (0.36, 0.54), (0.52, 0.70), (0.58, 0.84), (0.40, 0.92), (0.0, 0.92), (-0.22, 0.86),
    (-0.26, 0.70), (-0.18, 0.54),
]  # fmt: skip
ABDOMEN = [
    (-1.04, 1.02), (-0.86, 0.95), (-0.58, 0.84), (-0.38, 0.83), (0.0, 0.86), (0.60, 0.86), (0.86, 0.94),
    (1.04, 1.02), (1.2, 1.8), (-1.2, 1.8),
]  # fmt: skip
CLAVICLE = [
    (0.09, 0.15), (0.25, 0.11), (0.55, 0.05), (0.80, -0.02), (1.15, -0.05),
]  # fmt: skip
SCAPULA = [
    (0.86, -0.02), (1.22, 0.02), (1.26, 0.12), (1.12, 0.34), (1.02, 0.56), (0.94, 0.52), (0.88, 0.28),
]  # fmt: skip
#: Where the chest wall is: its distance from the spine at some heights.
WALL = ((-0.1, 0.0, 0.04, 0.15, 0.34, 0.58, 0.80, 1.3), (0.42, 0.50, 0.62, 0.76, 0.89, 0.97, 1.00, 1.02))


class Body(NamedTuple):
    """Attenuation without findings, what of it air took away and vessels added, and the right and left lung's masks."""

    image: np.ndarray
    air: np.ndarray
    vessels: np.ndarray
    lungs: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Anatomy:
    """What is the same on all images of a patient."""

    seed: int
    breasts: float  # attenuation of the breasts' shadows, 0 for none
    stout: float  # soft tissue over the ribs, 0 lean to 1
    lung_height: float  # in half thoraces
    heart: float  # -1 slim to 1 large
    turned: float  # the spine's shift by a turned patient, in half thoraces
    bones: float  # contrast of the bones
    air: float  # how much darker than the chest wall the lungs are
    hila: float  # size of the vessels at the roots of the lungs

    @classmethod
    def draw(cls, seed: int) -> "Anatomy":
        """Draw a patient at random; the same seed gives the same patient."""
        rng = np.random.default_rng(seed)
        return cls(
            seed=seed,
            breasts=float(rng.uniform(0.04, 0.11) * (rng.random() < 0.45)),
            stout=float(rng.beta(2, 2)),
            lung_height=float(rng.uniform(1.35, 1.75)),
            heart=float(np.clip(rng.normal(0.1, 0.5), -0.9, 1.2)),
            turned=float(rng.normal(0, 0.025)),
            bones=float(rng.uniform(0.55, 1.2)),
            air=float(rng.uniform(0.27, 0.38)),
            hila=float(rng.lognormal(0, 0.3)),
        )

    def lungs(self) -> tuple[np.ndarray, np.ndarray]:
        """Outlines (n, 2) of the right and the left lung in chest coordinates."""
        rng = np.random.default_rng([self.seed, 1])
        outlines = []
        for points in (RIGHT_LUNG, LEFT_LUNG):
            points = np.array(points)
            at_heart = np.exp(-(((points[:, 1] - 0.72) / 0.2) ** 2)) * (np.abs(points[:, 0]) < 0.65)
            points[:, 0] += at_heart * 0.07 * self.heart * np.sign(points[:, 0]) * np.where(points[:, 0] > 0, 1, 0.4)
            points[:, 0] += self.turned * (1 - np.abs(points[:, 0]))
            points[:, 1] += rng.normal(0, 0.018) * np.clip(points[:, 1] * 3 - 1.5, 0, 1)  # one dome is higher
            outlines.append(rounded(points + rng.normal(0, 0.008, points.shape)))
        return outlines[0], outlines[1]


def mirrored(points: list) -> list:
    """Both sides of a structure given for the patient's left."""
    return [[(side * x, y) for x, y in points] for side in (-1, 1)]


def bone(canvas: Canvas, paths: list, width: float, marrow: float, cortex: float) -> np.ndarray:
    """Long bones along `paths`: `marrow` is the attenuation inside, `cortex` what their rims have more."""
    outer = canvas.strokes(paths, width)
    return marrow * outer + cortex * (outer - canvas.strokes(paths, 0.7 * width))


def draw_ribs(canvas: Canvas, anatomy: Anatomy) -> np.ndarray:
    """Ten pairs of ribs: the back parts fall from the spine to the chest wall, the fainter front parts from there."""
    rng = np.random.default_rng([anatomy.seed, 2])
    drop, spacing = rng.uniform(0.15, 0.24), rng.uniform(0.092, 0.102)
    back, front = [], []
    for rib in range(10):
        top = -0.05 + spacing * rib + rng.normal(0, 0.003)
        turn = top + drop * min(0.5 + 0.2 * rib, 1)  # the upper ribs are flatter
        wall = float(np.interp(turn, *WALL))
        behind = [(0.0, top + 0.02), (0.14, top), (0.35 * wall, top - 0.02), (0.70 * wall, top + 0.3 * (turn - top))]
        behind += [(0.93 * wall, top + 0.7 * (turn - top)), (wall, turn + 0.02), (0.99 * wall, turn + 0.07)]
        back += mirrored(rounded(behind, closed=False))
        if rib < 7:
            before = [(0.99 * wall, turn + 0.07), (0.92 * wall, turn + 0.12), (0.72 * wall, turn + 0.18)]
            front += mirrored(rounded([*before, (0.45 * wall + 0.02 * rib, turn + 0.22)], closed=False))
    ribs = bone(canvas, back, 0.080, 0.040, 0.050) + bone(canvas, front, 0.090, 0.025, 0.030)
    return ribs * (1 - 0.8 * canvas.strokes([[(0, -0.9), (0, 1.8)]], 0.26, 0.04))  # they end behind the spine


def draw_bones(canvas: Canvas, anatomy: Anatomy) -> np.ndarray:
    """Ribs, clavicles, shoulder blades, upper arms and spine as attenuation, up to about 0.2."""
    rng = np.random.default_rng([anatomy.seed, 3])
    shift = rng.normal(0, 0.03)
    bones = draw_ribs(canvas, anatomy)
    bones += bone(canvas, mirrored(rounded([(x, y + shift) for x, y in CLAVICLE], closed=False)), 0.085, 0.06, 0.05)
    blades = mirrored(rounded([(x + rng.normal(0, 0.02), y) for x, y in SCAPULA]))
    bones += 0.05 * canvas.area(*blades) + 0.05 * canvas.strokes(blades, 0.03)
    bones += 0.08 * canvas.area(*mirrored(canvas.circle((1.36, 0.06), 0.16)))
    bones += bone(canvas, mirrored([(1.40, 0.08), (1.62, 1.8)]), 0.17, 0.05, 0.06)
    spine = rounded([(0, -0.9), (anatomy.turned, 0.2), (anatomy.turned, 0.9), (0, 1.8)], closed=False)
    bones += bone(canvas, [spine], 0.27, 0.06, 0.03)
    discs = [[(anatomy.turned - 0.12, y), (anatomy.turned + 0.12, y)] for y in np.arange(-0.9, 1.8, 0.11)]
    bones -= 0.04 * canvas.strokes(discs, 0.03)
    return anatomy.bones * blur(bones, 0.008 * canvas.unit)


def draw_vessels(canvas: Canvas, anatomy: Anatomy) -> np.ndarray:
    """Bronchovascular branches fanning out from both hila, 0 to about 1."""
    rng = np.random.default_rng([anatomy.seed, 4])
    widths = (0.038, 0.025, 0.016, 0.010)
    branches: list[list] = [[] for _ in widths]

    def grow(start: np.ndarray, heading: float, order: int) -> None:
        length = rng.uniform(0.16, 0.34)
        bends = heading + np.cumsum(rng.normal(0, 0.12, 6))
        steps = np.stack([np.cos(bends), np.sin(bends) / anatomy.lung_height], axis=1) * length / 6
        path = np.concatenate([start[None], start + np.cumsum(steps, axis=0)])
        branches[order].append(path)
        if order + 1 < len(widths):
            for turn in (-1, 1):
                grow(path[rng.integers(3, 7)], bends[-1] + turn * rng.uniform(0.15, 0.7), order + 1)

    for side, hilum in ((-1, (-0.20, 0.43)), (1, (0.22, 0.39))):
        for angle in np.linspace(-1.3, 1.4, 8) + rng.normal(0, 0.12, 8):
            start = np.array(hilum) + rng.normal(0, 0.03, 2)
            grow(start, angle if side > 0 else np.pi - angle, int(rng.integers(0, 2)))
    layers = [
        width**0.6 * canvas.strokes(paths, width * anatomy.hila**0.5)
        for width, paths in zip(widths, branches, strict=True)
    ]
    return blur(7 * np.maximum.reduce(layers), 0.006 * canvas.unit)


def draw_body(canvas: Canvas, anatomy: Anatomy) -> Body:
    """The whole body of a patient on a canvas, without findings."""
    rng = np.random.default_rng([anatomy.seed, 5])
    half = np.array(HALF_TORSO) * [0.97 + 0.12 * anatomy.stout, 1]
    torso = rounded(np.concatenate([half, half[::-1] * [-1, 1]]))
    body = canvas.area(torso, *mirrored(rounded(ARM)), soft=0.01)
    masks = tuple(canvas.area(outline, soft=0.009) for outline in anatomy.lungs())
    lungs = np.maximum(*masks)

    image = 0.60 * thickness(canvas, body, 0.16 + 0.10 * anatomy.stout)
    image *= 1 + 0.035 * canvas.noise(rng, 0.5, 3)  # fat and muscle are not even
    abdomen = canvas.area(rounded(ABDOMEN), soft=0.06)
    heart = canvas.area(rounded(np.array(HEART) * [1 + 0.12 * anatomy.heart, 1]), soft=0.06)
    image += 0.22 * abdomen * body + 0.15 * heart * (1 - abdomen)
    image += 0.10 * canvas.strokes([[(0, -0.05), (0, 1.8)]], 0.40, 0.08)
    image -= 0.07 * canvas.strokes([[(0.0, -0.9), (anatomy.turned, 0.22), (anatomy.turned + 0.02, 0.36)]], 0.11, 0.015)
    hila = [canvas.circle((x + anatomy.turned, y), 0.10 * anatomy.hila) for x, y in ((-0.24, 0.44), (0.26, 0.40))]
    image += 0.06 * anatomy.hila * canvas.area(*hila, soft=0.05)
    depth = 0.70 + 0.30 * blur(lungs, 0.16 * canvas.unit)  # less lung lies in the beam towards its border
    air = anatomy.air * lungs * depth * (1 + 0.12 * canvas.noise(rng, 0.5, 5))
    vessels = 0.075 * draw_vessels(canvas, anatomy) * lungs
    image += vessels - air + draw_bones(canvas, anatomy) * body * (1 - 0.5 * abdomen)
    if anatomy.breasts:
        centre, size = (0.60, rng.uniform(0.68, 0.84)), rng.uniform(0.40, 0.50)
        image += anatomy.breasts * canvas.area(*mirrored(canvas.circle(centre, size)), soft=0.02) * body
    if rng.random() < 0.3:  # gas in the stomach
        stomach = canvas.circle((rng.uniform(0.45, 0.6), 0.99), rng.uniform(0.10, 0.18)) * [1, 0.6] + [0, 0.4]
        image -= 0.14 * canvas.area(stomach, soft=0.03)
    return Body(image, air, vessels, (masks[0], masks[1]))


def thickness(canvas: Canvas, body: np.ndarray, depth: float) -> np.ndarray:
    """How thick a body is, 0 to 1: it rises from its silhouette over about `depth` half thoraces."""
    small = cv2.resize(body, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    distance = cv2.distanceTransform((small > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    distance = (
        np.minimum(distance, max(small.shape)) * 4 / canvas.unit
    )  # OpenCV gives infinity where nothing is outside
    return body * cv2.resize(1 - np.exp(-distance / depth), canvas.shape[::-1])
