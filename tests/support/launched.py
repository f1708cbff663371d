"""What test_launch.py runs in two processes and in one: a few steps of every stage, and preparation.

Run as `torchrun --nproc_per_node 2 launched.py FOLDER OUT`; FOLDER holds index.csv.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from siimcovid.core.configuration import Preset
from siimcovid.core.labels import NIH_FINDINGS
from siimcovid.core.presets import load_preset
from siimcovid.data.competition import read_index
from siimcovid.models import checkpoints
from siimcovid.training import train_stage

SIDE = 64


def few_steps(stage: str) -> Preset:
    """Two epochs by plain SGD, four images an update: of batches of two, one after the other or side by side."""
    settings = {"size": SIDE, "infer_size": SIDE}
    training = {"epochs": 2, "batch": 2, "nominal_batch": 4, "optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.01}
    settings |= {f"training.{key}": value for key, value in training.items()}
    return load_preset("small", {f"{stage}.{key}": value for key, value in settings.items()} | {"cache_size": SIDE})


def work(folder: Path, out: Path) -> None:
    """Prepare the images of FOLDER/index.csv to OUT/cache and train every stage on them."""
    torch.set_num_threads(1)
    images = read_index(folder / "index.csv")
    failures = train_stage.prepare(images, out / "cache", SIDE)
    samples = images[~images["image_id"].isin(failures["image_id"])].reset_index(drop=True)
    findings = np.random.default_rng(0).integers(0, 2, (len(samples), len(NIH_FINDINGS)))
    samples = samples.join(pd.DataFrame(findings, columns=list(NIH_FINDINGS)))
    for stage in checkpoints.STAGES:
        train_stage.fit(stage, few_steps(stage), samples, out / "cache", None, out)


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))
