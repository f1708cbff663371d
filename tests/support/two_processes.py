"""What test_multi_gpu.py runs in two processes and in one: a few steps of every stage, and preparation.

Run as `torchrun --nproc_per_node 2 two_processes.py FOLDER OUT`; FOLDER holds index.csv.
"""

import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset

from siimcovid.core.configuration import Preset, Training
from siimcovid.core.labels import NIH_FINDINGS
from siimcovid.core.presets import DEMO, load_preset
from siimcovid.data.competition import read_index
from siimcovid.models import checkpoints
from siimcovid.training import train_stage
from siimcovid.training.training_loop import train

SIDE = 64
RANK = int(os.environ.get("RANK", "0"))


def few_steps(stage: str) -> Preset:
    """Two epochs by plain SGD, four images an update: two at a time, one process's after each other or side by side."""
    settings = {"size": SIDE, "infer_size": SIDE}
    together = 2 * int(os.environ.get("WORLD_SIZE", "1"))
    training = {
        "epochs": 2,
        "batch": together,
        "nominal_batch": 4,
        "optimizer": "sgd",
        "momentum": 0.9,
        "learning_rate": 0.01,
    }
    settings |= {f"training.{key}": value for key, value in training.items()}
    return load_preset("demo", {f"{stage}.{key}": value for key, value in settings.items()} | {"cache_size": SIDE})


class Line(nn.Module):
    """A layer on a norm with running statistics. In the second process the loss is not finite from epoch 2 on."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer, self.steps = nn.BatchNorm1d(2), nn.Linear(2, 4), 0

    def forward(self, batch: dict) -> dict:
        self.steps += 1
        loss = nn.functional.cross_entropy(self.layer(self.norm(batch["features"])), batch["study_labels"])
        return {"study_label": loss * (math.nan if RANK and self.steps > 4 else 1.0)}


class Points(Dataset):
    """Sixteen points of the plane."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, ticket: int) -> dict:
        values = torch.randn(2, generator=torch.Generator().manual_seed(ticket))
        return {"features": values, "study_labels": ticket % 4, "image_ids": f"image{ticket}"}


def train_line(out: Path) -> None:
    """Three epochs of four steps; every process writes the running mean of the model that it measures."""

    def evaluate(model: nn.Module) -> float:
        (out / f"mean.{RANK}.txt").write_text(str(model.norm.running_mean.tolist()))
        return 0.5

    out.mkdir(exist_ok=True)
    training = Training(epochs=3, batch=4, learning_rate=0.05)
    train("study", replace(DEMO.study, training=training), Line(), Points(), out, evaluate=evaluate)


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
    train_line(out / "line")


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))
