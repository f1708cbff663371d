"""Images with boxes drawn on them."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from siimcovid.data import image_cache
from siimcovid.reporting.figures.figure_style import COLOURS, MODEL_NAMES, TRUTH


def gallery(
    folder: Path,
    images: pd.DataFrame,
    detections: pd.DataFrame,
    truth: pd.DataFrame | None = None,
    models: Sequence[str] | None = None,
    threshold: float = 0.2,
    across: bool = False,
) -> Figure:
    """Images side by side with the boxes of the ground truth and of each model (report, figure 16).

    Args:
        folder: the cache.
        images: rows of the index, one line of pictures each.
        detections: the detections table, see inference/predictor.py.
        truth: image_id and boxes (lists of xyxy fractions), or None for no column of the ground truth.
        models: a column of pictures each; by default the detectors that found something, and the ensemble.
        threshold: boxes of a lower score are not drawn.
        across: the images beside each other, a line of pictures for each model, named by their study label.
    """
    present = set(detections["model"])
    models = models or [name for name in MODEL_NAMES if name in present or name == "ensemble"]
    columns = [TRUTH, *(m for m in models if m != TRUTH)] if truth is not None else list(models)
    lines, wide = (len(columns), len(images)) if across else (len(images), len(columns))
    figure = Figure(figsize=(2.6 * wide, 2.3 * lines), layout="constrained")
    axes = figure.subplots(lines, wide, squeeze=False)
    axes = axes.T if across else axes
    true_boxes = {} if truth is None else dict(zip(truth["image_id"], truth["boxes"], strict=True))
    labels = images["study_label"].fillna("") if across else [""] * len(images)
    for line, image_id, study_label in zip(axes, images["image_id"], labels, strict=True):
        pixels = image_cache.read(folder, image_id)
        for axis, name in zip(line, columns, strict=True):
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
            axis.set_title(study_label or name, fontsize=9)
            if name == TRUTH:
                boxes = [(box, None) for box in true_boxes.get(image_id, [])]
            else:
                found = detections[(detections["image_id"] == image_id) & (detections["model"] == name)]
                found = found[found["score"] >= threshold]
                boxes = [(row[3:7], row[2]) for row in found.itertuples(index=False)]
            for box, score in boxes:
                draw_box(axis, box, pixels.shape, COLOURS[name], score)
    return figure


def draw_box(axis: Axes, box: Sequence[float], shape: tuple[int, int], colour: str, score: float | None = None) -> None:
    """Draw an xyxy box given in fractions of a picture of `shape` (rows, columns), with its score."""
    x1, y1, x2, y2 = box
    rows, columns = shape
    corner = (x1 * columns, y1 * rows)
    axis.add_patch(Rectangle(corner, (x2 - x1) * columns, (y2 - y1) * rows, fill=False, color=colour, lw=1.5))
    if score is not None:
        axis.text(
            *corner, f"{score:.2f}", color="black", fontsize=6, va="bottom", bbox={"fc": colour, "lw": 0, "pad": 1}
        )
