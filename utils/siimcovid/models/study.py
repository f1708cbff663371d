"""The study classifier: a backbone's pooled features and two fully connected layers (report, section 3.4).

In: a batch of data.py, films as square uint8 grey (or features that were computed before). Out: the loss, or logits of
the four levels for each film.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from siimcovid import LEVELS
from siimcovid.models.backbone import build_backbone, normalise
from siimcovid.presets import StudyConfig


class Study(nn.Module):
    """The classifier: `forward` gives the loss of a batch, `predict` the logits of its films."""

    def __init__(self, config: StudyConfig):
        super().__init__()
        self.frozen = config.frozen
        self.level_weights: Tensor | None = None  # (4,) of the levels in the loss, set before training; None: equal
        self.smoothing = config.label_smoothing
        self.backbone = build_backbone(config.backbone)
        width = self.backbone.channels[-1]
        self.head = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, len(LEVELS)),
        )
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)  # report, section 3.4
                nn.init.zeros_(layer.bias)
        if self.frozen:
            self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "Study":
        """Training mode; a frozen backbone stays in evaluation mode, so its batch norms do not drift."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) uint8 -> (B, C) pooled features."""
        return self.backbone.pooled(normalise(images))

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Cross entropy over the batch's levels, (B,) int64 in the order of LEVELS."""
        features = batch["features"] if "features" in batch else self.features(batch["images"])
        logits = self.head(features)
        weight = None if self.level_weights is None else self.level_weights.to(logits)
        return {"level": functional.cross_entropy(logits, batch["levels"], weight, label_smoothing=self.smoothing)}

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) uint8 -> (B, 4) logits in the order of LEVELS."""
        return self.head(self.features(images))


def build(config: StudyConfig) -> Study:
    """Build the classifier with random weights, in channels-last layout."""
    return Study(config).to(memory_format=torch.channels_last)
