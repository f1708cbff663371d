"""Pooled features of a frozen backbone, computed once for all epochs, and for all models on the same backbone."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from siimcovid.core.device import choose_device
from siimcovid.core.progress import progress_bar
from siimcovid.data.datasets import ImageDataset, loader
from siimcovid.training.training_identity import features_identity


@dataclass
class FeatureCache:
    """The features that were computed last, for the next model on the same backbone and images.

    A search or an ablation makes one and passes it to `train_stage.fit`.
    """

    key: str | None = None  # training_identity.features_identity of what the table was made of
    table: Tensor | None = None  # (views, images, channels)
    seconds: float = 0.0  # of processor time that the table took

    def features(self, samples: ImageDataset, model: nn.Module, views: int, batch: int) -> Tensor:
        """(views, images, channels) features; see FrozenFeatures for the arguments."""
        key = features_identity(samples, model.backbone, views)
        if key != self.key:
            begin = time.process_time()
            self.table = pooled_features(samples, model, views, batch).view(views, len(samples), -1)
            self.key, self.seconds = key, time.process_time() - begin
        return self.table


def pooled_features(samples: ImageDataset, model: nn.Module, views: int, batch: int) -> Tensor:
    """Every view of every image, a view after the other: (views * images, channels) on the CPU."""
    device = choose_device()
    model, table = model.to(device).eval(), []
    plain = samples.without_augmentation()
    with torch.inference_mode():
        for view in range(views):
            order = range(view * len(samples), (view + 1) * len(samples))
            batches = loader(samples if view else plain, batch, order)
            for images in progress_bar(batches, f"features {view + 1}/{views}", "batch"):
                table.append(model.features(images["images"].to(device)).cpu())
    return torch.cat(table).clone()


class FrozenFeatures(Dataset):
    """Samples of features: view 0 is the image as it is, the others are augmented. Epoch e has view e modulo `views`.

    Args:
        samples: the images.
        model: with `backbone` and `features`.
        views: number of views of each image, at least 1.
        batch: images at a time.
        cache: holds the features from one model to the next; None computes them.

    Tickets are those of EpochSampler.
    """

    def __init__(
        self, samples: ImageDataset, model: nn.Module, views: int, batch: int, cache: FeatureCache | None = None
    ):
        self.image_ids, self.study_labels, self.views = samples.image_ids, samples.study_labels, views
        self.boxes = [torch.from_numpy(boxes) for boxes in samples.boxes]
        self.table = (cache or FeatureCache()).features(samples, model, views, batch)

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
