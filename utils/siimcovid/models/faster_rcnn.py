"""Faster R-CNN on a backbone with a feature pyramid (report, section 3.1; Ren et al. 2015, Lin et al. 2017).

In: a batch of datasets.py, images as square uint8 grey, side a multiple of 32. Out: losses, or boxes as fractions of
the image. torchvision's region proposal network and box head do the work; its own input transform is not called, since
it would resize and normalise the images a second time.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import complete_box_iou_loss

from siimcovid.core.configuration import RcnnConfig
from siimcovid.models.backbone import normalise
from siimcovid.models.feature_pyramid import Pyramid
from siimcovid.models.roi_align_training import BoxPooling


class CompleteIouHeads(RoIHeads):
    """torchvision's box head with the CIoU loss of its boxes (Zheng et al. 2021) in the place of smooth L1."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As RoIHeads.forward; while training, the box loss is (1 - CIoU) of boxes in pixels, over all samples."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        proposals, _, labels, true_offsets = self.select_training_samples(proposals, targets)
        logits, offsets = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        labels, true_offsets, anchors = torch.cat(labels), torch.cat(true_offsets), torch.cat(proposals)
        positive = torch.where(labels > 0)[0]
        # (samples, classes, 4) -> the offsets of each positive sample's own class
        offsets = offsets.reshape(len(labels), -1, 4)[positive, labels[positive]]
        predicted, true = (
            self.box_coder.decode_single(part.float(), anchors[positive]) for part in (offsets, true_offsets[positive])
        )
        return [], {
            "loss_classifier": functional.cross_entropy(logits, labels),
            "loss_box_reg": complete_box_iou_loss(predicted, true, reduction="sum") / len(labels),
        }


def build_detector(config: RcnnConfig) -> FasterRCNN:
    """torchvision's Faster R-CNN on a `Pyramid`, with the box loss that the configuration names."""
    pyramid = Pyramid(config)
    levels = 5 - config.first_stage
    anchors = AnchorGenerator(
        sizes=tuple((float(side),) for side in config.anchor_sides),
        aspect_ratios=(config.anchor_ratios,) * len(config.anchor_sides),
    )
    detector = FasterRCNN(
        pyramid,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=config.proposals_before_nms,
        rpn_pre_nms_top_n_test=config.proposals_before_nms,
        rpn_post_nms_top_n_train=config.proposals_train,
        rpn_post_nms_top_n_test=config.proposals,
        box_roi_pool=BoxPooling([str(k) for k in range(levels)], output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(config.pyramid_channels * 7 * 7, config.head_width),
        box_predictor=FastRCNNPredictor(config.head_width, num_classes=2),
        box_batch_size_per_image=config.boxes_per_image,
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.nms_iou,
        box_detections_per_img=config.max_boxes,
    )
    if config.box_loss == "CIoU":
        detector.roi_heads = complete_iou_heads(detector.roi_heads)
    return detector


def complete_iou_heads(heads: RoIHeads) -> CompleteIouHeads:
    """The same modules and settings with the CIoU loss; no weight is drawn anew."""
    matcher, sampler = heads.proposal_matcher, heads.fg_bg_sampler
    return CompleteIouHeads(
        heads.box_roi_pool,
        heads.box_head,
        heads.box_predictor,
        fg_iou_thresh=matcher.high_threshold,
        bg_iou_thresh=matcher.low_threshold,
        batch_size_per_image=sampler.batch_size_per_image,
        positive_fraction=sampler.positive_fraction,
        bbox_reg_weights=heads.box_coder.weights,
        score_thresh=heads.score_thresh,
        nms_thresh=heads.nms_thresh,
        detections_per_img=heads.detections_per_img,
    )


class Rcnn(nn.Module):
    """The detector: `forward` gives the losses of a batch, `predict` the boxes of its images."""

    def __init__(self, config: RcnnConfig):
        super().__init__()
        self.detector = build_detector(config)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """The four losses of Faster R-CNN, each a scalar."""
        images = normalise(batch["images"])
        side = images.shape[-1]
        targets = [
            {"boxes": boxes * side, "labels": torch.ones(len(boxes), dtype=torch.int64, device=boxes.device)}
            for boxes in batch["boxes"]
        ]
        _, losses = self.run(images, targets)
        return losses

    @torch.inference_mode()
    def predict(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(B, 1, S, S) uint8 -> per image (boxes (n, 4) xyxy in [0, 1], scores (n,) in [0, 1], highest first)."""
        detections, _ = self.run(normalise(images))
        side = images.shape[-1]
        return [(d["boxes"] / side, d["scores"]) for d in detections]

    def run(self, images: Tensor, targets: list[dict] | None = None) -> tuple[list[dict], dict[str, Tensor]]:
        """Backbone, proposals and box head on normalised images -> torchvision's detections in pixels, and losses."""
        sizes = [tuple(images.shape[-2:])] * len(images)
        maps = self.detector.backbone(images)
        proposals, rpn_losses = self.detector.rpn(ImageList(images, sizes), maps, targets)
        detections, box_losses = self.detector.roi_heads(maps, proposals, sizes, targets)
        return detections, {**rpn_losses, **box_losses}


def build(config: RcnnConfig) -> Rcnn:
    """Build the detector with random weights, in channels-last layout."""
    return Rcnn(config).to(memory_format=torch.channels_last)
