"""The learning rate of every update, as a fraction of the highest one."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from siimcovid.core.configuration import Training


def learning_rate_factor(training: Training, update: int, updates_per_epoch: int) -> float:
    """The learning rate of an update as a fraction of the highest.

    `cosine` is the report's equation 1, (1/2 (1 + cos(t pi / T)) 0.95 + 0.05), with T the number of epochs and t the
    epoch of the last step, one step every `step_epochs` epochs. The report calls t "the scheduler step"; counted so, t
    would end at T / 2 and the floor it introduces would never be reached, so we count it in epochs.
    `one_cycle` rises linearly over the first fifth and falls as a cosine to zero (Smith and Topin 2017).

    Args:
        training: names the schedule, the epochs, the warm-up in updates and the floor.
        update: number of the update, from 0.
        updates_per_epoch: weight updates in an epoch, at least 1.
    """
    total = max(1, training.epochs * updates_per_epoch)
    warm = min(1.0, (update + 1) / training.warmup) if training.warmup else 1.0
    if training.schedule == "constant":
        return warm
    if training.schedule == "one_cycle":
        rise = 0.2 * total
        if update < rise:
            return warm * max(0.04, update / rise)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, (update - rise) / (total - rise))))
    epoch = update / updates_per_epoch
    if training.step_epochs:
        epoch = math.floor(epoch / training.step_epochs) * training.step_epochs
    cosine = 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    return warm * (cosine * (1 - training.floor) + training.floor)


def make_schedule(optimizer: Optimizer, training: Training, updates_per_epoch: int) -> LambdaLR:
    """torch's scheduler of `learning_rate_factor`; its `step` is due after every update of the weights."""
    return LambdaLR(optimizer, lambda update: learning_rate_factor(training, update, updates_per_epoch))
