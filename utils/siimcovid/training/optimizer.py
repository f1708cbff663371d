"""The optimizer of a stage, and the averaged copy of its weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from siimcovid.core.configuration import Training
from siimcovid.models.backbone import Backbone


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over the trainable parameters; weight decay on weights only, not on biases and norms.

    On the CPU a parameter's update is one pass over its numbers (torch's fused form), not one for each operation. What
    stands on a `Backbone` learns `head_rate` times as fast as the backbone, which starts from pretrained weights.
    """
    pretrained = {p for module in model.modules() if isinstance(module, Backbone) for p in module.parameters()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    heads = {p for p in parameters if pretrained and p not in pretrained}
    groups = []
    for head, rate in ((False, training.learning_rate), (True, training.learning_rate * training.head_rate)):
        for matrix, decay in ((True, training.weight_decay), (False, 0.0)):
            chosen = [p for p in parameters if (p.ndim > 1) == matrix and (p in heads) == head]
            groups.append({"params": chosen, "weight_decay": decay, "lr": rate})
    groups = [group for group in groups if group["params"]]
    settings = {"lr": training.learning_rate, "fused": all(p.device.type == "cpu" for p in parameters) or None}
    if training.optimizer != "sgd":
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
        return kind(groups, **settings)
    return torch.optim.SGD(
        groups,
        **settings,
        momentum=training.momentum,
        nesterov=training.nesterov and training.momentum > 0,
    )


def make_average(model: nn.Module, training: Training, device: torch.device) -> AveragedModel | None:
    """An exponential moving average of the weights and running statistics; None where `training.ema` is 0.

    The decay rises to `ema` as (1 + n) / (10 + n) over the updates n, as TensorFlow's moving average does with their
    number: a short training would else end with a good share of the weights that it began with.
    """
    if not training.ema:
        return None

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], number: Tensor | int) -> None:
        count = int(number)
        get_ema_multi_avg_fn(min(training.ema, (1 + count) / (10 + count)))(averaged, current, number)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True).to(device)
