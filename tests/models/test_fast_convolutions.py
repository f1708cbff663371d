"""Fast convolutions compute what torch's do, forwards and backwards, and keep names, parameters and the layout."""

import copy

import pytest
import torch
from torch import nn

from siimcovid.core.presets import DEMO
from siimcovid.models import checkpoints
from siimcovid.models.backbone import build_backbone, for_inference, freeze_batch_norm
from siimcovid.models.fast_convolutions import FastConv2d, with_fast_convolutions


def shaken(model: nn.Module) -> nn.Module:
    """The model with norms that are not the identity."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.ndim == 1:
            low = 0.5 if name.endswith(("running_var", "weight")) else -0.5
            tensor.data.uniform_(low, low + 1, generator=generator)
    return model


def output_and_gradients(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output, and the gradient of a weighted sum of it with respect to the images and every parameter."""
    images = images.clone().requires_grad_()
    model.zero_grad()
    output = model(images)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "output": output.detach(), "images": images.grad}


@pytest.mark.parametrize("normed", [True, False], ids=["frozen norm", "no norm"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups", "bias"),
    [
        (1, 1, 0, 1, False),
        (1, 1, 0, 1, True),
        (1, 2, 0, 1, False),
        (3, 1, 1, 1, True),
        (3, 2, 1, 8, False),
        (5, 1, 2, 8, False),
        (5, 2, 2, 8, True),
        (7, 1, 3, 8, True),
        (7, 2, 0, 8, False),
        ((3, 5), 1, (1, 2), 8, False),
    ],
)
def test_outputs_and_gradients_are_torchs(kernel, stride, padding, groups, bias, normed):
    """With both layouts of the images in memory, within 1e-5 of the largest number."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 8, kernel, stride, padding, groups=groups, bias=bias)
    plain = nn.Sequential(convolution, *([nn.BatchNorm2d(8)] if normed else []))
    plain = freeze_batch_norm(shaken(plain))
    fast = with_fast_convolutions(copy.deepcopy(plain))
    assert isinstance(fast[0], FastConv2d)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = torch.randn(2, 8, 12, 9).contiguous(memory_format=layout)
        expected, found = (output_and_gradients(model, images) for model in (plain, fast))
        assert list(expected) == list(found)
        for name, tensor in expected.items():
            assert (tensor - found[name]).abs().max() <= 1e-5 * max(1, tensor.abs().max()), name


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained norms"])
def test_a_whole_backbone_computes_the_same(frozen):
    """EfficientNet pads its maps itself, with stride 2 on one side only; its state dict keeps names and order."""
    torch.manual_seed(0)
    plain = build_backbone("efficientnet_lite0").eval()
    plain = freeze_batch_norm(plain) if frozen else plain
    fast = with_fast_convolutions(copy.deepcopy(plain))
    assert list(fast.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for before, after in zip(plain(images), fast(images), strict=True):
        assert torch.allclose(before, after, atol=1e-4 * float(before.abs().max()))


def test_frozen_norms_stay_buffers_and_a_loaded_state_counts():
    """The fold follows weights and statistics that are loaded later, in a copy as well."""
    torch.manual_seed(0)
    plain = freeze_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    fast = copy.deepcopy(with_fast_convolutions(copy.deepcopy(plain)))
    assert {name for name, _ in fast.named_parameters()} == {"0.weight", "0.bias"}
    other = shaken(copy.deepcopy(plain))
    fast.load_state_dict(other.state_dict())
    images = torch.randn(1, 3, 8, 8)
    assert torch.allclose(fast(images), other(images), atol=1e-5)
    assert torch.allclose(for_inference(fast)(images), other(images), atol=1e-5)


@pytest.mark.parametrize("stage", ["rcnn", "yolo", "study"])
def test_every_convolution_of_a_stage_is_fast(stage):
    model = checkpoints.build_model(stage, getattr(DEMO, stage))
    assert not [name for name, module in model.named_modules() if type(module) is nn.Conv2d]
