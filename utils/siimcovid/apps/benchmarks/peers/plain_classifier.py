"""A plain fine-tuned study classifier: the backbone of preset `small` from its ImageNet weights, one linear layer,
cross-entropy, AdamW with its default weight decay, a cosine to zero, horizontal flips; nothing else.
"""

import math
import time

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from siimcovid.apps.benchmarks.peers.peer_job import Outcome, PeerJob
from siimcovid.apps.benchmarks.peers.plain_loop import Recipe, train_for
from siimcovid.core.configuration import Augment
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.data.datasets import ImageDataset, loader
from siimcovid.data.image_memory import ImageMemory
from siimcovid.models.backbone import build_backbone, normalise
from siimcovid.models.checkpoints import read_tensors
from siimcovid.models.weights_manifest import verified

ARCHITECTURE = "efficientnet_lite0"
SIDE, BATCH, RATE = 256, 16, 3e-4


class PlainClassifier(nn.Module):
    """(B, 1, S, S) uint8 -> (B, 4) logits in the order of STUDY_LABELS."""

    def __init__(self):
        super().__init__()
        self.backbone = build_backbone(ARCHITECTURE)
        self.head = nn.Linear(self.backbone.channels[-1], len(STUDY_LABELS))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone.pooled(normalise(images)))


def contend(job: PeerJob, images: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, Outcome]:
    """Train for the job's time; returns what it predicts for the test images, and how it went."""
    name = f"{ARCHITECTURE}.safetensors"
    tensors, _ = read_tensors(verified(job.start, name))
    samples = ImageDataset(images, job.cache, SIDE, Augment(hflip=0.5), job.seed)
    trained = train_for(job.seconds, lambda: recipe(tensors), samples, BATCH, job.seed)
    begin = time.monotonic()
    table = predict(trained.model, ImageDataset(test, job.cache, SIDE, memory=ImageMemory(0)), test)
    seconds = time.monotonic() - begin
    return table, Outcome(name, trained.seconds, trained.steps * min(BATCH, len(samples)), trained.steps, seconds)


def recipe(tensors: dict[str, Tensor]) -> Recipe:
    """The model from these weights of its backbone, and all that trains it."""
    model = PlainClassifier()
    model.backbone.load_state_dict(tensors)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

    def loss(batch: dict) -> Tensor:
        return functional.cross_entropy(model(batch["images"]), batch["study_labels"])

    return Recipe(model, optimizer, loss, lambda step, steps: 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.inference_mode()
def predict(model: nn.Module, samples: ImageDataset, images: pd.DataFrame) -> pd.DataFrame:
    """Study probabilities of a data set's images, a table as in predictor.py. images: their rows of the index."""
    rows = [model(batch["images"]).softmax(dim=1) for batch in loader(samples, 16)]
    table = images[["image_id", "study_id"]].reset_index(drop=True)
    return table.join(pd.DataFrame(torch.cat(rows).double().numpy(), columns=list(STUDY_LABELS)))
