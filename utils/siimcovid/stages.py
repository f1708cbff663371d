"""A stage from start to checkpoint: which films it trains on, what it starts from, how it is measured.

In: the index, the cache, a preset and the folder of offline weights. Out: `<stage>.safetensors`, by train.py.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from siimcovid import LEVELS, checkpoint, folds, weights
from siimcovid.data import Films, loader
from siimcovid.errors import InputError
from siimcovid.metric import Matches, area, average_precision, falling
from siimcovid.predict import predict, study_levels
from siimcovid.presets import Preset
from siimcovid.train import train


def fit(
    stage: str,
    preset: Preset,
    images: pd.DataFrame,
    cache: Path,
    start: Path,
    out: Path,
    may_start_epoch: Callable[[float], bool] = lambda seconds: True,
) -> Path:
    """Train a stage on the index's train part and return its checkpoint.

    With `validate` in the stage's training, the films of fold `preset.fold` are held out and the best epoch on them is
    kept; without it every film is trained on and the last epoch is kept.

    Args:
        stage: a key of checkpoint.STAGES.
        preset: the configuration.
        images: the index; only train rows whose film lies in the cache are used.
        cache: the prepared films.
        start: folder of offline weights.
        out: folder for the checkpoint.
        may_start_epoch: see train.train.
    """
    config = getattr(preset, stage)
    known = images[(images["split"] == "train") & images["level"].isin(LEVELS)]
    if known.empty:
        raise InputError(f"stage {stage} has no films to train on: the competition folder has no readable train part")
    if config.training.validate:
        chosen, held_out = folds.split(known, preset.fold, preset.folds, preset.seed)
    else:
        chosen, held_out = known[known["annotated"]], None
    torch.manual_seed(preset.seed)
    model = checkpoint.build_model(stage, config)
    origin = weights.start(stage, config, model, start)
    films = Films(chosen, cache, config.size, config.augment, preset.seed)
    dataset: Dataset = films
    if stage == "study" and config.frozen and config.views:
        dataset = Features(films, model, config.views, config.infer_batch)
    chances = None
    if config.training.balance == "oversample":
        chances = (1.0 / chosen.groupby("level")["level"].transform("size")).tolist()
    evaluate = None if held_out is None else lambda candidate: measure(stage, config, candidate, held_out, cache)
    return train(
        stage,
        config,
        model,
        dataset,
        out,
        seed=preset.seed,
        chances=chances,
        evaluate=evaluate,
        may_start_epoch=may_start_epoch,
        facts={"start": origin, "preset": preset.name},
    )


def measure(stage: str, config: object, model: nn.Module, images: pd.DataFrame, cache: Path) -> float:
    """Validation metric, higher is better: opacity AP on all films for a detector, mean AP of levels for `study`."""
    table = predict(stage, config, model, images, cache)
    if stage == "study":
        levels = study_levels(table).set_index("study_id")
        truth = images.drop_duplicates("study_id").set_index("study_id")["level"].reindex(levels.index)
        precisions = []
        for name in LEVELS:
            order = falling(levels[name].to_numpy())
            hit = (truth == name).to_numpy()[order]
            precisions.append(area(Matches(levels[name].to_numpy()[order], hit, int(hit.sum()))))
        return float(np.nanmean(precisions))
    number = {image_id: k for k, image_id in enumerate(images["image_id"])}
    boxes = [np.asarray(b, float).reshape(-1, 4) for b in images["boxes"]]
    corners = ["x1", "y1", "x2", "y2"]
    return average_precision(
        table["image_id"].map(number).to_numpy(),
        table["score"].to_numpy(),
        table[corners].to_numpy(),
        np.repeat(np.arange(len(images)), [len(b) for b in boxes]),
        np.concatenate(boxes),
    )


class Features(Dataset):
    """Pooled features of a frozen backbone, computed once: view 0 is the film as it is, the others are augmented.

    Epoch e trains on view e modulo `views`; see Films for the tickets.
    """

    def __init__(self, films: Films, model: nn.Module, views: int, batch: int):
        self.image_ids, self.levels, self.views = films.image_ids, films.levels, views
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = model.to(device).eval()
        augment, table = films.augment, []
        with torch.inference_mode():
            for view in range(views):
                films.augment = augment if view else None
                order = range(view * len(films), (view + 1) * len(films))
                batches = loader(films, batch, order)
                for samples in tqdm(batches, desc=f"features {view + 1}/{views}", unit="batch", mininterval=2):
                    table.append(model.features(samples["images"].to(device)).cpu())
        films.augment = augment
        self.table = torch.cat(table).clone().view(views, len(films), -1)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, ticket: int) -> dict:
        epoch, number = divmod(int(ticket), len(self))
        return {
            "features": self.table[epoch % self.views, number],
            "levels": self.levels[number],
            "image_ids": self.image_ids[number],
        }
