"""What test_launch.py runs in two processes and in one: a few steps of every stage, and preparation.

Run as `torchrun --nproc_per_node 2 launched.py FOLDER OUT`; FOLDER holds index.csv.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from siimcovid import checkpoint, nih, stages
from siimcovid.competition import read_index
from siimcovid.configs import Preset
from siimcovid.presets import load_preset

SIDE = 64


def few_steps(stage: str) -> Preset:
    """Two epochs by plain SGD, four films an update: of batches of two, one after the other or side by side."""
    settings = {"size": SIDE, "infer_size": SIDE}
    training = {"epochs": 2, "batch": 2, "nominal_batch": 4, "optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.01}
    settings |= {f"training.{key}": value for key, value in training.items()}
    return load_preset("small", {f"{stage}.{key}": value for key, value in settings.items()} | {"cache_size": SIDE})


def work(folder: Path, out: Path) -> None:
    """Prepare the films of FOLDER/index.csv to OUT/cache and train every stage on them."""
    torch.set_num_threads(1)
    images = read_index(folder / "index.csv")
    failures = stages.prepare(images, out / "cache", SIDE)
    films = images[~images["image_id"].isin(failures["image_id"])].reset_index(drop=True)
    findings = np.random.default_rng(0).integers(0, 2, (len(films), len(nih.LABELS)))
    films = films.join(pd.DataFrame(findings, columns=list(nih.LABELS)))
    for stage in checkpoint.STAGES:
        stages.fit(stage, few_steps(stage), films, out / "cache", None, out)


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))
