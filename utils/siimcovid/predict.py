"""Predictions of trained models on cached films, as tables.

detections   image_id, model, score, x1, y1, x2, y2: fractions of the film, a film's highest box first
levels       image_id, study_id and the four probabilities in the order of LEVELS
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from siimcovid import LEVELS
from siimcovid.data import SHARED, Films, loader
from siimcovid.models.backbone import for_inference

DETECTION_COLUMNS = ["image_id", "model", "score", "x1", "y1", "x2", "y2"]


def predict(
    stage: str, config: Any, model: nn.Module, images: pd.DataFrame, cache: Path, flip: bool = False
) -> pd.DataFrame:
    """Predict films of the index that lie in the cache: a detections table for a detector, levels for `study`.

    On a GPU the model runs under autocast; on the CPU in float32. What runs is a copy made for inference. With `flip`
    it sees mirrored films; the boxes come back as of the films themselves, under the model name "<stage>_flip".
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = for_inference(model.to(device))
    films = Films(images, cache, config.infer_size, memory=SHARED)
    crop = config.augment.crop
    rows = []
    for batch in tqdm(loader(films, config.infer_batch), desc=f"predict {stage}", unit="batch", mininterval=2):
        pixels = batch["images"].to(device, non_blocking=True)
        if crop:
            start = (pixels.shape[-1] - crop) // 2
            pixels = pixels[..., start : start + crop, start : start + crop]
        if flip:
            pixels = pixels.flip(-1)
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            output = model.predict(pixels)
        if stage == "study":
            rows.append(torch.softmax(output.float(), dim=1).cpu().numpy())
        else:
            rows += [
                np.hstack([scores.float().cpu().numpy()[:, None], boxes.float().cpu().numpy()])
                for boxes, scores in output
            ]
    if stage == "study":
        table = images[["image_id", "study_id"]].reset_index(drop=True)
        values = np.concatenate(rows) if rows else np.empty((0, len(LEVELS)))
        return table.join(pd.DataFrame(values.astype(np.float64), columns=list(LEVELS)))
    counts = [len(found) for found in rows]
    values = np.concatenate(rows).astype(np.float64) if rows else np.empty((0, 5))
    table = pd.DataFrame(values, columns=DETECTION_COLUMNS[2:])
    if flip:
        table["x1"], table["x2"] = 1 - table["x2"], 1 - table["x1"]
    table.insert(0, "model", f"{stage}_flip" if flip else stage)
    table.insert(0, "image_id", np.repeat(images["image_id"].to_numpy(), counts))
    return table


def study_levels(levels: pd.DataFrame) -> pd.DataFrame:
    """Mean of a study's films: study_id and the four probabilities."""
    return levels.groupby("study_id", sort=True)[list(LEVELS)].mean().reset_index()
