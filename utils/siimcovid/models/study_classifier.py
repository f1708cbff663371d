"""The study classifier: a backbone's pooled features and two fully connected layers (report, section 3.4).

In: a batch of datasets.py, images as square uint8 grey (or features computed before). Out: the loss, or logits of the
four study labels for each image, and where the configuration asks for it a fifth, that the image has no opacity.

With `mask` an auxiliary head learns to draw the image's boxes from the backbone's map at stride 16, as the first places
of the competition did; it serves training only.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from siimcovid.core.configuration import StudyConfig
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.models.backbone import build_backbone, normalise
from siimcovid.models.out_of_distribution import UnlikeTraining

#: Place among a backbone's maps of the one that the boxes are drawn from: stride 16.
MASK_STAGE = 3

#: Channels of the auxiliary head's hidden layer.
MASK_WIDTH = 64


class Study(nn.Module):
    """The classifier: `forward` gives the loss of a batch, `predict` the logits of its images."""

    def __init__(self, config: StudyConfig):
        super().__init__()
        self.frozen = config.frozen
        #: (4,) weight of each study label in the loss, set before training; None weighs them equally
        self.label_weights: Tensor | None = None
        self.config = config
        if config.mask and config.frozen:
            raise InputError(
                "study.mask trains the backbone, which study.frozen=true keeps as it is; set study.frozen=false"
            )
        self.backbone = build_backbone(config.backbone)
        width = self.backbone.channels[-1]
        self.head = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, len(STUDY_LABELS) + bool(config.none)),
        )
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)  # report, section 3.4
                nn.init.zeros_(layer.bias)
        self.mask_head = build_mask_head(self.backbone.channels[MASK_STAGE]) if config.mask else None
        self.unlike = UnlikeTraining(self.backbone.channels, config.typical_images) if config.typical_images else None
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
        """The losses of a batch, each a scalar times its weight, to be added up.

        batch: "study_labels" (B,) int64 in the order of STUDY_LABELS; "images" (B, 1, S, S) uint8 or "features" (B, C);
        and for the losses "mask" and "none", where the configuration has them, "boxes", B tensors (n, 4) of xyxy
        fractions.
        """
        config, losses = self.config, {}
        if self.mask_head is None:
            features = batch["features"] if "features" in batch else self.features(batch["images"])
        else:
            maps = self.backbone(normalise(batch["images"]))
            features, drawn = maps[-1].mean(dim=(2, 3)), self.mask_head(maps[MASK_STAGE])
            wanted = torch.stack([draw_boxes(boxes, drawn.shape[-1]) for boxes in batch["boxes"]])
            losses["mask"] = config.mask * functional.binary_cross_entropy_with_logits(drawn[:, 0], wanted.to(drawn))
        logits = self.head(features)
        losses["study_label"] = self.study_loss(logits[:, : len(STUDY_LABELS)], batch["study_labels"])
        if config.none:
            empty = torch.tensor([float(len(boxes) == 0) for boxes in batch["boxes"]]).to(logits)
            losses["none"] = config.none * functional.binary_cross_entropy_with_logits(logits[:, -1], empty)
        return losses

    def study_loss(self, logits: Tensor, study_labels: Tensor) -> Tensor:
        """Cross entropy, or its focal form (1 - p)^gamma times it (Lin et al. 2017, arXiv:1708.02002).

        logits: (B, 4). study_labels: (B,) int64. The mean over images, weighted by their study label's weight.
        """
        weight = None if self.label_weights is None else self.label_weights.to(logits)
        smoothing = self.config.label_smoothing
        if not self.config.focal:
            return functional.cross_entropy(logits, study_labels, weight, label_smoothing=smoothing)
        each = functional.cross_entropy(logits, study_labels, weight, label_smoothing=smoothing, reduction="none")
        missing = 1 - logits.softmax(dim=1).gather(1, study_labels[:, None])[:, 0]
        total = len(study_labels) if weight is None else weight[study_labels].sum()
        return (missing**self.config.focal * each).sum() / total

    def outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 1, S, S) uint8 -> the parts of what `predict` gives, each (B, n)."""
        maps = self.backbone(normalise(images))
        logits = self.head(maps[-1].mean(dim=(2, 3)))
        return (logits,) if self.unlike is None else (logits, self.unlike(maps)[:, None])

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) uint8 -> (B, 4) logits in the order of STUDY_LABELS; behind them, where the configuration has
        them, those of `none` and of being unlike the training images."""
        return torch.cat(self.outputs(images), dim=1)


def probabilities(logits: Tensor) -> Tensor:
    """(B, 4 to 6) logits of `predict` -> the study labels' probabilities, which add up to 1, and those of the outputs
    behind them."""
    study_labels, others = logits[:, : len(STUDY_LABELS)], logits[:, len(STUDY_LABELS) :]
    return torch.cat([study_labels.softmax(dim=1), others.sigmoid()], dim=1)


def build_mask_head(channels: int) -> nn.Module:
    """(B, channels, S / 16, S / 16) -> (B, 1, S / 16, S / 16) logits that a cell lies in a box."""
    return nn.Sequential(nn.Conv2d(channels, MASK_WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(MASK_WIDTH, 1, 1))


def draw_boxes(boxes: Tensor, side: int) -> Tensor:
    """(n, 4) boxes as xyxy fractions -> (side, side) bool, true where a cell's centre lies in a box."""
    centres = (torch.arange(side, device=boxes.device) + 0.5) / side
    across = (centres >= boxes[:, 0:1]) & (centres < boxes[:, 2:3])  # (n, side)
    down = (centres >= boxes[:, 1:2]) & (centres < boxes[:, 3:4])
    return (down[:, :, None] & across[:, None, :]).any(dim=0)


def build(config: StudyConfig) -> Study:
    """Build the classifier with random weights, in channels-last layout."""
    return Study(config).to(memory_format=torch.channels_last)
