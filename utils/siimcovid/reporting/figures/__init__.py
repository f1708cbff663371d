"""Pictures for the notebook, the report page and the README, drawn by matplotlib.

In: tables and evaluations. Out: matplotlib Figures of their own, outside pyplot: yolov5 switches pyplot's backend when
it is imported. The notebook shows them by notebook_figures.py; the report page makes them SVG.
"""

from siimcovid.reporting.figures.dataset_figures import (
    box_count_chart,
    box_position_map,
    box_size_histogram,
    image_size_chart,
    tally_chart,
)
from siimcovid.reporting.figures.figure_style import COLOURS, MODEL_NAMES, TRUTH
from siimcovid.reporting.figures.image_figures import draw_box, gallery
from siimcovid.reporting.figures.score_figures import (
    calibration,
    confusion,
    f1_curves,
    precision_recall,
    scores_by_images,
)
from siimcovid.reporting.figures.training_figures import learning_curves, read_metrics, stage_curve, step_times

__all__ = [
    "COLOURS",
    "MODEL_NAMES",
    "TRUTH",
    "box_count_chart",
    "box_position_map",
    "box_size_histogram",
    "calibration",
    "confusion",
    "draw_box",
    "f1_curves",
    "gallery",
    "image_size_chart",
    "learning_curves",
    "precision_recall",
    "read_metrics",
    "scores_by_images",
    "stage_curve",
    "step_times",
    "tally_chart",
]
