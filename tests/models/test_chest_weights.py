"""Weights of networks with another input than ours, in files of the structure that their makers publish."""

import sys
import types
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torchvision.models import densenet121, resnet50

from siimcovid.core.errors import InputError
from siimcovid.core.presets import DEMO
from siimcovid.models import checkpoints, initial_weights, input_scaling, published_weights, weights_manifest
from siimcovid.models.backbone import IMAGENET_MEAN, IMAGENET_STD, build_backbone, normalise
from siimcovid.models.weights_catalogue import XRAYVISION_MEAN, XRAYVISION_STD


def grey(batch: int = 2, side: int = 64) -> torch.Tensor:
    """(batch, 1, side, side) uint8 with all values, noise over a slope."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 60, (batch, 1, side, side), generator=generator)
    return (torch.linspace(0, 195, side).view(1, 1, 1, side) + noise).to(torch.uint8)


def learnt(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """A random network whose first norm knows the images in its own scale, as training leaves it."""
    convolution = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.8, 1.2)
        nn.init.uniform_(norm.weight, 0.8, 1.2)
    with torch.no_grad():
        seen = convolution(images)
    norms[0].running_mean.copy_(seen.mean(dim=(0, 2, 3)))
    norms[0].running_var.copy_(seen.var(dim=(0, 2, 3)))
    return network.eval()


class DenseNet(nn.Module):
    """Of the structure of torchxrayvision's class: a DenseNet-121 for one channel, `features` and `classifier`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        network = densenet121(num_classes=18)
        self.features, self.classifier = network.features, network.classifier
        self.features.conv0 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features2(images)

    def features2(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, S, S) in [-1024, 1024] -> (B, 1024)."""
        return functional.relu(self.features(images)).mean(dim=(2, 3))


def own_scale(images: torch.Tensor) -> torch.Tensor:
    """torchxrayvision's `normalize(image, 255)`: [0, 255] -> [-1024, 1024]."""
    return (2 * (images.float() / 255) - 1.0) * 1024


@pytest.fixture(scope="module")
def published() -> DenseNet:
    network = DenseNet()
    return learnt(network, own_scale(grey(4)))


def save_whole(network: nn.Module, path, monkeypatch, zipped: bool) -> None:
    """Pickle a whole network under a module that is not importable, as torch before 1.6 did or as later ones do."""
    module = types.ModuleType("torchxrayvision.models")
    module.DenseNet = DenseNet
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchxrayvision", types.ModuleType("torchxrayvision"))
        patch.setitem(sys.modules, "torchxrayvision.models", module)
        patch.setattr(DenseNet, "__module__", "torchxrayvision.models")
        torch.save(network, path, _use_new_zipfile_serialization=zipped)


def assert_same_features(backbone: nn.Module, theirs: nn.Module) -> None:
    """Our Backbone on normalised images = their class on its own scale, pooled.

    In double precision, where only the rounding of the rescaled weights differs; in single precision each is off
    by its own rounding.
    """
    images = grey()
    level = images.double() / 255
    channels = torch.cat([(level - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], dim=1)
    with torch.no_grad():
        single = theirs(own_scale(images)), backbone.pooled(normalise(images))
        double = theirs.double()((2 * level - 1) * 1024), backbone.double().pooled(channels)
        theirs.float()
        backbone.float()
    assert double[0].std() > 1e-2  # features that say something
    size = max(1.0, float(double[0].max()))
    assert torch.allclose(*double, rtol=0, atol=1e-5 * size), (double[0] - double[1]).abs().max() / size
    assert torch.allclose(*single, rtol=0, atol=1e-5 * size), (single[0] - single[1]).abs().max() / size


@pytest.mark.parametrize("form", ["whole, old", "whole, zip", "state dict"])
def test_xrayvisions_densenet_computes_what_its_own_class_does(form, published, tmp_path, monkeypatch):
    file = tmp_path / "nih-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
    if form == "state dict":
        torch.save({**published.state_dict(), "op_threshs": torch.rand(18)}, file)
    else:
        save_whole(published, file, monkeypatch, zipped=form.endswith("zip"))
    path = published_weights.import_weights("xrv_densenet121_nih", file, tmp_path / "weights")
    entry = weights_manifest.read_manifest(path.parent)["densenet121.safetensors"]
    assert (path.name, entry["architecture"], entry["weights"]) == (
        "densenet121.safetensors",
        "densenet121",
        "xrv_densenet121_nih",
    )
    assert len(entry["published_sha256"]) == 64
    assert file.name in entry["source"]
    backbone = build_backbone("densenet121").eval()
    backbone.load_state_dict(checkpoints.read_tensors(path)[0])
    assert_same_features(backbone, published)
    assert 0.001 < backbone.stages[0][0].weight.abs().mean() < 1  # of the size of other networks' first weights


def test_a_study_model_starts_from_them(published, tmp_path):
    torch.save(published.state_dict(), tmp_path / "best.pt")
    published_weights.import_weights("xrv_densenet121_all", tmp_path / "best.pt", tmp_path / "weights")
    config = replace(DEMO.study, backbone="densenet121")
    model = checkpoints.build_model("study", config)
    origin = initial_weights.start("study", config, model, tmp_path / "weights")
    assert origin["left"] == ["head.0.bias", "head.0.weight", "head.3.bias", "head.3.weight"]
    assert_same_features(model.eval().backbone, published)


def test_xrayvisions_resnet(tmp_path):
    torch.manual_seed(0)
    network = resnet50(num_classes=18)
    network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    network = learnt(network, own_scale(grey(4)))
    torch.save(network.state_dict(), tmp_path / "state.pt")
    path = published_weights.import_weights("xrv_resnet50_all", tmp_path / "state.pt", tmp_path / "weights")
    backbone = build_backbone("resnet50").eval()
    backbone.load_state_dict(checkpoints.read_tensors(path)[0])
    network.fc = nn.Identity()
    assert_same_features(backbone, network)


def test_chexnet_of_old_names_in_a_data_parallel_wrapper(tmp_path):
    """`module.densenet121.features.….norm.1.weight`, no counters of batches, a classifier of its own, an optimiser."""
    torch.manual_seed(0)
    network = learnt(densenet121(), normalise(grey(4)))
    tensors = OrderedDict()
    for name, tensor in network.features.state_dict().items():
        for part in ("norm", "conv"):
            for number in "12":
                if "denselayer" in name:
                    name = name.replace(f"{part}{number}", f"{part}.{number}")
        if "num_batches_tracked" not in name:
            tensors[f"module.densenet121.features.{name}"] = tensor
    tensors["module.densenet121.classifier.0.weight"] = torch.rand(14, 1024)
    tensors["module.densenet121.classifier.0.bias"] = torch.rand(14)
    checkpoint = {"epoch": 7, "best_loss": 0.2, "state_dict": tensors, "optimizer": {"state": {}, "param_groups": [{}]}}
    torch.save(checkpoint, tmp_path / "model.pth.tar", _use_new_zipfile_serialization=False)
    path = published_weights.import_weights("chexnet_densenet121", tmp_path / "model.pth.tar", tmp_path / "weights")
    backbone = build_backbone("densenet121").eval()
    backbone.load_state_dict(checkpoints.read_tensors(path)[0])
    images = normalise(grey())
    with torch.no_grad():
        expected = network.features(images).relu().mean(dim=(2, 3))
        size = max(1.0, float(expected.max()))
        assert torch.allclose(backbone.pooled(images), expected, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize(
    ("mean", "std"),
    [(XRAYVISION_MEAN, XRAYVISION_STD), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), (IMAGENET_MEAN, IMAGENET_STD)],
)
def test_a_first_convolution_in_another_scale(mean, std):
    """(grey / 255 - mean) / std through the published weight = our normalised image through the rescaled one."""
    torch.manual_seed(0)
    weight, images = torch.randn(5, len(mean), 3, 3, dtype=torch.float64), grey()
    level = images.double() / 255
    own = torch.cat([(level - m) / s for m, s in zip(mean, std, strict=True)], dim=1)
    ours = torch.cat([(level - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], dim=1)
    expected = functional.conv2d(own, weight, stride=2, padding=1)
    found = functional.conv2d(ours, input_scaling.rescaled(weight, mean, std), stride=2, padding=1)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_a_first_convolution_that_does_not_fit_is_refused(tmp_path):
    """At import: one channel for three, three for one. At the start of a training: a file of another network."""
    one, three = DenseNet().state_dict(), densenet121().state_dict()
    torch.save(one, tmp_path / "one.pt")
    torch.save(three, tmp_path / "three.pt")
    for name, file, shapes in (
        ("densenet121", "one.pt", "64x1x7x7, not 64x3x7x7"),
        ("chexnet_densenet121", "one.pt", "64x1x7x7, not 64x3x7x7"),
        ("xrv_densenet121_all", "three.pt", "64x3x7x7, not 64x1x7x7"),
    ):
        with pytest.raises(InputError, match=rf"{file} does not hold .*its first convolution is {shapes}"):
            published_weights.import_weights(name, tmp_path / file, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("what", ["of one channel", "missing"])
def test_a_training_does_not_start_without_its_first_convolution(what, tmp_path):
    config = replace(DEMO.study, backbone="resnet18")
    model = checkpoints.build_model("study", config)
    tensors = {name: tensor.clone().contiguous() for name, tensor in model.backbone.state_dict().items()}
    first = tensors.pop("stages.0.0.weight")
    if what != "missing":
        tensors["stages.0.0.weight"] = first[:, :1].contiguous()
    save_file(tensors, tmp_path / "resnet18.safetensors")
    weights_manifest.register(tmp_path / "resnet18.safetensors", stage="backbone", architecture="resnet18")
    with pytest.raises(
        InputError, match=r"resnet18\.safetensors does not fit: its first convolution is (64x1|missing)"
    ):
        initial_weights.start("study", config, model, tmp_path)


def test_other_weights_of_the_same_architecture_are_not_replaced(published, tmp_path):
    torch.save(published.state_dict(), tmp_path / "best.pt")
    torch.save(densenet121().state_dict(), tmp_path / "imagenet.pth")
    for _ in range(2):  # the same again is no harm
        path = published_weights.import_weights("xrv_densenet121_all", tmp_path / "best.pt", tmp_path / "weights")
    before = path.read_bytes()
    with pytest.raises(
        InputError, match=r"densenet121\.safetensors holds the weights xrv_densenet121_all; import dens"
    ):
        published_weights.import_weights("densenet121", tmp_path / "imagenet.pth", tmp_path / "weights")
    assert path.read_bytes() == before
