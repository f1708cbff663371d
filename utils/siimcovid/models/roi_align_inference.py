"""Pooling of boxes from a feature pyramid on the CPU: the values of torchvision's MultiScaleRoIAlign, about five times
as fast.

An output cell is a weighted sum of 16 places of a map (four samples, four neighbours each), which torch's embedding bag
computes for all channels at once and on all cores; torchvision's own kernel does one channel after the other on one.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper


def pool(pooler: MultiScaleRoIAlign, maps: Sequence[Tensor], proposals: Sequence[Tensor], side: int) -> Tensor:
    """What `pooler` gives for square images, up to rounding.

    Args:
        pooler: its output is square; it must have a sampling ratio above 0.
        maps: each of the pyramid's maps that it pools from, (B, h, w, C): channels last, finest first.
        proposals: of each image (n, 4), xyxy in pixels of the input.
        side: of the input in pixels.

    Returns:
        (boxes of all images, C, cells, cells).
    """
    boxes = torch.cat(list(proposals))
    counts = torch.tensor([len(part) for part in proposals])
    scales = [2.0 ** round(math.log2(one.shape[1] / side)) for one in maps]
    finest, coarsest = (int(-math.log2(scale)) for scale in (scales[0], scales[-1]))
    mapper = initLevelMapper(finest, coarsest, pooler.canonical_scale, pooler.canonical_level)
    level = mapper(list(proposals))  # (n,)
    sides = torch.tensor([one.shape[1] for one in maps])
    places = torch.tensor([one.shape[0] * one.shape[1] ** 2 for one in maps])
    width = sides[level]
    image = torch.repeat_interleave(torch.arange(len(counts)), counts)
    first = (places.cumsum(0) - places)[level] + image * width**2  # the row of an image's first place in `table`
    table = torch.cat([one.reshape(-1, one.shape[-1]) for one in maps])
    cells, samples = pooler.output_size[0], pooler.sampling_ratio
    scaled = boxes * torch.tensor(scales)[level, None]
    (x, x_weight), (y, y_weight) = (_taps(scaled[:, [k, k + 2]], width, cells, samples) for k in (0, 1))
    # (n, cells down, cells across, taps down, taps across)
    rows = (first[:, None, None] + y * width[:, None, None])[:, :, None, :, None] + x[:, None, :, None, :]
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    taps = (2 * samples) ** 2
    pooled = functional.embedding_bag(rows.view(-1, taps), table, mode="sum", per_sample_weights=weights.view(-1, taps))
    return pooled.view(len(boxes), cells, cells, table.shape[1]).permute(0, 3, 1, 2)


def _taps(ends: Tensor, width: Tensor, cells: int, samples: int) -> tuple[Tensor, Tensor]:
    """Which places of a map's axis make a cell, and their weights: two (n, cells, 2 x samples).

    ends: (n, 2), where the boxes begin and end on the axis, in places. width: (n,), places of the axis. As in
    torchvision's roi_align with aligned=False: a box is at least one place wide, and what lies more than a place
    outside counts nothing.
    """
    last = (width - 1)[:, None]
    step = (ends[:, 1:] - ends[:, :1]).clamp(min=1) / cells
    at = ends[:, :1] + step * ((torch.arange(cells * samples) + 0.5) / samples)  # (n, cells x samples)
    inside = (at >= -1) & (at <= width[:, None])
    at = at.clamp(min=0).minimum(last)
    low = at.floor().long()
    high, share = (low + 1).minimum(last), at - low
    weights = torch.stack([1 - share, share], dim=2) * inside[..., None] / samples
    shape = len(ends), cells, 2 * samples
    return torch.stack([low, high], dim=2).view(shape), weights.view(shape)
