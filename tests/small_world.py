"""A hundred-odd films whose answers come from a random generator: detectors know something, the study model nothing."""

import itertools

import numpy as np
import pandas as pd
from scipy.special import expit

from siimcovid import LEVELS
from siimcovid.ablation.arms import PLAIN
from siimcovid.combine import Said
from siimcovid.fuse import COLUMNS
from siimcovid.presets import load_preset

LEFT, RIGHT = [0.1, 0.2, 0.4, 0.7], [0.6, 0.2, 0.9, 0.7]
PRESET = load_preset("small", PLAIN)


def world(seed=0, films=120, told=1.5):
    """Films with none, one and two boxes, a study each: detectors know `told` of them, the study model nothing."""
    rng = np.random.default_rng(seed)
    level = rng.choice(LEVELS, films)
    rows, found, graded = [], [], []
    for k in range(films):
        boxes = {"negative": [], "typical": [LEFT, RIGHT]}.get(level[k], [LEFT])
        rows.append({"image_id": f"i{k}", "study_id": f"s{k}", "boxes": boxes, "level": level[k]})
        for model, box in itertools.product(("rcnn", "yolo"), (LEFT, RIGHT)):
            found.append((f"i{k}", model, expit(rng.normal(told if box in boxes else -told, 1)), *box))
        graded.append([f"i{k}", f"s{k}", *rng.dirichlet(np.ones(4))])
    images = pd.DataFrame(rows).assign(rows=100, columns=200, annotated=True)
    levels = pd.DataFrame(graded, columns=["image_id", "study_id", *LEVELS])
    names = images["image_id"].tolist()
    said = Said(
        images[["image_id", "study_id"]], pd.DataFrame(found, columns=COLUMNS), {"rcnn": names, "yolo": names}, levels
    )
    return said, images, {name: k % 3 for k, name in enumerate(names)}
