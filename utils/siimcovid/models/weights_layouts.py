"""How the tensors of published files become the state dicts of models here: one function for each layout.

A layout takes its entry in the catalogue and the file's tensors; OtherArchitectureError says that they do not fit.
"""

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from siimcovid.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, build_backbone
from siimcovid.models.input_scaling import first_convolution, rescaled, to_unit_variance
from siimcovid.models.lite_backbone import LITE
from siimcovid.models.torchvision_backbone import build_classifier, names_in_backbone
from siimcovid.models.weights_catalogue import Published

#: The layer in torchvision's DenseNet whose parts older files name "norm.1" and the like, and newer ones "norm1".
DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")

#: What others put before the names of a network's tensors: DataParallel, and classes that hold the network.
WRAPPERS = ("module.", "densenet121.", "model.")

#: What stands behind the features in the networks of the layout "findings", and is another's.
HEADS = ("classifier.", "fc.", "op_threshs")


class OtherArchitectureError(ValueError):
    """A file's tensors are not those of the architecture named; the message says how they differ."""


def _classifier_tensors(published: Published, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our Backbone with a whole published classifier, its head of ImageNet's classes included."""
    return _backbone(published, _renamed(tensors)).state_dict()


def _findings_tensors(published: Published, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our Backbone with a network that names findings: its head is another than ImageNet's."""
    features = _renamed(tensors)
    for name in [name for name in features if name.startswith(HEADS)]:
        del features[name]
    whole = _without_values(published.architecture).state_dict()
    features.update({name: torch.zeros(t.shape) for name, t in whole.items() if name.startswith(HEADS)})
    backbone = _backbone(published, features)
    if _is_rescaled(published):
        to_unit_variance(backbone)
    return backbone.state_dict()


def _is_rescaled(published: Published) -> bool:
    """Whether the network takes images in another scale than ours."""
    return (published.mean, published.std) != (IMAGENET_MEAN, IMAGENET_STD)


def _without_values(architecture: str) -> nn.Module:
    """torchvision's network with the shapes of its tensors alone."""
    with torch.device("meta"):
        return build_classifier(architecture)


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of torchvision's networks, without wrappers and in today's spelling."""
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = OrderedDict((name.removeprefix(wrapper), tensor) for name, tensor in tensors.items())
    renamed = OrderedDict((DENSE_LAYER.sub(r"\1\2", name), tensor) for name, tensor in tensors.items())
    if hasattr(tensors, "_metadata"):
        renamed._metadata = tensors._metadata
    return renamed


def _backbone(published: Published, tensors: dict[str, Tensor]) -> Backbone:
    """Our Backbone with these tensors, its first convolution rescaled to our images.

    Raises OtherArchitectureError where they do not fit, the first convolution before all.
    """
    try:
        if published.architecture not in LITE:
            name, convolution = first_convolution(_without_values(published.architecture))
            key, channels = f"{name}.weight", len(published.mean)
            wanted = (convolution.out_channels, channels, *convolution.kernel_size)
            if key in tensors and tuple(tensors[key].shape) != wanted:
                found = "x".join(map(str, tensors[key].shape))
                raise OtherArchitectureError(f"its first convolution is {found}, not {'x'.join(map(str, wanted))}")
            if _is_rescaled(published) and key in tensors:
                tensors[key] = rescaled(tensors[key], published.mean, published.std)
        return build_backbone(published.architecture, tensors)
    except (RuntimeError, ValueError) as error:  # torch's message has a line for each tensor
        raise OtherArchitectureError(" ".join(str(error).split())[:200]) from None


def _yolo_tensors(published: Published, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors that fit our one-class YOLOv5; only those of the detection head, of 80 classes, do not."""
    from siimcovid.core.overrides import override
    from siimcovid.core.presets import FULL
    from siimcovid.models.yolo import build

    model = build(override(FULL.yolo, {"architecture": published.architecture}))
    ours = model.state_dict()
    named = {f"model.{name}": tensor for name, tensor in tensors.items()}
    fitting = {name: t for name, t in named.items() if name in ours and t.shape == ours[name].shape}
    head = f"model.model.{len(model.model.model) - 1}."
    lacking = [name for name in ours if name not in fitting and not name.startswith(head)]
    if lacking:
        raise OtherArchitectureError(f"{len(lacking)} tensors are missing or of another shape, the first {lacking[0]}")
    return fitting


def _detector_tensors(published: Published, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors that fit our Faster R-CNN on a ResNet-50: all but those of the boxes' 91 classes."""
    from siimcovid.core.overrides import override
    from siimcovid.core.presets import FULL
    from siimcovid.models.faster_rcnn import build

    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    try:
        theirs.load_state_dict(tensors)  # which also renames what older files name otherwise
    except RuntimeError as error:
        raise OtherArchitectureError(" ".join(str(error).split())[:200]) from None
    model = build(override(FULL.rcnn, {"backbone": "resnet50"}))
    ours, places = model.state_dict(), names_in_backbone("resnet50")
    named = {}
    for name, tensor in theirs.state_dict().items():
        inner = name.removeprefix("backbone.body.")
        place = f"backbone.body.{places[inner]}" if inner != name else name
        named[f"detector.{place}"] = tensor
    _move_epsilon(named)
    return {name: t for name, t in named.items() if name in ours and t.shape == ours[name].shape}


def _move_epsilon(tensors: dict[str, Tensor]) -> None:
    """torchvision runs the norms of this file with epsilon 0 and we with 1e-5: their scales make up for it."""
    for name in [name for name in tensors if name.endswith(".running_var")]:
        scale = name.replace("running_var", "weight")
        variance = tensors[name].double().clamp(min=1e-30)
        tensors[scale] = (tensors[scale].double() * ((variance + 1e-5) / variance).sqrt()).float()


#: How the tensors of a published file become ours.
LAYOUTS = {
    "classifier": _classifier_tensors,
    "findings": _findings_tensors,
    "yolo": _yolo_tensors,
    "detector": _detector_tensors,
}
