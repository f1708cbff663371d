"""Any of torchvision's classifiers cut into five stages, at strides 2, 4, 8, 16 and 32, that a dry pass finds.

A classifier fits where its forward pass runs its children one after the other up to the pooling before its head, and
its maps halve their sides each time: ResNet, ResNeXt, Wide ResNet, DenseNet, EfficientNet, EfficientNetV2, MobileNet,
MNASNet, RegNet, ShuffleNet, ConvNeXt, VGG. Vision transformers, Inception, AlexNet and SqueezeNet do not.
"""

from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from siimcovid.core.errors import InputError

#: Side in pixels of the dry pass's image: the least that has 2 x 2 places at stride 32, so that a pooled map is no map.
DRY_SIDE = 64

#: Strides of the five stages.
STRIDES = (2, 4, 8, 16, 32)


def is_classifier(architecture: str) -> bool:
    """Whether torchvision has a classifier of this name."""
    return architecture in torchvision.models.list_models(module=torchvision.models)


def build_classifier(architecture: str) -> nn.Module:
    """torchvision's classifier with random weights and the 1000 classes of ImageNet."""
    return torchvision.models.get_model(architecture, weights=None)


def names_in_backbone(architecture: str) -> dict[str, str]:
    """The name of each tensor in torchvision's network -> its name among the stages of our Backbone."""
    network = build_classifier(architecture)
    stages, _ = cut_into_stages(network, architecture)
    places = {}
    for number, stage in enumerate(stages):
        places |= {id(t): f"stages.{number}.{name}" for name, t in stage.state_dict(keep_vars=True).items()}
    return {name: places[id(t)] for name, t in network.state_dict(keep_vars=True).items() if id(t) in places}


@dataclass
class _Unit:
    """A part of the network that the forward pass runs as a whole: its output's side and channels."""

    module: nn.Module
    side: int
    channels: int


def cut_into_stages(network: nn.Module, architecture: str) -> tuple[list[nn.Module], list[int]]:
    """The network's stages and the channels of each one's map, (B, channels, S / stride, S / stride).

    A stage ends at the last part of its stride. One after the other they compute what the network's own head pools; a
    ReLU that the network applies in its forward pass alone, as DenseNet does, becomes part of the last stage. A network
    whose first map has stride 4 (ConvNeXt) gets an nn.Identity with 0 channels as its first stage.

    Raises InputError, which names `architecture`, where the network cannot be cut so.
    """
    image = torch.rand((1, 3, DRY_SIDE, DRY_SIDE), generator=torch.Generator().manual_seed(0))
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            units, pooled = _dry_pass(network, image)
            stages = _grouped(units)
            _end_as_pooled(stages, image, pooled)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(
            f"{architecture} cannot be a backbone: its forward pass is no chain of maps at strides 2 to 32 ({reason}); "
            "choose a convolutional network such as resnet50"
        ) from None
    finally:
        network.train(training)
    modules = [
        nn.Sequential(*(unit.module for unit in stage)) if len(stage) != 1 else stage[0].module for stage in stages
    ]
    if not stages[0]:
        modules[0] = nn.Identity()
    return modules, [stage[-1].channels if stage else 0 for stage in stages]


def _is_chain(module: nn.Module) -> bool:
    """Whether a module runs its children one after the other and does nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _dry_pass(network: nn.Module, image: Tensor) -> tuple[list[_Unit], Tensor]:
    """The parts that the network runs in a chain before it pools, and what its head gets, (1, C) or (1, C, h, w)."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    outputs: dict[nn.Module, Tensor] = {}
    hooks = []

    def watch(module: nn.Module, is_child: bool) -> None:
        def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[module] = output
            if is_child:
                calls.append((module, given[0], output))

        hooks.append(module.register_forward_hook(note))
        for child in module.children() if _is_chain(module) else ():
            watch(child, False)

    for child in network.children():
        watch(child, True)
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    chain, last = [], image
    for module, given, output in calls:
        sides = range(DRY_SIDE // STRIDES[-1], last.shape[-1] + 1)
        if given is not last or output.dim() != 4 or output.shape[-1] not in sides:  # a head's first part
            return [unit for part in chain for unit in _units(part, outputs)], given
        chain.append(module)
        last = output
    raise ValueError("it does not end in a head")


def _units(module: nn.Module, outputs: dict[nn.Module, Tensor]) -> list[_Unit]:
    """A module as it is, or, where sides change within, its children's units."""
    inner = [unit for child in module.children() for unit in _units(child, outputs)] if _is_chain(module) else []
    if len({unit.side for unit in inner}) > 1:
        return inner
    return [_Unit(module, outputs[module].shape[-1], outputs[module].shape[1])]


def _grouped(units: list[_Unit]) -> list[list[_Unit]]:
    """The units of each stage; what has stride 1 (VGG) goes to the first. Raises ValueError for other strides."""
    stages: list[list[_Unit]] = [[] for _ in STRIDES]
    place = 0
    for unit in units:
        stride = DRY_SIDE // unit.side
        if stride * unit.side != DRY_SIDE or stride not in (1, *STRIDES) or max(stride, 2) < STRIDES[place]:
            raise ValueError(f"an image of {DRY_SIDE} pixels has a map of {unit.side}")
        place = STRIDES.index(max(stride, 2))
        stages[place].append(unit)
    lacking = [stride for stride, stage in zip(STRIDES[1:], stages[1:], strict=True) if not stage]
    if lacking:
        raise ValueError(f"there is no map at stride {lacking[0]}")
    return stages


def _end_as_pooled(stages: list[list[_Unit]], image: Tensor, pooled: Tensor) -> None:
    """Make the last map what the network's head gets the mean of: as it is, or behind a ReLU."""
    for unit in (unit for stage in stages for unit in stage):
        image = unit.module(image)
    wanted = pooled.flatten(2).mean(dim=2) if pooled.dim() == 4 else pooled
    for further in (None, nn.ReLU()):
        found = (image if further is None else further(image)).mean(dim=(2, 3))
        if found.shape == wanted.shape and torch.allclose(
            found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())
        ):
            if further is not None:
                stages[-1].append(_Unit(further, image.shape[-1], image.shape[1]))
            return
    raise ValueError("its head gets another map than the last one")
