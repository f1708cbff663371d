"""A hundred-odd images whose answers come from a random generator: detectors know something, the study model
nothing."""

import itertools

import numpy as np
import pandas as pd
from scipy.special import expit

from siimcovid.apps.ablation.trained_variants import PLAIN
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.presets import load_preset
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.weighted_boxes_fusion import COLUMNS

LEFT, RIGHT = [0.1, 0.2, 0.4, 0.7], [0.6, 0.2, 0.9, 0.7]
PRESET = load_preset("demo", PLAIN)


def world(seed=0, images=120, told=1.5):
    """Images with none, one and two boxes, a study each: detectors know `told` of them, the study model nothing."""
    rng = np.random.default_rng(seed)
    study_label = rng.choice(STUDY_LABELS, images)
    rows, found, study_tables = [], [], []
    for k in range(images):
        boxes = {"negative": [], "typical": [LEFT, RIGHT]}.get(study_label[k], [LEFT])
        rows.append({"image_id": f"i{k}", "study_id": f"s{k}", "boxes": boxes, "study_label": study_label[k]})
        for model, box in itertools.product(("rcnn", "yolo"), (LEFT, RIGHT)):
            found.append((f"i{k}", model, expit(rng.normal(told if box in boxes else -told, 1)), *box))
        study_tables.append([f"i{k}", f"s{k}", *rng.dirichlet(np.ones(4))])
    images = pd.DataFrame(rows).assign(rows=100, columns=200, annotated=True)
    study_probs = pd.DataFrame(study_tables, columns=["image_id", "study_id", *STUDY_LABELS])
    names = images["image_id"].tolist()
    outputs = ModelOutputs(
        images[["image_id", "study_id"]],
        pd.DataFrame(found, columns=COLUMNS),
        {"rcnn": names, "yolo": names},
        study_probs,
    )
    return outputs, images, {name: k % 3 for k, name in enumerate(names)}
