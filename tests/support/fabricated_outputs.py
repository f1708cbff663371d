"""Model outputs that no model made: ground truth with noise, so that a test knows how good each detector is.

A detector finds each true box with probability `recall`, displaced by `jitter` of its sides, with a score whose logit
is normal around `told`; and false boxes, Poisson-distributed with mean `false`, whose logits are normal around 0, all
minus `shift`. `blind` names a half of the image ("left", "right") in which it finds nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit

from siimcovid.core.labels import STUDY_LABELS
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.weighted_boxes_fusion import COLUMNS

#: Shares of the study labels, as in the competition's train set, and how many halves of an image are affected then.
SHARES = (0.277, 0.472, 0.172, 0.079)
SIDES = {"negative": (1.0, 0.0, 0.0), "typical": (0.05, 0.1, 0.85), "indeterminate": (0.1, 0.6, 0.3)}
SIDES["atypical"] = (0.2, 0.5, 0.3)


@dataclass(frozen=True)
class FabricatedDetector:
    """See the module's docstring."""

    told: float = 2.0
    recall: float = 0.8
    jitter: float = 0.08
    false: float = 4.0
    shift: float = 2.0
    blind: str = ""


#: A detector that knows something, and one that knows next to nothing and is as sure of it.
GOOD = FabricatedDetector()
USELESS = FabricatedDetector(told=0.0, recall=0.3, jitter=0.3, false=8.0, shift=0.0)


def fabricate(
    detectors: Mapping[str, FabricatedDetector], images: int, seed: int = 0
) -> tuple[ModelOutputs, pd.DataFrame]:
    """Outputs of detectors and of a study model that knows a little, and the index's rows of the images."""
    rng = np.random.default_rng(seed)
    rows, found, study_tables = [], [], []
    labels = rng.choice(STUDY_LABELS, images, p=SHARES)
    for k, label in enumerate(labels):
        boxes = _true_boxes(rng, rng.choice(3, p=SIDES[label]))
        name, study = f"i{k}", f"s{k}"
        rows.append((name, study, f"p{k}", boxes, label))
        for model, detector in detectors.items():
            found += [(name, model, *row) for row in _detected(rng, boxes, detector)]
        logit = rng.normal(0, 1, 4) + 1.2 * (np.array(STUDY_LABELS) == label) + np.log(SHARES)
        study_tables.append((name, study, *(np.exp(logit) / np.exp(logit).sum())))
    index = pd.DataFrame(rows, columns=["image_id", "study_id", "patient_id", "boxes", "study_label"])
    index = index.assign(split="train", annotated=True, rows=100, columns=100)
    table = pd.DataFrame(found, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[2:], float))
    table = table.sort_values(["model", "image_id", "score"], ascending=[True, True, False], ignore_index=True)
    study_probs = pd.DataFrame(study_tables, columns=["image_id", "study_id", *STUDY_LABELS])
    predicted = {model: index["image_id"].tolist() for model in detectors}
    return ModelOutputs(index[["image_id", "study_id"]], table, predicted, study_probs), index


def _true_boxes(rng: np.random.Generator, sides: int) -> list[list[float]]:
    lefts = [0.08, 0.55] if sides == 2 else [rng.choice([0.08, 0.55])] * sides
    corners = [(left + rng.uniform(0, 0.08), rng.uniform(0.15, 0.4)) for left in lefts]
    return [[x, y, x + rng.uniform(0.15, 0.3), y + rng.uniform(0.2, 0.45)] for x, y in corners]


def _detected(rng: np.random.Generator, boxes: list[list[float]], detector: FabricatedDetector) -> list[tuple]:
    rows = []
    for box in boxes:
        side = "left" if box[0] + box[2] < 1 else "right"
        if side == detector.blind or rng.random() > detector.recall:
            continue
        sides = np.array([box[2] - box[0], box[3] - box[1]] * 2)
        rows.append((rng.normal(detector.told, 1), *(np.array(box) + rng.normal(0, detector.jitter, 4) * sides)))
    for _ in range(rng.poisson(detector.false)):
        (box,) = _true_boxes(rng, 1)
        rows.append((rng.normal(0, 1), *box))
    return [(float(expit(logit - detector.shift)), *np.clip(box, 0, 1)) for logit, *box in rows]
