"""A handful of train images in a cache, and a model that answers what it is told, for tests of stages."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn

from siimcovid.core.labels import STUDY_LABELS

BOX = [0.2, 0.3, 0.6, 0.8]


def eight_images(folder: Path) -> tuple:
    """Eight train images of different grey, four levels, one of them a sibling that nobody annotated."""
    rng, rows = np.random.default_rng(0), []
    for k in range(8):
        cv2.imwrite(str(folder / f"image{k}.png"), rng.integers(0, 256, (48, 40), dtype=np.uint8))
        row = {"image_id": f"image{k}", "study_id": f"study{k % 7}", "patient_id": f"patient{k % 5}", "split": "train"}
        boxed = [BOX] if k % 4 == 1 else []
        rows.append(
            row | {"boxes": boxed, "study_label": STUDY_LABELS[k % 4], "annotated": k != 7, "rows": 48, "columns": 40}
        )
    return folder, pd.DataFrame(rows)


class Fixed(nn.Module):
    """A detector that says the same of every image, or a classifier that says what it is given."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def predict(self, images):
        if torch.is_tensor(self.answer):
            return self.answer[: len(images)]
        return [(torch.tensor([box for box, _ in self.answer]), torch.tensor([s for _, s in self.answer]))] * len(
            images
        )
