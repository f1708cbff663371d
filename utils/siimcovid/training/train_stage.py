"""A stage from start to checkpoint: which images it trains on, what it starts from, how it is measured.

In: the index, the cache, a preset and the folder of offline weights. Out: `<stage>.safetensors`, by training_loop.py.
"""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from siimcovid.core.configuration import BackboneConfig, Preset, inference_sizes
from siimcovid.core.device import choose_device, launched_as
from siimcovid.core.errors import InputError
from siimcovid.core.labels import NIH_FINDINGS, STUDY_LABELS
from siimcovid.core.processes import processors
from siimcovid.data import duplicates, folds, image_cache
from siimcovid.data.datasets import ImageDataset, loader
from siimcovid.data.image_memory import PREDICTION_BYTES, ImageMemory
from siimcovid.data.resize import centre_crop
from siimcovid.evaluation.mean_average_precision import study_precisions
from siimcovid.evaluation.prediction_scores import opacity_score
from siimcovid.inference.predictor import predict_table, study_probabilities
from siimcovid.models import checkpoints, initial_weights
from siimcovid.models.backbone import for_inference, normalise
from siimcovid.models.out_of_distribution import describe
from siimcovid.training.frozen_features import FeatureCache, FrozenFeatures
from siimcovid.training.training_identity import Identity, is_finished, stage_identity
from siimcovid.training.training_loop import print_warning, train


def fit(
    stage: str,
    preset: Preset,
    images: pd.DataFrame,
    folder: Path,
    start: Path | None,
    out: Path,
    may_start_epoch: Callable[[float], bool] = lambda seconds: True,
    *,
    pause: bool = False,
    resume_from: Path | None = None,
    features: FeatureCache | None = None,
    warn: Callable[[str], None] = print_warning,
) -> Path:
    """Train a stage on the index's train part and return its checkpoint; one of the same identity is not made again.

    With `validate` in the stage's training, the images of fold `preset.fold` are held out and the best epoch on them is
    kept, and with it the better of the sizes at which it may predict (`inference_sizes`) as the checkpoint's
    `infer_size`; without it the last epoch is kept, and every image is trained on but those of `held_out_fold`. With
    `preset.duplicates` an image that stands there under several ids is trained on once, see duplicates.py.

    Args:
        stage: a key of configuration.STAGES.
        preset: the configuration.
        images: the index, or a table of dataset_readers.py; only train rows whose image lies in the cache are used.
        folder: the cache of prepared images.
        start: folder of offline weights; None starts from random ones.
        out: folder for the checkpoint.
        may_start_epoch, pause, resume_from, warn: see training_loop.train.
        features: keeps a frozen backbone's features for the next model on it.
    """
    config = getattr(preset, stage)
    trained_on, held_out = split_images(stage, preset, images, folder)
    if said := few_patients(stage, preset, images, held_out):
        warn(said)
    identity = stage_identity(stage, preset, trained_on, held_out, start, out)
    final = Path(out) / f"{stage}.safetensors"
    if is_finished(final, identity) and not final.with_name(f"{stage}.resume.pt").is_file():
        return final
    torch.manual_seed(preset.training_seed)
    model = checkpoints.build_model(stage, config)
    origin = {"file": None} if start is None else initial_weights.start(stage, config, model, start, out)
    epochs = config.training.epochs
    samples = ImageDataset(trained_on, folder, config.size, config.augment, preset.training_seed, epochs=epochs)
    dataset: Dataset = samples
    if stage == "study" and config.frozen and config.views:
        dataset = FrozenFeatures(samples, model, config.views, config.infer_batch, features)
    sampling_weights = balance(stage, config.training.balance, trained_on, model)
    memory = ImageMemory(PREDICTION_BYTES)  # of the images held out, for the next epoch

    def evaluate(candidate: nn.Module) -> float:
        return best_size(measure_sizes(stage, config, candidate, held_out, folder, memory))[1]

    def complete(finished: nn.Module) -> Any:
        learn_typical(stage, config, finished, samples)
        return config if held_out is None else at_better_size(stage, config, finished, held_out, folder, memory)

    # on the CPU the weights' bytes differ by the number of threads
    facts = {"start": origin, "preset": preset.name, "images": len(trained_on), "threads": torch.get_num_threads()}
    return train(
        stage,
        config,
        model,
        dataset,
        out,
        seed=preset.training_seed,
        identity=identity,
        sampling_weights=sampling_weights,
        evaluate=None if held_out is None else evaluate,
        may_start_epoch=may_start_epoch,
        pause=pause,
        resume_from=resume_from,
        facts=facts,
        warn=warn,
        complete=complete,
    )


def few_patients(stage: str, preset: Preset, images: pd.DataFrame, held_out: pd.DataFrame | None) -> str:
    """What is done where there are fewer patients than folds, in a sentence; "" where there are enough."""
    patients = images.loc[images["split"] == "train", "patient_id"].nunique()
    if not getattr(preset, stage).training.validate or patients >= preset.folds:
        return ""
    kept = "no fold is held out and the last epoch is kept" if held_out is None else f"there are {patients}"
    return f"{stage} has images of {patients} patients, which do not make {preset.folds} folds, so {kept}"


def at_better_size(
    stage: str, config: Any, model: nn.Module, held_out: pd.DataFrame, folder: Path, memory: ImageMemory
) -> Any:
    """The configuration with the better of `inference_sizes` on the fold held out as `infer_size`; both are printed."""
    if len(inference_sizes(config)) == 1:
        return config
    side, metric = best_size(found := measure_sizes(stage, config, model, held_out, folder, memory))
    others = ", ".join(f"{value:.3f} at {other}" for other, value in found.items() if other != side)
    if launched_as().is_main_process:
        print(f"{stage} predicts at {side} pixels: {metric:.3f} on the fold held out, {others}", flush=True)
    return replace(config, infer_size=side)


def learn_typical(stage: str, config: Any, model: nn.Module, samples: ImageDataset) -> None:
    """Show a trained study model as many of its images as `typical_images` says, see out_of_distribution.py."""
    if stage != "study" or not config.typical_images or len(samples) < 2:
        return
    order = np.random.default_rng(samples.seed).permutation(len(samples))
    chosen = np.sort(order[: config.typical_images])
    plain, network, rows = samples.without_augmentation(config.infer_size), for_inference(model), []
    device = next(network.parameters()).device
    with torch.inference_mode():
        for batch in loader(Subset(plain, chosen.tolist()), config.infer_batch):
            images = centre_crop(batch["images"].to(device), config.augment.crop)
            rows.append(describe(network.backbone(normalise(images))))
    model.unlike.fit(torch.cat(rows))


def split_images(
    stage: str, preset: Preset, images: pd.DataFrame, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The rows that a stage is trained on, and those held out to choose its epoch by; None where it has none.

    Raises InputError where there is nothing to train on, or no such fold.
    """
    known = _known(stage, images)
    if known.empty:
        raise InputError(f"stage {stage} has no images to train on: the folder has no readable train part for it")
    groups = duplicates.find(known, folder) if preset.duplicates else []
    chosen, held_out = _split(stage, preset, known, groups)
    return duplicates.once(chosen, groups), held_out if getattr(preset, stage).training.validate else None


def held_out_fold(stage: str, preset: Preset, images: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The rows of the fold that a stage is not trained on; none where it is trained on every image.

    It is held out with `validate`, and with `preset.hold_out` where numbers can be fitted on it: a smaller fold is
    worth more in training.
    """
    known = _known(stage, images)
    groups = duplicates.find(known, folder) if preset.duplicates else []
    held_out = None if known.empty else _split(stage, preset, known, groups)[1]
    return known[:0] if held_out is None else held_out


def _known(stage: str, images: pd.DataFrame) -> pd.DataFrame:
    """The train rows that a stage can learn from."""
    known = images[images["split"] == "train"]
    return known[known["study_label"].isin(STUDY_LABELS)] if stage == "study" else known


def _split(
    stage: str, preset: Preset, known: pd.DataFrame, groups: list[list[str]]
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The rows to train on and those of the fold, None where it is trained on too; groups: of duplicates.

    Where there are fewer patients than folds, there are as many folds as patients.
    """
    validate = getattr(preset, stage).training.validate
    count = folds.at_most(known, preset.folds, groups)
    if count > 1 and (validate or preset.hold_out):
        chosen, held_out = folds.split(known, preset.fold, count, preset.seed, groups)
        if validate or folds.enough_to_fit(held_out):
            return chosen, held_out
    return known[known["annotated"]], None


def identity_of(
    stage: str, preset: Preset, images: pd.DataFrame, folder: Path, start: Path | None, out: Path | None = None
) -> Identity:
    """The identity (training_identity.py) of what `fit` makes of the same arguments."""
    return stage_identity(stage, preset, *split_images(stage, preset, images, folder), start, out)


def balance(stage: str, how: str, images: pd.DataFrame, model: Any) -> list[float] | None:
    """Make rare study labels count as much as the others.

    how: `Training.balance`. Returns each image's weight in sampling for "oversample", else None; "weights" sets the
    study model's `label_weights`, with which the mean weight of an image is 1.
    """
    if how == "none":
        return None
    if images["study_label"].isna().any() or (how == "weights" and stage != "study"):
        raise InputError(f"{stage}.training.balance={how} needs images with study labels, and weights need stage study")
    rarity = 1.0 / images.groupby("study_label")["study_label"].transform("size")
    if how == "oversample":
        return rarity.tolist()
    of_label = rarity.groupby(images["study_label"]).first().reindex(STUDY_LABELS, fill_value=0.0)
    model.label_weights = torch.tensor((of_label * len(images) / (of_label > 0).sum()).to_numpy())
    return None


def prepare(images: pd.DataFrame, folder: Path, size: int) -> pd.DataFrame:
    """Prepare images, shared among the processes of a launch; returns the failures, the same table in each of them.

    Machines with a disk in common make a part each; one with a disk of its own makes the rest afterwards.
    """
    state = launched_as()
    if state.num_processes > 1:
        workers = max(1, processors() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        image_cache.prepare(images, folder, size, workers, part=(state.process_index, state.num_processes))
        state.wait_for_everyone()
        with state.local_main_process_first():
            return image_cache.prepare(images, folder, size, progress=False)
    return image_cache.prepare(images, folder, size)


def measure_sizes(
    stage: str, config: Any, model: nn.Module, images: pd.DataFrame, folder: Path, memory: ImageMemory | None = None
) -> dict[int, float]:
    """`measure` at each of `inference_sizes`."""
    return {
        side: measure(stage, replace(config, infer_size=side), model, images, folder, memory)
        for side in inference_sizes(config)
    }


def best_size(metrics: dict[int, float]) -> tuple[int, float]:
    """The side in pixels with the highest metric, and that; of equal ones, or where all are NaN, the first."""
    return max(metrics.items(), key=lambda item: -math.inf if math.isnan(item[1]) else item[1])


def measure(
    stage: str,
    config: object,
    model: nn.Module,
    images: pd.DataFrame,
    folder: Path,
    memory: ImageMemory | None = None,
) -> float:
    """Validation metric, higher is better.

    Opacity AP on all images for a detector, mean AP of the study labels for `study`, and for `backbone` the mean area
    under the ROC curve of the findings that some images have and some have not, as Wang et al. 2017 compare them.
    """
    if stage == "backbone":
        from sklearn.metrics import roc_auc_score  # two thirds of a second, which every other training is spared

        truth, scores = images[list(NIH_FINDINGS)].to_numpy(), findings(config, model, images, folder, memory)
        both = (truth.min(axis=0) == 0) & (truth.max(axis=0) == 1)
        return float(roc_auc_score(truth[:, both], scores[:, both])) if both.any() else math.nan
    table = predict_table(stage, config, model, images, folder, memory=memory)
    if stage == "study":
        truth = images.drop_duplicates("study_id").set_index("study_id")["study_label"]
        return study_precisions(study_probabilities(table), truth)["mean"]
    return opacity_score(table, images)


def findings(
    config: BackboneConfig,
    model: nn.Module,
    images: pd.DataFrame,
    folder: Path,
    memory: ImageMemory | None = None,
) -> np.ndarray:
    """Logits of NIH's labels on images of the index: (images, 15) in the order of labels.NIH_FINDINGS."""
    device = choose_device()
    model, samples = for_inference(model.to(device)), ImageDataset(images, folder, config.infer_size, memory=memory)
    rows = [
        model.predict(centre_crop(batch["images"].to(device), config.augment.crop)).float().cpu()
        for batch in loader(samples, config.infer_batch)
    ]
    return torch.cat(rows).numpy()
