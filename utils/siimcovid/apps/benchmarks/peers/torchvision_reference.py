"""Faster R-CNN MobileNetV3-Large 320 FPN, trained as torchvision's detection references say.

The settings are those of its README and script: SGD of momentum .9 and weight decay 1e-4, a learning rate of .01 for
eight processes of two images, in proportion to the batch; in the first epoch a linear warm-up from a thousandth over at
most 1,000 steps (and a tenth of the training, which may be shorter than an epoch here); a tenth of the rate after 16
and again after 22 of 26 epochs; horizontal flips. No weights come with the package, so all start at random, with batch
norms that learn, as torchvision builds it then.
"""

import time

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from siimcovid.apps.benchmarks.peers.peer_job import Outcome, PeerJob
from siimcovid.apps.benchmarks.peers.plain_loop import Recipe, train_for
from siimcovid.core.configuration import Augment
from siimcovid.data.datasets import ImageDataset, loader
from siimcovid.data.image_memory import ImageMemory
from siimcovid.inference.predictor import DETECTION_COLUMNS

#: Pixels: the network's own side. Images are stretched to the square, as ours are.
SIDE = 320

BATCH = 4
RATE, RATE_BATCH = 0.01, 16
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
WARM_UP, WARM_UP_FACTOR = 1000, 1e-3
STEPS, GAMMA = (16 / 26, 22 / 26), 0.1

#: Boxes of a lower score are left out: the metric never punishes a low box, and torchvision's .05 would cost this peer.
SCORE = 0.001


def contend(job: PeerJob, images: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, Outcome]:
    """Train for the job's time; returns what it predicts for the test images, and how it went."""
    samples = ImageDataset(images, job.cache, SIDE, Augment(hflip=0.5), job.seed)
    epoch = max(1, len(samples) // BATCH)
    trained = train_for(job.seconds, lambda: recipe(epoch), samples, BATCH, job.seed)
    begin = time.monotonic()
    table = predict(trained.model, ImageDataset(test, job.cache, SIDE, memory=ImageMemory(0)))
    seconds = time.monotonic() - begin
    return table, Outcome("", trained.seconds, trained.steps * min(BATCH, len(samples)), trained.steps, seconds)


def recipe(epoch: int) -> Recipe:
    """The model with random weights and all that trains it. epoch: steps of an epoch."""
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=SIDE, box_score_thresh=SCORE
    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = RATE * BATCH / RATE_BATCH
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def loss(batch: dict) -> Tensor:
        targets = [
            {"boxes": boxes * SIDE, "labels": torch.ones(len(boxes), dtype=torch.int64)} for boxes in batch["boxes"]
        ]
        return sum(model(grey_to_colour(batch["images"]), targets).values())

    return Recipe(model, optimizer, loss, lambda step, steps: learning_rate_factor(step, steps, epoch))


def learning_rate_factor(step: int, steps: int, epoch: int) -> float:
    """The learning rate of a step as a fraction of the highest. steps: of all; epoch: of an epoch."""
    warm_up = min(WARM_UP, max(1, epoch - 1), max(1, steps // 10))
    warm = WARM_UP_FACTOR + (1 - WARM_UP_FACTOR) * min(1.0, step / warm_up)
    return warm * GAMMA ** sum(step / steps >= share for share in STEPS)


def grey_to_colour(images: Tensor) -> list[Tensor]:
    """(B, 1, S, S) uint8 -> B tensors (3, S, S) float32 in [0, 1], as the model takes them."""
    return [image.expand(3, -1, -1) / 255 for image in images]


@torch.inference_mode()
def predict(model: nn.Module, samples: ImageDataset) -> pd.DataFrame:
    """The detections of a data set, a table as in predictor.py."""
    names, rows = [], [np.empty((0, 5))]
    for batch in loader(samples, 8):
        for name, found in zip(batch["image_ids"], model(grey_to_colour(batch["images"])), strict=True):
            rows.append(np.hstack([found["scores"].numpy()[:, None], found["boxes"].numpy() / SIDE]))
            names += [name] * len(rows[-1])
    table = pd.DataFrame(np.concatenate(rows), columns=DETECTION_COLUMNS[2:])
    table.insert(0, "model", "torchvision")
    table.insert(0, "image_id", names)
    return table
