"""The plainest training loop, for contenders that are a model, an optimizer and a loss: batch, loss, step."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from siimcovid.apps.benchmarks.peers.training_budget import MEASURED, endless_batches, step_seconds, total_steps
from siimcovid.data.datasets import ImageDataset


class Recipe(NamedTuple):
    """A way to train.

    loss: of a batch of datasets.py. factor: of a step's number and of all steps, the learning rate as a fraction of the
    optimizer's.
    """

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[dict[str, Any]], Tensor]
    factor: Callable[[int, int], float]


class Trained(NamedTuple):
    """A trained model, its seconds by the clock and its steps."""

    model: nn.Module
    seconds: float
    steps: int


def train_for(seconds: float, make: Callable[[], Recipe], samples: ImageDataset, batch: int, seed: int) -> Trained:
    """Train as many steps as fit into the time, by the speed of the first steps of a training that is thrown away."""
    ends = run_steps(make(), samples, batch, seed, MEASURED + 1)
    steps = total_steps(seconds, step_seconds(ends))
    torch.manual_seed(seed)
    recipe, begin = make(), time.monotonic()
    run_steps(recipe, samples, batch, seed, steps)
    return Trained(recipe.model.eval(), time.monotonic() - begin, steps)


def run_steps(recipe: Recipe, samples: ImageDataset, batch: int, seed: int, steps: int) -> list[float]:
    """Train some steps; returns when each ended (time.monotonic). Raises RuntimeError where the loss is not finite."""
    schedule = LambdaLR(recipe.optimizer, lambda step: recipe.factor(step, steps))
    recipe.model.train()
    ends: list[float] = []
    for step, images in zip(range(steps), endless_batches(samples, batch, seed), strict=False):
        loss = recipe.loss(images)
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss is {loss.item()} in step {step + 1} of {steps}")
        recipe.optimizer.zero_grad()
        loss.backward()
        recipe.optimizer.step()
        schedule.step()
        ends.append(time.monotonic())
    return ends
