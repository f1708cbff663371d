"""The trained models of a run: trained, found, verified, checked for numbers that are not finite, and kept in memory.

In MODE finetune a stage's model is the one that this run trained; where that failed, and in MODE infer, the one in the
weights folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from siimcovid import checkpoint, launch, stages, weights
from siimcovid.clock import smaller_films
from siimcovid.errors import InputError
from siimcovid.models.backbone import for_inference
from siimcovid.overrides import override
from siimcovid.presets import Preset
from siimcovid.run import Run

#: What is done without a stage's model.
WITHOUT = {
    "rcnn": "YOLO's boxes alone, if it can be used",
    "yolo": "Faster R-CNN's boxes alone, if it can be used",
    "study": "the train set's frequencies for every study",
}


def own(run: Run, stage: str) -> Path:
    """Where this run's training leaves a stage."""
    return run.folder / "weights" / f"{stage}.safetensors"


def fit(
    run: Run, stage: str, preset: Preset, films: pd.DataFrame, out: Path, may_start_epoch: Callable[[float], bool]
) -> Path:
    """Train a stage for the run: stages.fit, in a process for each GPU where the machine has several."""
    start = run.weights if run.verify else None
    if torch.cuda.device_count() > 1:  # those processes have clocks of their own, which are told when to stop
        seconds = run.clock.left() - run.needed_after(f"fit {stage}")
        return launch.fit(stage, preset, films, run.cache, start, out, seconds)
    return stages.fit(stage, preset, films, run.cache, start, out, may_start_epoch)


def load(run: Run, stage: str, path: Path | None = None) -> tuple[Any, nn.Module] | None:
    """A stage's configuration and its model for inference, loaded once; None where none can be used, which is recorded.

    path: the checkpoint that this run trained; without it the weights folder's, which looks at films of the resolution
    that the plan leaves it.
    """
    if stage not in run.models and stage not in run.unusable:
        run.unusable.add(stage)
        with run.guard(f"fit {stage}", WITHOUT[stage]):
            run.models[stage] = (*read(path or given(run, stage), stage), path is None)
            run.unusable.discard(stage)
    if stage not in run.models:
        return None
    config, model, is_given = run.models[stage]
    if is_given and (scale := run.choices.scale.get(stage, 1.0)) < 1:
        config = override(config, smaller_films(config, scale))
    return config, model


def given(run: Run, stage: str) -> Path:
    """A stage's checkpoint in the weights folder, verified. Raises InputError where there is none."""
    name = f"{stage}.safetensors"
    if run.weights is None:
        raise InputError(f"there is no weights folder, so no {name}")
    return weights.verified(run.weights, name) if run.verify else run.weights / name


def read(path: Path, stage: str) -> tuple[Any, nn.Module]:
    """Read a checkpoint: the configuration, and the model made for inference.

    Raises InputError where it is of another stage or holds a number that is not finite.
    """
    found, config, model = checkpoint.load(path)
    if found != stage:
        raise InputError(f"{path} holds stage {found}, not {stage}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path}: the weights {name} hold numbers that are not finite; train stage {stage} again")
    return config, for_inference(model)
