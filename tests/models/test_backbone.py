"""Backbones: torchvision's classifiers cut into stages by a dry pass, normalisation frozen and folded."""

import re
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from siimcovid.core.errors import InputError
from siimcovid.core.presets import DEMO
from siimcovid.models.backbone import Backbone, build_backbone, for_inference, freeze_batch_norm
from siimcovid.models.checkpoints import build_model

#: Architecture -> channels at strides 2 to 32, as in the papers and in torchvision's own definitions.
CHANNELS = {
    "resnet18": [64, 64, 128, 256, 512],
    "resnext101_32x8d": [64, 256, 512, 1024, 2048],
    "efficientnet_v2_s": [24, 48, 64, 160, 1280],
    "efficientnet_v2_m": [24, 48, 80, 176, 1280],
    "convnext_tiny": [0, 96, 192, 384, 768],
    "densenet121": [64, 128, 256, 512, 1024],  # behind the transitions, which halve the channels
    "mobilenet_v3_large": [16, 24, 40, 112, 960],
    "mobilenet_v3_small": [16, 16, 24, 48, 576],
    "mnasnet0_5": [8, 16, 24, 48, 1280],
    "regnet_y_400mf": [32, 48, 104, 208, 440],
    "shufflenet_v2_x0_5": [24, 24, 48, 96, 1024],
    "vgg11_bn": [128, 256, 512, 512, 512],
}
HEAVY = {"resnext101_32x8d", "efficientnet_v2_m", "vgg11_bn", "mobilenet_v3_large", "mnasnet0_5"}
ARCHITECTURES = [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in CHANNELS]


def shaken(network: nn.Module) -> nn.Module:
    """A network whose norms do something: statistics, scale and shift of each at random."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network


def own_features(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What torchvision's network pools: the input of its pooling, wherever its forward pass does that."""
    if isinstance(network, torchvision.models.DenseNet):
        return network.features(images).relu()
    if hasattr(network, "avgpool"):
        seen = []
        hook = network.avgpool.register_forward_hook(lambda module, given, output: seen.append(given[0]))
        network(images)
        hook.remove()
        return seen[0]
    if isinstance(network, torchvision.models.ShuffleNetV2):
        return nn.Sequential(*list(network.children())[:-1])(images)
    return getattr(network, "layers", None)(images) if hasattr(network, "layers") else network.features(images)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_classifier_of_torchvision_becomes_five_stages(architecture):
    """Shapes of the maps, the last one torchvision's own; norms frozen and folded change nothing."""
    torch.manual_seed(0)
    network = shaken(torchvision.models.get_model(architecture, weights=None)).eval()
    backbone = build_backbone(architecture, network.state_dict()).eval()
    assert backbone.channels == CHANNELS[architecture]
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = [m.clone() for m in backbone(images)]
        assert [tuple(m.shape[1:]) for m in maps] == [
            (channels, 64 // 2**k, 96 // 2**k) for k, channels in enumerate(backbone.channels, start=1)
        ]
        expected = own_features(network, images)
        assert torch.allclose(maps[-1], expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))
        assert torch.allclose(backbone.pooled(images), expected.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
        folded = for_inference(backbone)
        frozen = freeze_batch_norm(build_backbone(architecture, network.state_dict())).eval()
        assert not [m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]
        for variant in (folded, frozen, for_inference(frozen)):
            for ours, theirs in zip(maps, variant(images), strict=True):
                assert ours.shape == theirs.shape
                assert not ours.numel() or (ours - theirs).abs().max() < 1e-4 * ours.abs().max().clamp(min=1)
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    assert bool(norms) == (architecture == "densenet121")  # its norms before convolutions stay


def test_the_dry_pass_leaves_no_trace():
    """Neither running statistics nor the random numbers drawn depend on it; a backbone is built in training mode."""
    torch.manual_seed(3)
    backbone = build_backbone("resnet18")
    after = torch.rand(1)
    torch.manual_seed(3)
    network = torchvision.models.resnet18(weights=None)
    assert torch.equal(torch.rand(1), after)
    assert backbone.training
    assert all(module.training for module in backbone.modules())
    assert not [module for module in backbone.modules() if module._forward_hooks]
    expected = [tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")]
    assert all(torch.equal(a, b) for a, b in zip(backbone.state_dict().values(), expected, strict=True))


def test_names_in_checkpoints_are_as_they_were():
    """Of the architectures that trained checkpoints have; the first names of each stage and their number."""
    firsts = {
        "resnext101_32x8d": [
            "0.0.weight",
            "1.1.0.conv1.weight",
            "2.0.conv1.weight",
            "3.0.conv1.weight",
            "4.0.conv1.weight",
        ],
        "efficientnet_lite0": [
            "0.0.weight",
            *(f"{k}.0._expand_conv.weight" for k in (1, 2, 3, 4)),
        ],
    }
    for architecture, expected in firsts.items():
        names = list(build_backbone(architecture).state_dict())
        found = [next(name for name in names if name.startswith(f"stages.{k}.")) for k in range(5)]
        assert found == [f"stages.{name}" for name in expected]
        assert len(names) == {"resnext101_32x8d": 624, "efficientnet_lite0": 294}[architecture]


@pytest.mark.parametrize("architecture", ["vit_b_32", "inception_v3", "alexnet", "squeezenet1_1", "swin_t", "maxvit_t"])
def test_a_network_without_such_maps_is_named(architecture):
    with pytest.raises(InputError, match=f"^{architecture} cannot be a backbone: .* such as resnet50$"):
        build_backbone(architecture)


def test_an_unknown_network_is_named():
    with pytest.raises(InputError, match=r"unknown backbone 'resnet51'; choose efficientnet_lite0, .* torchvision"):
        build_backbone("resnet51")


@pytest.mark.parametrize("stage", ["backbone", "rcnn", "yolo", "retinanet", "study"])
@pytest.mark.parametrize("architecture", ["convnext_tiny", "densenet121"])
def test_every_stage_trains_on_it(architecture, stage):
    """A network without a map at stride 2, and one with norms before its convolutions: losses, and boxes predicted."""
    torch.manual_seed(0)
    config = replace(getattr(DEMO, stage), backbone=architecture)
    if stage == "study":
        config = replace(config, frozen=False, mask=0.5)
    model = build_model(stage, config)
    batch = {
        "images": torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8),
        "boxes": [torch.tensor([[0.1, 0.2, 0.5, 0.7]]), torch.zeros(0, 4)],
        "study_labels": torch.tensor([1, 0]),
        "findings": torch.zeros(2, 15),
    }
    sum(model.train()(batch).values()).backward()
    weights = next(p for p in model.modules() if isinstance(p, Backbone)).stages[-1]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in weights.parameters())
    assert len(model.eval().predict(batch["images"])) == 2


def test_a_pyramid_from_a_stride_that_is_not_there_is_refused():
    config = replace(DEMO.rcnn, backbone="convnext_tiny", first_stage=0)
    with pytest.raises(InputError, match=re.escape("convnext_tiny has no map at stride 2; set first_stage to 1")):
        build_model("rcnn", config)
