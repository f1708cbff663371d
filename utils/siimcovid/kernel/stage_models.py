"""The trained models of a run: trained, found, verified, checked for numbers that are not finite, and kept in memory.

In MODE finetune a stage's model is the one that this run trained; where that failed, and in MODE infer, the one in the
weights folders, see weights_sources.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from siimcovid.core.configuration import Preset
from siimcovid.core.device import training_processes
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, link
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.stage_names import stage_of
from siimcovid.data import duplicates, folds
from siimcovid.kernel import weights_sources
from siimcovid.kernel.lower_resolution import inference_changes
from siimcovid.kernel.run import Run
from siimcovid.models import checkpoints, weights_manifest
from siimcovid.training import multi_gpu, train_stage
from siimcovid.training.training_identity import Identity


def without(name: str) -> str:
    """What is done without a model."""
    if name == "study":
        return "the train set's frequencies for every study"
    return "the other models that can be used" if stage_of(name) == "study" else "the other detectors' boxes"


def own(run: Run, name: str) -> Path:
    """Where this run's training leaves a model: all of a stage but the first have a folder each."""
    stage, _, number = name.partition(".")
    folder = run.folder / "weights"
    return (folder / f"member_{number}" if number else folder) / f"{stage}.safetensors"


def has_own_fold(run: Run, stage: str) -> bool:
    """Whether a stage's models are a fold ensemble's members, each trained without a fold of its own.

    What counts is how many there were to be when the stage's training began: its images stay, however many of the
    members the plan drops later, or a restart would train on others than before.
    """
    return run.planner.requested.members > 1 and run.plan.members_at_start.get(stage, run.plan.members) > 1


def preset_of(run: Run, name: str) -> Preset:
    """The preset that a model is trained with: its fold in a fold ensemble, or its seed among several of its stage."""
    stage, _, number = name.partition(".")
    if not has_own_fold(run, stage):
        return override(run.preset, {"repetition": int(number or 0)})
    members = run.plan.members_at_start.get(stage, run.plan.members)
    return override(run.preset, {"fold": int(number or 0), "folds": max(run.preset.folds, members)})


def member_images(run: Run, name: str) -> tuple[Preset, pd.DataFrame]:
    """The preset and the images that a model is trained with: a fold ensemble's members without a fold of their own.

    A stage that keeps the best epoch on a fold held out does so on the member's; another sees the rest of the images.
    """
    stage, preset = stage_of(name), preset_of(run, name)
    if not has_own_fold(run, stage) or getattr(preset, stage).training.validate:
        return preset, run.prepared_images
    return override(preset, {"hold_out": False}), _member_split(run, preset)[0]


def held_out(run: Run, name: str) -> pd.DataFrame:
    """The rows of the fold that a model was not trained on; none where it was trained on every image."""
    stage, (preset, images) = stage_of(name), member_images(run, name)
    if has_own_fold(run, stage) and not getattr(preset, stage).training.validate:
        return _member_split(run, preset)[1]
    return train_stage.held_out_fold(stage, preset, images, run.cache)


def _member_split(run: Run, preset: Preset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that a member of a fold ensemble is trained on, and those of its own fold."""
    known = run.prepared_images[
        (run.prepared_images["split"] == "train") & run.prepared_images["study_label"].isin(STUDY_LABELS)
    ]
    copies = duplicates.find(known, run.cache) if preset.duplicates else []
    count = folds.at_most(known, preset.folds, copies)
    return folds.split(known, preset.fold, count, preset.seed, copies)


def offer(run: Run, name: str, path: Path) -> None:
    """Enter a trained model into the manifest beside it; a member's file also goes, under its name, to the others."""
    weights_manifest.register_trained(path, stage_of(name), run.preset, run.inputs.source)
    flat = run.folder / "weights" / f"{name}.safetensors"
    if flat != path:
        for end in (".safetensors", ".json"):
            with atomic_path(flat.with_name(name + end)) as temporary:
                link(path.with_suffix(end), temporary)
        weights_manifest.register_trained(flat, stage_of(name), run.preset, run.inputs.source)


def fit(
    run: Run,
    name: str,
    preset: Preset,
    images: pd.DataFrame,
    out: Path,
    may_start_epoch: Callable[[float], bool],
    start: Path | None = None,
    seconds: float = float("inf"),
    pause: bool = False,
    resume_from: Path | None = None,
) -> Path:
    """Train a model for the run: train_stage.fit, in a process for each GPU where the machine has several.

    may_start_epoch: asked before each epoch with the seconds of the last, in this process. seconds: that training may
    take in other processes, which cannot ask. start: the weights folder to start from, by default the run's.
    pause, resume_from: see training_loop.train.
    """
    start, stage, options = start or start_of(run, name), stage_of(name), {"pause": pause, "resume_from": resume_from}
    if training_processes() > 1:
        return multi_gpu.fit(stage, preset, images, run.cache, start, out, seconds, **options)
    return train_stage.fit(stage, preset, images, run.cache, start, out, may_start_epoch, **options)


def start_of(run: Run, name: str) -> Path | None:
    """The weights folder that a model's training starts from; None for random weights."""
    stage = stage_of(name)
    return weights_sources.start_folder(run.inputs.starts, stage, getattr(run.preset, stage))


def identity(run: Run, name: str) -> Identity:
    """The identity of the training that `fit` makes of a model in this run's weights folder."""
    start = start_of(run, name)
    return train_stage.identity_of(stage_of(name), *member_images(run, name), run.cache, start, own(run, name).parent)


def load(run: Run, name: str, path: Path | None = None) -> tuple[Any, nn.Module] | None:
    """A model's configuration and the model for inference, loaded once; None where it can't be used, which is recorded.

    name: a stage, or a member of its fold ensemble. path: the checkpoint that this run trained; without it the weights
    folder's, which predicts at the resolution that the plan leaves it.
    """
    models = run.models
    if name not in models.loaded and name not in models.unusable:
        models.unusable.add(name)
        with run.recovery.recover(f"fit {name}", without(name)):
            models.loaded[name] = (*read(path or given(run, name), stage_of(name)), path is None)
            models.unusable.discard(name)
    if name not in models.loaded:
        return None
    config, model, is_given = models.loaded[name]
    if is_given and (scale := run.plan.scale.get(stage_of(name), 1.0)) < 1:
        config = override(config, inference_changes(config, scale))
    return config, model


def given(run: Run, name: str) -> Path:
    """A model's checkpoint in the weights folders, verified. Raises InputError where there is none."""
    file, weights = f"{name}.safetensors", run.inputs.models.get(name, run.inputs.weights)
    if weights is None:
        raise InputError(f"no weights folder was found, so there is no {file}: attach the weights or set WEIGHTS_DIR")
    return weights_manifest.verified(weights, file) if run.inputs.verify else weights / file


def read(path: Path, stage: str) -> tuple[Any, nn.Module]:
    """A checkpoint's configuration and its model made for inference, see `checkpoints.load_for_inference`."""
    return checkpoints.load_for_inference(path, stage)
