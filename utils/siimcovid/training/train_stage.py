"""A stage from start to checkpoint: which images it trains on, what it starts from, how it is measured.

In: the index, the cache, a preset and the folder of offline weights. Out: `<stage>.safetensors`, by train.py.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.functional import center_crop
from tqdm import tqdm

from siimcovid.core.configuration import BackboneConfig, Preset
from siimcovid.core.device import choose_device
from siimcovid.core.errors import InputError
from siimcovid.core.labels import NIH_FINDINGS, STUDY_LABELS
from siimcovid.core.processes import launched_as, processors
from siimcovid.data import duplicates, folds, image_cache
from siimcovid.data.datasets import SHARED, ImageDataset, loader
from siimcovid.evaluation.mean_average_precision import study_precisions
from siimcovid.evaluation.table_scores import opacity_score
from siimcovid.inference.predictor import predict_table, study_probabilities
from siimcovid.models import checkpoints, weights_folder
from siimcovid.models.backbone import for_inference
from siimcovid.training.training_loop import train


def fit(
    stage: str,
    preset: Preset,
    images: pd.DataFrame,
    folder: Path,
    start: Path | None,
    out: Path,
    may_start_epoch: Callable[[float], bool] = lambda seconds: True,
) -> Path:
    """Train a stage on the index's train part and return its checkpoint.

    With `validate` in the stage's training, the images of fold `preset.fold` are held out and the best epoch on them is
    kept; without it every image is trained on and the last epoch is kept. With `preset.duplicates` an image that stands
    there under several ids is trained on once, see duplicates.py.

    Args:
        stage: a key of checkpoint.STAGES.
        preset: the configuration.
        images: the index, or a table of sources.py; only train rows whose image lies in the cache are used.
        folder: the cache of prepared images.
        start: folder of offline weights; None starts from random ones.
        out: folder for the checkpoint.
        may_start_epoch: see train.train.
    """
    config = getattr(preset, stage)
    known = images[images["split"] == "train"]
    if stage == "study":
        known = known[known["study_label"].isin(STUDY_LABELS)]
    if known.empty:
        raise InputError(f"stage {stage} has no images to train on: the folder has no readable train part for it")
    groups = duplicates.find(known, folder) if preset.duplicates else []
    if config.training.validate:
        chosen, held_out = folds.split(known, preset.fold, preset.folds, preset.seed, groups)
    else:
        chosen, held_out = known[known["annotated"]], None
    chosen = duplicates.once(chosen, groups)
    torch.manual_seed(preset.seed)
    model = checkpoints.build_model(stage, config)
    origin = {"file": None} if start is None else weights_folder.start(stage, config, model, start)
    samples = ImageDataset(chosen, folder, config.size, config.augment, preset.seed)
    dataset: Dataset = samples
    if stage == "study" and config.frozen and config.views:
        dataset = Features(samples, model, config.views, config.infer_batch)
    sampling_weights, balance = None, config.training.balance
    if balance != "none":
        if chosen["study_label"].isna().any() or (balance == "weights" and stage != "study"):
            raise InputError(
                f"{stage}.training.balance={balance} needs images with study labels, and weights need stage study"
            )
        rarity = 1.0 / chosen.groupby("study_label")["study_label"].transform("size")
        if balance == "oversample":
            sampling_weights = rarity.tolist()
        else:  # the mean weight of an image is 1, as without weights
            of_label = rarity.groupby(chosen["study_label"]).first().reindex(STUDY_LABELS, fill_value=0.0)
            model.label_weights = torch.tensor((of_label * len(chosen) / (of_label > 0).sum()).to_numpy())
    evaluate = None if held_out is None else lambda candidate: measure(stage, config, candidate, held_out, folder)
    return train(
        stage,
        config,
        model,
        dataset,
        out,
        seed=preset.seed,
        sampling_weights=sampling_weights,
        evaluate=evaluate,
        may_start_epoch=may_start_epoch,
        facts={"start": origin, "preset": preset.name},
    )


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


def measure(stage: str, config: object, model: nn.Module, images: pd.DataFrame, folder: Path) -> float:
    """Validation metric, higher is better.

    Opacity AP on all images for a detector, mean AP of the study labels for `study`, and for `backbone` the mean area
    under the ROC curve of the findings that some images have and some have not, as Wang et al. 2017 compare them.
    """
    if stage == "backbone":
        truth, scores = images[list(NIH_FINDINGS)].to_numpy(), findings(config, model, images, folder)
        told = (truth.min(axis=0) == 0) & (truth.max(axis=0) == 1)
        return float(roc_auc_score(truth[:, told], scores[:, told])) if told.any() else math.nan
    table = predict_table(stage, config, model, images, folder)
    if stage == "study":
        truth = images.drop_duplicates("study_id").set_index("study_id")["study_label"]
        return study_precisions(study_probabilities(table), truth)["mean"]
    return opacity_score(table, images)


def findings(config: BackboneConfig, model: nn.Module, images: pd.DataFrame, folder: Path) -> np.ndarray:
    """Logits of NIH's labels on images of the index: (images, 15) in the order of labels.NIH_FINDINGS."""
    device = choose_device()
    model, samples = for_inference(model.to(device)), ImageDataset(images, folder, config.infer_size, memory=SHARED)
    side = config.augment.crop or config.infer_size
    rows = [
        model.predict(center_crop(batch["images"].to(device), [side, side])).float().cpu()
        for batch in loader(samples, config.infer_batch)
    ]
    return torch.cat(rows).numpy()


class Features(Dataset):
    """Pooled features of a frozen backbone, computed once: view 0 is the image as it is, the others are augmented.

    Epoch e trains on view e modulo `views`; see Images for the tickets.
    """

    #: What the last table was made of, it, and its processor seconds: a search trains many heads on the same backbone
    #: and images.
    last: tuple[str, Tensor, float] | None = None

    def __init__(self, samples: ImageDataset, model: nn.Module, views: int, batch: int):
        self.image_ids, self.study_labels, self.views = samples.image_ids, samples.study_labels, views
        self.boxes = [torch.from_numpy(boxes) for boxes in samples.boxes]
        origin = hashlib.sha256(
            repr((samples.folder, samples.image_ids, samples.size, samples.augment, samples.seed)).encode()
        )
        for name, tensor in model.backbone.state_dict().items():
            origin.update(name.encode() + tensor.cpu().numpy().tobytes())
        key = f"{origin.hexdigest()} {views}"
        if Features.last is None or Features.last[0] != key:
            begin = time.process_time()
            table = self.pooled(samples, model, batch).view(views, len(samples), -1)
            Features.last = key, table, time.process_time() - begin
        self.table = Features.last[1]

    def pooled(self, samples: ImageDataset, model: nn.Module, batch: int) -> Tensor:
        """Every view of every image: (views * images, C)."""
        device = choose_device()
        model = model.to(device).eval()
        augment, table = samples.augment, []
        with torch.inference_mode():
            for view in range(self.views):
                samples.augment = augment if view else None
                order = range(view * len(samples), (view + 1) * len(samples))
                batches = loader(samples, batch, order)
                for images_batch in tqdm(
                    batches, desc=f"features {view + 1}/{self.views}", unit="batch", mininterval=2
                ):
                    table.append(model.features(images_batch["images"].to(device)).cpu())
        samples.augment = augment
        return torch.cat(table).clone()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, ticket: int) -> dict:
        epoch, number = divmod(int(ticket), len(self))
        return {
            "features": self.table[epoch % self.views, number],
            "boxes": self.boxes[number],
            "study_labels": self.study_labels[number],
            "image_ids": self.image_ids[number],
        }
