"""One synthetic chest radiograph: anatomy and findings in, grey levels and boxes out.

An image is drawn as a sum of attenuations (bright is dense, as on a radiograph) in the chest coordinates of canvas.py:
the anatomy, which a patient keeps from study to study, the findings of the study's label, and what lies on or around
the patient. Exposure, noise, collimation and a side marker then turn attenuation into grey levels.
"""

from typing import NamedTuple

import cv2
import numpy as np

from siimcovid.synthetic.anatomy import Anatomy, draw_body, mirrored
from siimcovid.synthetic.canvas import Canvas, blur, rounded
from siimcovid.synthetic.lung_findings import choose_findings, visible_box

#: Anatomy is drawn at most this long (pixels) and enlarged: an image's anatomy is no sharper, and it bounds the cost.
DRAWN_SIDE = 800


class Radiograph(NamedTuple):
    """`pixels` (rows, columns) float32 in [0, 1], 0 is black; `boxes` (n, 4) xyxy fractions of what is boxed."""

    pixels: np.ndarray
    boxes: np.ndarray


def place_patient(rng: np.random.Generator, anatomy: Anatomy, shape: tuple[int, int]) -> Canvas:
    """Draw a patient's size, position and a few degrees of tilt on an image of `shape` (rows, columns).

    The spreads make the boxes lie where the radiologists' do: centres about .28 and .74 across, .31 to .73 down.
    """
    rows, columns = shape
    half = np.clip(rng.normal(0.395, 0.033), 0.33, 0.49) * columns
    height = min(half * anatomy.lung_height, rng.uniform(0.70, 0.86) * rows)
    tilt = np.deg2rad(rng.normal(0, 2.0))
    axes = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]) * [half, height]
    centre = rng.normal([0.51, 0.485], [0.03, 0.055]) * [columns, rows]
    return Canvas(shape, np.column_stack([axes, centre - axes @ [0, 0.5]]))


def draw_overlays(rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
    """Attenuation of what is no finding and may be taken for one: electrodes and wires, tubes and lines, nipples."""
    overlay = np.zeros(canvas.shape, np.float32)
    if rng.random() < 0.35:
        pads = rng.uniform([-0.9, 0.0], [0.9, 0.9], (rng.integers(2, 5), 2))
        overlay += 0.14 * canvas.area(*(canvas.circle(pad, 0.035) for pad in pads))
        wires = []
        for pad in pads:
            falls = pad + rng.normal(0, [[0.3, 0], [0.5, 0]]) + [[0, 0.3], [0, 0.6]]
            wires.append([pad, *falls, (rng.uniform(-1.5, 1.5), 1.5)])
        overlay += 0.10 * canvas.strokes([rounded(wire, closed=False) for wire in wires], 0.012)
    if rng.random() < 0.2:  # a tube in the trachea
        overlay += 0.10 * canvas.strokes([[(0.01, -0.9), (0.0, 0.0), (0.01, 0.2)]], 0.022)
    if rng.random() < 0.2:  # a line in the vena cava, from either side
        side = rng.choice([-1, 1])
        line = [(0.8 * side, -0.1), (0.4 * side, 0.0), (0.1 * side, 0.1), (-0.1, 0.3), (-0.12, 0.45)]
        overlay += 0.10 * canvas.strokes([rounded(line, closed=False)], 0.014)
    if rng.random() < 0.3:
        nipples = mirrored(canvas.circle((rng.uniform(0.5, 0.65), rng.uniform(0.62, 0.8)), 0.04))
        overlay += rng.uniform(0.03, 0.08) * blur(canvas.area(*nipples), 0.01 * canvas.unit)
    return blur(overlay, 0.004 * canvas.unit)


def to_grey_levels(rng: np.random.Generator, attenuation: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Turn attenuation into grey levels in [0, 1] of an image of `shape` (rows, columns): enlarge it, apply a random
    gamma, contrast and brightness, add noise, sometimes a collimated border, and the side marker."""
    image = cv2.resize(attenuation, shape[::-1], interpolation=cv2.INTER_CUBIC)
    image = np.clip(image / 1.2, 0, 1) ** rng.uniform(0.7, 1.35)
    image = 0.5 + rng.uniform(0.75, 1.2) * (image - rng.uniform(0.42, 0.58))
    grain = rng.standard_normal(shape, np.float32)
    grain += 2.0 * blur(grain, 0.8)
    image += rng.uniform(0.004, 0.016) * (0.4 + image) * grain  # fewer quanta pass where the body is dense
    np.clip(image, 0, 1, out=image)
    if rng.random() < 0.35:  # beyond the collimated field an image is black, on some systems white
        blank_border(image, rng.uniform(0, 0.035, 4) * (rng.random(4) < 0.6), 0.0 if rng.random() < 0.8 else 1.0)
    draw_side_marker(rng, image)
    return image


def blank_border(image: np.ndarray, edges: np.ndarray, grey: float) -> None:
    """Set the border beyond the collimated field to `grey`, in place; `edges`: top, bottom, left and right as fractions
    of the image."""
    rows, columns = image.shape
    top, bottom, left, right = (edges * [rows, rows, columns, columns]).astype(int)
    image[:top] = image[rows - bottom :] = grey
    image[:, :left] = image[:, columns - right :] = grey


def draw_side_marker(rng: np.random.Generator, image: np.ndarray) -> None:
    """Write the side marker into a corner, in place: L on the image's right or R on its left, and sometimes the view or
    the patient's position."""
    rows, columns = image.shape
    letter, x = ("L", rng.uniform(0.86, 0.92)) if rng.random() < 0.75 else ("R", rng.uniform(0.04, 0.09))
    y, size = rng.uniform(0.06, 0.16), rows / 700 * rng.uniform(0.8, 1.4)
    texts = [(letter, size, y)]
    if rng.random() < 0.3:
        texts.append((str(rng.choice(["AP", "PORTABLE", "SUPINE", "ERECT"])), 0.5 * size, y + 0.04))
    plate = np.zeros(image.shape, np.uint8)
    for text, height, y in texts:
        origin = int(min(x, 0.9) * columns), int(y * rows)
        cv2.putText(
            plate, text, origin, cv2.FONT_HERSHEY_SIMPLEX, height, 255, max(round(2.2 * height), 1), cv2.LINE_AA
        )
    np.maximum(image, plate / np.float32(255), out=image)


def render(
    anatomy: Anatomy, study_label: str, boxes: int, shape: tuple[int, int], seed: int, repeat: int = 0
) -> Radiograph:
    """Draw an image of a study.

    Args:
        anatomy: the patient.
        study_label: one of core.labels.STUDY_LABELS.
        boxes: how many opacities have a box.
        shape: rows and columns of the image.
        seed: of the study; it determines the position, the findings, exposure and noise.
        repeat: above 0 for a repeated exposure: the same findings, another shift and exposure.
    """
    scale = min(DRAWN_SIDE / max(shape), 1)
    canvas = place_patient(
        np.random.default_rng([seed, 0]), anatomy, (round(shape[0] * scale), round(shape[1] * scale))
    )
    findings = choose_findings(np.random.default_rng([seed, 1]), study_label, boxes, canvas, anatomy.lungs())
    rng = np.random.default_rng([seed, 2, repeat])
    if repeat:
        canvas = canvas.shifted(rng.normal(0, 0.02, 2) * canvas.shape[::-1])
    body = draw_body(canvas, anatomy)
    open_air, found = np.ones(canvas.shape, np.float32), []
    for finding in findings:
        density = finding.density(canvas, body.lungs)
        open_air *= 1 - finding.contrast * density
        if finding.boxed:
            found.append(visible_box(density))
    filled = 1 - open_air  # where no air is left, neither vessels nor lung stand out
    image = body.image + filled * (body.air - 0.8 * body.vessels)
    image += draw_overlays(rng, canvas)
    return Radiograph(to_grey_levels(rng, image, shape), np.array(found).reshape(-1, 4))
