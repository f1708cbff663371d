"""Detectors' scores brought to one scale before boxes are fused: Platt scaling by each detector's two numbers.

In: a detections table. Out: the same with calibrated scores. `fit_ensemble.fit_calibration` fits the numbers.
"""

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from siimcovid.core.configuration import FusionConfig
from siimcovid.core.stage_names import stage_of

#: Probabilities are kept this far from 0 and 1 before their logit is taken.
EDGE = 1e-4


def calibrate(detections: pd.DataFrame, fusion: FusionConfig) -> pd.DataFrame:
    """The detections with scores sigmoid(slope * logit(score) + intercept), by each detector's two numbers (Platt 1999,
    Probabilistic outputs for support vector machines); as they are without `fusion.calibration`."""
    if not fusion.calibration or detections.empty:
        return detections
    numbers = fusion.of_detectors("calibration", 2)
    scores = detections["score"].to_numpy(dtype=float).copy()
    model = detections["model"].to_numpy()
    for model_name in pd.unique(detections["model"]):
        if stage_of(model_name) in numbers:
            slope, intercept = numbers[stage_of(model_name)]
            scores[model == model_name] = expit(slope * logits(scores[model == model_name]) + intercept)
    return detections.assign(score=scores)


def logits(probabilities: np.ndarray | pd.Series) -> np.ndarray:
    """Logits of probabilities, which are first brought into [EDGE, 1 - EDGE]."""
    return logit(np.clip(np.asarray(probabilities, dtype=float), EDGE, 1 - EDGE))
