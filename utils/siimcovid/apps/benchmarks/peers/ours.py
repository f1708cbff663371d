"""A stage of preset `small` as a contender: its own training loop, with as many epochs as fit into the time.

A detector starts from published weights, as the study model does, and not from the study model's backbone as in a whole
run: that one has been trained on these images before.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from siimcovid.apps.benchmarks.peers import CONTENDERS
from siimcovid.apps.benchmarks.peers.peer_job import Outcome, PeerJob
from siimcovid.apps.benchmarks.peers.training_budget import MEASURED, Plan, ShortEpochs, plan, step_seconds
from siimcovid.core.presets import load_preset
from siimcovid.data.datasets import ImageDataset
from siimcovid.inference.predictor import predict_table
from siimcovid.models import checkpoints, initial_weights
from siimcovid.training.training_loop import train


def contend(job: PeerJob, images: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, Outcome]:
    """Train a stage for the job's time; returns what it predicts for the test images, and how it went."""
    stage = CONTENDERS[job.name].stage
    config = getattr(load_preset("small", job.settings), stage)
    batch = config.training.batch
    _, _, ends, _ = train_parts(job, stage, config, images, Plan(1, MEASURED + 1), job.out / "measured")
    planned = plan(job.seconds, step_seconds(ends), max(1, len(images) // batch))
    path, seconds, ends, start = train_parts(job, stage, config, images, planned, job.out / "trained")
    _, config, model = checkpoints.load(path)
    begin = time.monotonic()
    table = predict_table(stage, config, model, test, job.cache)
    return table, Outcome(start, seconds, len(ends) * batch, len(ends), time.monotonic() - begin)


def train_parts(
    job: PeerJob, stage: str, config: Any, images: pd.DataFrame, planned: Plan, out: Path
) -> tuple[Path, float, list[float], str]:
    """Train a stage with a plan: the checkpoint, its seconds, when each step ended, and the file it started from."""
    config = replace(config, training=replace(config.training, epochs=planned.parts, validate=False, patience=0))
    torch.manual_seed(job.seed)
    model = checkpoints.build_model(stage, config)
    start = initial_weights.start(stage, config, model, job.start)["file"] if job.start else ""
    samples = ImageDataset(images, job.cache, config.size, config.augment, job.seed, epochs=planned.parts)
    parts = ShortEpochs(samples, planned.steps * config.training.batch, job.seed)
    ends: list[float] = []
    begin = time.monotonic()
    path = train(
        stage, config, model, parts, out, seed=job.seed, on_step=lambda progress: ends.append(time.monotonic())
    )
    return path, time.monotonic() - begin, ends, start
