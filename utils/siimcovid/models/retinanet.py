"""RetinaNet on a backbone with a feature pyramid (Lin et al. 2017, "Focal Loss for Dense Object Detection").

In: a batch of data.py, images as square uint8 grey of any size that 32 divides. Out: losses, or boxes as fractions of
the image. torchvision's anchors, heads and losses do the work; its own input transform is passed by, since it would
resize what we sized and normalise what we normalised.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import box_iou

from siimcovid.core.configuration import RetinanetConfig
from siimcovid.models.backbone import normalise
from siimcovid.models.feature_pyramid import Pyramid


class AsGiven(nn.Module):
    """In the place of torchvision's transform: leaves images, targets and detections as they are."""

    def forward(self, images: Tensor, targets: list[dict] | None = None) -> tuple[ImageList, list[dict] | None]:
        """(B, 3, S, S) -> the same with its sizes noted, and the targets."""
        return ImageList(images, [tuple(images.shape[-2:])] * len(images)), targets

    def postprocess(self, detections: list[dict], *sizes: list[tuple[int, int]]) -> list[dict]:
        """The detections, which are in pixels of the images given."""
        return detections


class WholeBatch(RetinaNet):
    """torchvision's RetinaNet with losses per anchor that is at a box of the batch, not of each image as in the paper.

    A box has tens of such anchors, and an image without boxes is divided by one: image by image, a wrong box on an
    empty image would weigh as much as tens of those on an image with boxes.
    """

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """As RetinaNet.compute_loss, with the batch joined to one image of B times the anchors, (1, B A, ...)."""
        matched, before = [], 0
        for target, at in zip(targets, anchors, strict=True):
            found = torch.full((len(at),), self.proposal_matcher.BELOW_LOW_THRESHOLD, device=at.device)
            if len(target["boxes"]):
                found = self.proposal_matcher(box_iou(target["boxes"], at))
            matched.append(torch.where(found >= 0, found + before, found))
            before += len(target["boxes"])
        joined = {key: torch.cat([target[key] for target in targets]) for key in ("boxes", "labels")}
        outputs = {key: output.flatten(0, 1)[None] for key, output in head_outputs.items()}
        return self.head.compute_loss([joined], outputs, [torch.cat(anchors)], [torch.cat(matched)])


class Retinanet(nn.Module):
    """The detector: `forward` gives the losses of a batch, `predict` the boxes of its images."""

    def __init__(self, config: RetinanetConfig):
        super().__init__()
        sizes = tuple(tuple(side * scale for scale in config.anchor_scales) for side in config.anchor_sides)
        anchors = AnchorGenerator(sizes, aspect_ratios=(config.anchor_ratios,) * len(sizes))
        norm = partial(nn.GroupNorm, config.tower_groups) if config.tower_groups else None
        head = RetinaNetHead(
            config.pyramid_channels, anchors.num_anchors_per_location()[0], num_classes=1, norm_layer=norm
        )
        for part in (head.classification_head, head.regression_head):
            part.conv = part.conv[: config.tower_convolutions]  # torchvision always makes four
        head.regression_head._loss_type = config.box_loss.lower()  # as torchvision's own second version sets it
        self.detector = WholeBatch(
            Pyramid(config),
            num_classes=1,
            anchor_generator=anchors,
            head=head,
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_iou,
            detections_per_img=config.max_boxes,
            topk_candidates=config.candidates,
        )
        self.detector.transform = AsGiven()

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """The focal loss of the anchors and the loss of the boxes, each a scalar."""
        images = normalise(batch["images"])
        side = images.shape[-1]
        targets = [
            {"boxes": boxes * side, "labels": torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)}
            for boxes in batch["boxes"]
        ]
        return self.detector(images, targets)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(B, 1, S, S) uint8 -> per image (boxes (n, 4) xyxy in [0, 1], scores (n,) in [0, 1], highest first)."""
        side = images.shape[-1]
        return [(d["boxes"] / side, d["scores"]) for d in self.detector(normalise(images))]


def build(config: RetinanetConfig) -> Retinanet:
    """Build the detector with random weights, in channels-last layout."""
    return Retinanet(config).to(memory_format=torch.channels_last)
