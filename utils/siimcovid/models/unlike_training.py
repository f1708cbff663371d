"""Is an image unlike what the study model learnt from: a CT slice, a hand, a photograph, an all-black image?

A model answers for whatever it is shown. Its pooled features say how far an image lies from the training images:
the Mahalanobis distance (Lee et al. 2018, arXiv:1807.03888) by the covariance of their features, shrunk towards a ball
(Ledoit and Wolf 2004) since there may be fewer images than features.

`fit` measures the training images once, when training is over; its numbers are tensors of the study model's checkpoint,
so they go wherever that goes, and are verified with it.
"""

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor, nn

#: Directions of the features in which the distance has a width of its own; the others share one.
DIRECTIONS = 64

#: Share of the training images, judged by the statistics of others, that lie beyond the limit.
BEYOND = 0.003

#: Parts that the training images are cut into, to judge each by the others.
PARTS = 5

#: Squared distances and variances below it count as it, so that nothing is divided by 0.
LEAST = 1e-6

#: What is said of an image whose output is above UNLIKE.
UNLIKE = 0.5
SENTENCE = "It is unlike the images that the study model learnt from: perhaps no frontal chest radiograph."


class UnlikeTraining(nn.Module):
    """(B, C) features -> (B,) logarithm of the squared distance over its limit: above 0 an image is unlike training.

    Before `load` it is far below 0 for every image.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("directions", torch.zeros(DIRECTIONS, channels))  # of length 1, or 0 where there are fewer
        self.register_buffer("weights", torch.zeros(DIRECTIONS))  # of a squared step along each, beside `rest`
        self.register_buffer("rest", torch.ones(()))  # of a squared step along any
        self.register_buffer("limit", torch.full((), 60.0))  # logarithm of the squared distance

    def forward(self, features: Tensor) -> Tensor:
        return self.squared_distance(features).clamp(min=LEAST).log() - self.limit

    def squared_distance(self, features: Tensor) -> Tensor:
        """(B, C) features -> (B,) squared distance from the training images' mean."""
        away = features.float() - self.mean
        along = away @ self.directions.T
        return self.rest * away.square().sum(dim=1) + (along.square() * self.weights).sum(dim=1)

    def fit(self, features: np.ndarray) -> None:
        """Take over the statistics of (n, C) features of training images, n at least 2.

        The limit is the squared distance that BEYOND of them exceed where each is judged by the statistics of the
        others, in PARTS: by its own the model would take every image for more typical than the next.
        """
        n, order = len(features), np.random.default_rng(0).permutation(len(features))
        judged = []
        for part in np.array_split(order, min(PARTS, n)):
            self._describe(np.delete(features, part, axis=0))
            judged.append(self.squared_distance(torch.from_numpy(features[part]).to(self.mean)).cpu().numpy())
        self._describe(features)
        limit = np.quantile(np.concatenate(judged), 1 - BEYOND, method="higher")
        self.limit.fill_(float(np.log(max(limit, LEAST))))

    def _describe(self, features: np.ndarray) -> None:
        """Mean, directions and weights of (n, C) features."""
        n, channels = features.shape
        mean = features.mean(axis=0, dtype=np.float64)
        away = features - mean
        shrinkage, ball = ledoit_wolf_shrinkage(away, assume_centered=True), np.square(away).mean()
        _, lengths, directions = np.linalg.svd(away, full_matrices=False)
        count = min(DIRECTIONS, len(lengths))
        variances = (1 - shrinkage) * np.square(lengths[:count]) / n + shrinkage * ball
        others = (channels * ball - variances.sum()) / (channels - count) if channels > count else variances.min()
        rest = 1 / max(others, LEAST)
        self.mean.copy_(torch.from_numpy(mean))
        self.rest.fill_(rest)
        self.directions.zero_()[:count] = torch.from_numpy(directions[:count])
        self.weights.zero_()[:count] = torch.from_numpy(1 / np.maximum(variances, LEAST) - rest)
