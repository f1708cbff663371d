"""RetinaNet on a backbone with a feature pyramid (Lin et al. 2017, "Focal Loss for Dense Object Detection").

In: a batch of datasets.py, images as square uint8 grey, side a multiple of 32. Out: losses, or boxes as fractions of
the image. torchvision's anchors, heads and losses do the work; its own input transform is replaced, since it would
resize and normalise the images a second time.
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


class IdentityTransform(nn.Module):
    """In the place of torchvision's transform: leaves images, targets and detections as they are."""

    def forward(self, images: Tensor, targets: list[dict] | None = None) -> tuple[ImageList, list[dict] | None]:
        """(B, 3, S, S) -> the same with its sizes noted, and the targets."""
        return ImageList(images, [tuple(images.shape[-2:])] * len(images)), targets

    def postprocess(self, detections: list[dict], *sizes: list[tuple[int, int]]) -> list[dict]:
        """The detections, which are in pixels of the images given."""
        return detections


class BatchNormalisedRetinaNet(RetinaNet):
    """torchvision's RetinaNet with losses divided by the batch's number of positive anchors, not by each image's.

    A box has tens of positive anchors, and an image without boxes is divided by one: image by image, as in the paper, a
    wrong box on an empty image would weigh as much as tens of those on an image with boxes.
    """

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """As RetinaNet.compute_loss, with the batch joined to one image of B times the anchors, (1, B A, ...)."""
        matched, boxes_before = [], 0
        for target, image_anchors in zip(targets, anchors, strict=True):
            below = self.proposal_matcher.BELOW_LOW_THRESHOLD
            matches = torch.full((len(image_anchors),), below, device=image_anchors.device)
            if len(target["boxes"]):
                matches = self.proposal_matcher(box_iou(target["boxes"], image_anchors))
            matched.append(torch.where(matches >= 0, matches + boxes_before, matches))
            boxes_before += len(target["boxes"])
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
        self.detector = BatchNormalisedRetinaNet(
            Pyramid(config),
            num_classes=1,
            anchor_generator=anchors,
            head=head,
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_iou,
            detections_per_img=config.max_boxes,
            topk_candidates=config.candidates,
        )
        self.detector.transform = IdentityTransform()

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
