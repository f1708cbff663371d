"""The order in which an epoch goes through a data set."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Tickets of one epoch: epoch * count + image number, in an order that depends on (seed, epoch) alone.

    Args:
        count: number of images, and of tickets in an epoch.
        seed: of the order.
        sampling_weights: one per image, proportional to how often it is drawn, with replacement; None draws each
            image once.

    Set `epoch` before each epoch; it starts at 0.
    """

    def __init__(self, count: int, seed: int, sampling_weights: Sequence[float] | None = None):
        self.count, self.seed, self.epoch = count, seed, 0
        self.sampling_weights = (
            None if sampling_weights is None else np.asarray(sampling_weights, float) / np.sum(sampling_weights)
        )

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.sampling_weights is None:
            order = rng.permutation(self.count)
        else:
            order = rng.choice(self.count, self.count, p=self.sampling_weights)
        return iter((self.epoch * self.count + order).tolist())
