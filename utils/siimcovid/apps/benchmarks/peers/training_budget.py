"""How many steps fit into the time, from the speed of the first ones, so that a schedule ends where the time does.

Epochs are cut into parts: a training of .7 or 2.3 epochs has no other end. Every image is still seen as often as any
other.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from siimcovid.data.datasets import ImageDataset, collate
from siimcovid.data.samplers import EpochSampler

#: Steps whose speed is measured, after a first one that is not counted. What they learn is thrown away, and their time
#: is not counted as training.
MEASURED = 8

#: Parts that a training has at least: schedules that move from epoch to epoch need some.
PARTS = 10


class Plan(NamedTuple):
    """A training: `parts` epochs of `steps` steps each."""

    parts: int
    steps: int


def step_seconds(ends: Sequence[float]) -> float:
    """Mean seconds of a step, from the times at which steps ended; the first step is left out."""
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def total_steps(seconds: float, step: float) -> int:
    """Steps that fit into the time, at least one. step: seconds of one."""
    return max(1, round(seconds / step))


def plan(seconds: float, step: float, whole: int) -> Plan:
    """Cut as many steps as fit into the time into equal parts, none of them longer than an epoch.

    seconds: of training. step: seconds of a step. whole: steps of an epoch over all images.
    """
    total = total_steps(seconds, step)
    parts = max(min(PARTS, total), math.ceil(total / whole))
    return Plan(parts, max(1, round(total / parts)))


class ShortEpochs(Dataset):
    """A data set whose epochs are parts of the epochs of another; together they visit every image equally often.

    samples: what is visited. images: of a part. seed: of the order.
    """

    def __init__(self, samples: ImageDataset, images: int, seed: int):
        self.samples, self.images, self.seed = samples, images, seed
        self.order: tuple[int, list[int]] = (-1, [])  # of the epoch of all images that was asked for last

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, ticket: int) -> dict[str, Any]:
        """Sample of a ticket: part * images + number. It is augmented as in an epoch of the part's number."""
        part, every = int(ticket) // self.images, len(self.samples)
        epoch, place = divmod(int(ticket), every)
        if self.order[0] != epoch:
            sampler = EpochSampler(every, self.seed)
            sampler.epoch = epoch
            self.order = epoch, [entry % every for entry in sampler]
        return self.samples[part * every + self.order[1][place]]


def endless_batches(samples: ImageDataset, batch: int, seed: int) -> Iterator[dict[str, Any]]:
    """Batches of epoch after epoch; images that fill no batch are left out, unless there are fewer than a batch."""
    size = min(batch, len(samples))
    sampler = EpochSampler(len(samples), seed)
    for epoch in count():
        sampler.epoch = epoch
        order = list(sampler)
        for first in range(0, len(order) - size + 1, size):
            yield collate([samples[ticket] for ticket in order[first : first + size]])
