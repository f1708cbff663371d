"""Is an image unlike what the study model learnt from: a CT slice, a hand, a photograph, an all-black image?

A model answers for whatever it is shown. How far an image lies from the training images is told by the study model's
own maps: the mean cosine distance to the nearest of a sample of them (a deep nearest neighbour, Sun et al. 2022,
arXiv:2204.06507). An image is described by its pooled features, which say what it shows, and by the map at stride 16
averaged over a coarse grid, which says where: docs/training.md has what was measured.

`fit` measures the training images once, when training is over; its numbers are tensors of the study model's checkpoint,
so they go wherever that goes, and are verified with it.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

#: Place among a backbone's maps of the one that is averaged over a grid: stride 16.
GRID_STAGE = 3

#: The grid: bands from top to bottom, and columns. Left and right count as one, so an image and its mirror image agree.
BANDS, COLUMNS = 3, 2

#: Nearest training images whose mean distance counts.
NEAREST = 10

#: Share of the training images, judged by others, that lie beyond the limit.
BEYOND = 0.003

#: The limit lies so much beyond it: new patients and scanners are farther off than images of the training set from each
#: other. Of 35 files that are no chest radiographs the nearest lay 16 % beyond (docs/training.md).
MARGIN = 1.05

#: Parts that the training images are cut into, to judge each by the others.
PARTS = 5

#: Distances below it count as it, so that its logarithm is finite.
LEAST = 1e-6

#: What is said of an image whose output is above UNLIKE.
UNLIKE = 0.5
SENTENCE = "It is unlike the images that the study model learnt from: perhaps no frontal chest radiograph."


class UnlikeTraining(nn.Module):
    """A backbone's maps -> (B,) logarithm of the distance over its limit: above 0 an image is unlike training.

    Before `fit` it is far below 0 for every image.

    Args:
        channels: of each of the backbone's maps.
        count: training images that are kept as references, at most.
    """

    def __init__(self, channels: list[int], count: int):
        super().__init__()
        width = channels[-1] + channels[GRID_STAGE] * BANDS * COLUMNS
        # of length 1, in half precision for a small file; rows of 0 where there were fewer images
        self.register_buffer("references", torch.zeros((count, width), dtype=torch.float16))
        self.register_buffer("limit", torch.full((), 60.0))  # logarithm of the distance

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.beyond_limit(describe(maps))

    def beyond_limit(self, descriptions: Tensor) -> Tensor:
        """(B, D) of `describe` -> (B,) logarithm of the distance over its limit."""
        return self.distance(descriptions).clamp(min=LEAST).log() - self.limit

    def distance(self, descriptions: Tensor) -> Tensor:
        """(B, D) of `describe` -> (B,) mean cosine distance to the NEAREST references, 0 to 2."""
        with torch.autocast(descriptions.device.type, enabled=False):  # half precision is coarser than the distances
            likeness = descriptions @ self.references.float().T
            return 1 - likeness.topk(min(NEAREST, len(self.references)), dim=1).values.mean(dim=1)

    def fit(self, descriptions: Tensor) -> None:
        """Take over (n, D) descriptions of training images, n from 2 to `count`.

        The limit is MARGIN times the distance that BEYOND of them exceed where each is judged by the others, in PARTS:
        its own nearest neighbour is an image itself.
        """
        n, judged = len(descriptions), []
        descriptions = descriptions.to(self.limit)
        for part in np.array_split(np.random.default_rng(0).permutation(n), min(PARTS, n)):
            self._keep(descriptions[np.delete(np.arange(n), part)])
            judged.append(self.distance(descriptions[part]).cpu().numpy())
        self._keep(descriptions)
        limit = np.quantile(np.concatenate(judged), 1 - BEYOND, method="higher")
        self.limit.fill_(float(np.log(max(MARGIN * limit, LEAST))))

    def _keep(self, descriptions: Tensor) -> None:
        self.references.zero_()[: len(descriptions)] = descriptions.half()


def describe(maps: list[Tensor]) -> Tensor:
    """A backbone's maps [(B, C, h, w)] -> (B, D) float32 of length 1, half of it (squared) from each of two parts.

    The pooled features enter by their square roots: else the few strong channels, which tell the study labels apart,
    are all that counts.
    """
    pooled, fine = maps[-1].float().mean(dim=(2, 3)), maps[GRID_STAGE].float()
    with torch.autocast(fine.device.type, enabled=False):
        grid = bands(fine.shape[-2]).to(fine) @ fine @ mirrored_columns(fine.shape[-1]).to(fine).T
    parts = pooled.sign() * pooled.abs().sqrt(), grid.flatten(1)
    return torch.cat([functional.normalize(part, dim=1) for part in parts], dim=1) / len(parts) ** 0.5


def bands(side: int) -> Tensor:
    """(BANDS, side) weights of the mean over each band of `side` rows, adding up to 1; bands may share a row."""
    weights = np.zeros((BANDS, side), np.float32)
    for band in range(BANDS):
        weights[band, band * side // BANDS : -(-(band + 1) * side // BANDS)] = 1
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))


def mirrored_columns(side: int) -> Tensor:
    """(COLUMNS, side) weights of the mean over the middle, and over the left and right together."""
    left, middle, right = bands(side)
    return torch.stack([middle, (left + right) / 2])
