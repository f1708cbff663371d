"""The optimizer of a stage, and the averaged copy of its weights."""

import torch
from torch import nn
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
    """An exponential moving average of the weights and running statistics; None where `training.ema` is 0."""
    if not training.ema:
        return None
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(training.ema), use_buffers=True)
    return averaged.to(device)
