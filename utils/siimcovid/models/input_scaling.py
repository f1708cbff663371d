"""A network that learnt from images in another scale takes ours: the difference goes into its first convolution.

Our images are grey, (B, 1, S, S) uint8, and `backbone.normalise` makes three channels of them, x_j = (u - m_j) / s_j
with u = grey / 255 and ImageNet's m and s. A network's own channel c is (u - mean_c) / std_c, and some have one channel
alone. Each own channel is a sum of the three, since two numbers (the scale and the shift of u) are to be met by three.
Where a convolution pads with zeros, zeros of ours stay zeros of theirs. So a convolution with other weights computes on
our images what the published one computes on its own, and nothing else has to know where a network comes from.
"""

import torch
from torch import Tensor, nn

from siimcovid.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone


def own_channels(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(C, 3) float64: own channel c = sum over j of [c, j] x_j for every grey image; of least squares, so unique."""
    deviation = torch.tensor(IMAGENET_STD, dtype=torch.float64)
    ours = torch.stack([1 / deviation, torch.tensor(IMAGENET_MEAN, dtype=torch.float64) / deviation])  # (2, 3)
    scale, shift = torch.tensor(std, dtype=torch.float64), torch.tensor(mean, dtype=torch.float64)
    theirs = torch.stack([1 / scale, shift / scale])  # (2, C): factor of u, and what is subtracted
    return (torch.linalg.pinv(ours) @ theirs).T


def rescaled(weight: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The weight (O, C, h, w) of a first convolution on own channels -> (O, 3, h, w) on normalised grey images."""
    return torch.einsum("ochw,cj->ojhw", weight.double(), own_channels(mean, std)).to(weight.dtype)


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and module of the first convolution among a network's modules: the one that takes the images."""
    return next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


@torch.no_grad()
def to_unit_variance(backbone: Backbone) -> None:
    """Divide the first convolution's outputs by the deviations that the batch norm behind it knows, which then are one.

    The maps stay the same. Weights for images in [-1024, 1024] would else be some hundred times as large as others are
    here, too large for half precision and for an optimiser's steps.
    """
    stem = list(backbone.stages[0].children())
    convolution, norm = stem[0], stem[1]
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    convolution.weight.copy_(convolution.weight.double() / deviation.view(-1, 1, 1, 1))
    norm.running_mean.copy_(norm.running_mean.double() / deviation)
    norm.running_var.fill_(1 - norm.eps)
