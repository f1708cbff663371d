"""All that a restart of a training needs, in one file: written whole or not at all, read without running its code.

`<stage>.resume.pt` is a torch archive of tensors, numbers and texts: the identity (training_identity.py), the model,
the optimizer, the schedule, the averaged weights, the gradient scaler, the best weights so far and `Progress`.
"""

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path
from siimcovid.training.training_identity import differences


@dataclass
class Progress:
    """Where a run is: all of it that is not a tensor."""

    epoch: int = 0
    batch: int = 0  # steps done in this epoch
    updates: int = 0  # of the weights
    loss: float = 0.0  # sum over this epoch's batches so far
    parts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0  # this epoch so far, over all restarts
    waiting: float = 0.0  # of them, spent on data
    best: float = -math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)
    float32: bool = False  # mixed precision was given up: the loss was not finite with it

    def next_epoch(self, row: dict[str, float]) -> "Progress":
        """The progress at the start of the next epoch; row: what the epoch that has ended came to."""
        kept = {name: getattr(self, name) for name in ("updates", "best", "best_epoch", "float32")}
        return Progress(epoch=self.epoch + 1, history=[*self.history, row], **kept)


@dataclass
class TrainingState:
    """What changes while a stage is trained."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    averaged: AveragedModel | None
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    best: dict[str, Tensor] | None = None  # weights of the best epoch on the images held out

    @property
    def result(self) -> nn.Module:
        """The model that is measured and kept: the averaged one where there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def is_finite(self) -> bool:
        """Whether every weight and running statistic is a finite number."""
        tensors = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    def save(self, path: Path, identity: Mapping[str, Any], images_per_step: int) -> None:
        """Write the file, atomically. images_per_step: what `progress.batch` counts."""
        content = {
            "identity": dict(identity),
            "images_per_step": images_per_step,
            "progress": vars(self.progress),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
        }
        with atomic_path(path) as temporary:
            torch.save(content, temporary)

    def restore(self, content: Mapping[str, Any], images_per_step: int) -> None:
        """Take over what `read_state` has read."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        if self.averaged is not None:
            self.averaged.load_state_dict(content["averaged"])
        if self.scaler.is_enabled() and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.progress, self.best = Progress(**content["progress"]), content["best"]
        # the run before may have had other steps, of a smaller batch on a smaller GPU
        self.progress.batch = self.progress.batch * content["images_per_step"] // images_per_step


def read_state(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a resume file, on the CPU.

    Raises:
        InputError: the file is damaged, is none of ours, or belongs to a training of another identity.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is damaged or no training state ({type(error).__name__}); remove it") from None
    wanted = {"identity", "images_per_step", "progress", "model", "optimizer", "schedule", "averaged", "scaler", "best"}
    if not isinstance(content, dict) or set(content) != wanted or not isinstance(content["progress"], dict):
        raise InputError(f"{path} is no training state of this version; remove it")
    if set(content["progress"]) != {each.name for each in fields(Progress)}:
        raise InputError(f"{path} is no training state of this version; remove it")
    if changed := differences(content["identity"], identity):
        names = ", ".join(changed)
        raise InputError(f"{path} is of a training with other settings ({names}); go back to those to finish it")
    return content
