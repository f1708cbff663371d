"""Box pooling by matrix products: torchvision's numbers and gradients, within rounding."""

from collections import OrderedDict

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from siimcovid.models.roi_align_training import LARGEST_MAP, BoxPooling

#: xyxy in pixels of an image of 128: ordinary ones, thin and tiny ones, one across the border, the whole image.
BOXES = [
    torch.tensor(
        [[10.0, 20.0, 60.0, 90.0], [3.3, 4.4, 5.5, 100.1], [0.0, 0.0, 128.0, 128.0], [64.0, 64.0, 64.5, 64.5]]
    ),
    torch.tensor([[-30.0, -20.0, 40.0, 50.0], [100.0, 90.0, 150.0, 170.0]]),
    torch.empty(0, 4),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pools_as_torchvision(layout):
    torch.manual_seed(0)
    maps = [torch.randn(3, 6, side, side).contiguous(memory_format=layout) for side in (16, 8, 4)]
    found = []
    for kind in (MultiScaleRoIAlign, BoxPooling):
        given = OrderedDict((str(k), m.clone().requires_grad_()) for k, m in enumerate(maps))
        pooled = kind(list(given), output_size=7, sampling_ratio=2)(given, BOXES, [(128, 128)] * 3)
        (pooled * torch.linspace(-1, 1, pooled.numel()).view_as(pooled)).sum().backward()
        found.append([pooled, *(m.grad for m in given.values())])
    for expected, ours in zip(*found, strict=True):
        assert torch.allclose(expected, ours, atol=1e-5)


@pytest.mark.parametrize(("side", "ours"), [(LARGEST_MAP, True), (2 * LARGEST_MAP, False)])
def test_large_maps_are_torchvisions(side, ours, monkeypatch):
    """Products take in all of a map; so does memory."""
    monkeypatch.setattr(MultiScaleRoIAlign, "forward", lambda self, *given: "torchvision's")
    pooling = BoxPooling(["0"], output_size=7, sampling_ratio=2)
    pooling.scales, pooling.map_levels = [0.5], lambda boxes: torch.zeros(1, dtype=torch.int64)
    given = {"0": torch.zeros(1, 2, side, side, requires_grad=True)}
    found = pooling(given, [BOXES[0][:1]], [(2 * side, 2 * side)])
    assert isinstance(found, torch.Tensor) == ours
