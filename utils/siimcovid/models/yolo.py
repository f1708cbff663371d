"""YOLOv5 of the `yolov5` package with the report's losses (report, section 3.2).

In: a batch of datasets.py, images as square uint8 grey, side a multiple of 32. Out: losses, or boxes as fractions of
the image. The package's model, anchors and target assignment are used as they are. The loss is summed here, because the
package's hard-codes CIoU where the report uses GIoU; and boxes are suppressed here, because the package's own
suppression stops by the clock.
"""

import inspect
import logging
import os
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

from siimcovid.core.configuration import YoloConfig
from siimcovid.core.errors import InputError
from siimcovid.models.backbone import build_backbone, freeze_batch_norm, normalise

os.environ.setdefault("YOLO_OFFLINE", "true")  # or the import below looks for a network
_stack = inspect.stack
inspect.stack = partial(_stack, 0)  # yolov5 asks it who imports it; the source of every frame would take .8 s
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources announces its end
        import yolov5
        from yolov5.models.yolo import DetectionModel
        from yolov5.utils.loss import ComputeLoss
        from yolov5.utils.metrics import bbox_iou
finally:
    inspect.stack = _stack
logging.getLogger("yolov5").setLevel(logging.WARNING)

#: Which layers of every YOLOv5 v6 feed its neck: layer number -> stage of a Backbone (strides 8, 16, 32).
NECK_INPUTS = {4: 2, 6: 3, 9: 4}

#: Groups of a FeatureProjection's norm; they divide the widths of every YOLOv5 size.
GROUPS = 8


class BackboneFeatures(nn.Module):
    """All feature maps of a backbone, for the FeatureProjection layers that follow."""

    def __init__(self, architecture: str, frozen: int):
        super().__init__()
        self.body = freeze_batch_norm(build_backbone(architecture))
        for stage in self.body.stages[:frozen]:
            stage.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images)


class FeatureProjection(nn.Module):
    """One map of BackboneFeatures, brought to the width that the YOLOv5 neck expects there."""

    def __init__(self, stage: int, channels: int, width: int):
        super().__init__()
        self.stage = stage
        # Not a batch norm: the backbone's maps are not centred, so each step moves the projection's mean by more than
        # its deviation, and running statistics lag so far behind that evaluation sees another network than training.
        norm = nn.GroupNorm(GROUPS, width)
        self.project = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), norm, nn.SiLU())

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.project(maps[self.stage])


def with_backbone(model: DetectionModel, architecture: str, frozen: int) -> DetectionModel:
    """Put a pretrained network in the place of layers 0 to 9 of a YOLOv5, keeping its neck and head.

    architecture: of `build_backbone`. frozen: number of backbone stages without updates, from the first.
    """
    widths = {layer: model.model[layer].cv2.conv.out_channels for layer in (6, 9)}
    widths[4] = model.model[4].cv3.conv.out_channels
    widths[6] = model.model[6].cv3.conv.out_channels
    features = BackboneFeatures(architecture, frozen)
    for layer in range(10):
        if layer == 0:
            module, source = features, -1
        elif layer in NECK_INPUTS:
            stage = NECK_INPUTS[layer]
            module, source = FeatureProjection(stage, features.body.channels[stage], widths[layer]), 0
        else:
            module, source = nn.Identity(), 0
        # the attributes that the package's forward pass reads: number, source layer, name
        module.i, module.f, module.type = layer, source, type(module).__name__
        model.model[layer] = module
    model.save = sorted({0, *model.save})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # the package's 0.03 suits long training from COCO weights: in some hundred steps from nothing the running
            # statistics would still hold their initial values, and evaluation would see other features than training
            module.momentum = 0.1
    return model


class Yolo(nn.Module):
    """The detector: `forward` gives the losses of a batch, `predict` the boxes of its images."""

    def __init__(self, config: YoloConfig):
        super().__init__()
        self.config = config
        definition = Path(yolov5.__file__).parent / "models" / f"{config.architecture}.yaml"
        if not definition.is_file():
            known = ", ".join(sorted(path.stem for path in definition.parent.glob("yolov5?.yaml")))
            raise InputError(f"unknown YOLOv5 {config.architecture!r}; choose {known}")
        self.model = DetectionModel(str(definition), ch=3, nc=1)
        if config.backbone:
            self.model = with_backbone(self.model, config.backbone, config.frozen_stages)
        self.model.hyp = {"box": config.box_gain, "cls": config.class_gain, "obj": config.object_gain}
        self.model.hyp |= {"cls_pw": 1.0, "obj_pw": 1.0, "fl_gamma": 0.0, "anchor_t": 4.0}  # the package's defaults
        self.criterion: ComputeLoss | None = None

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) uint8 -> (B, 3, S, S) float32: ImageNet's normalisation for a backbone, [0, 1] without."""
        if self.config.backbone:
            return normalise(images)
        return (images.float() / 255).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """The losses of report equation 2 with their gains, each a scalar."""
        maps = self.model(self.prepare(batch["images"]))
        if not self.training:
            maps = maps[1]
        rows = [
            torch.cat([boxes.new_full((len(boxes), 1), k), boxes.new_zeros(len(boxes), 1), boxes], dim=1)
            for k, boxes in enumerate(batch["boxes"])
        ]
        targets = torch.cat(rows)  # image, class, xyxy
        targets[:, 2:] = box_convert(targets[:, 2:], "xyxy", "cxcywh")
        return self.losses(maps, targets)

    def losses(self, maps: list[Tensor], targets: Tensor) -> dict[str, Tensor]:
        """Box, objectness and class loss.

        Args:
            maps: per stride (B, anchors, S / stride, S / stride, 6) raw outputs.
            targets: (n, 6): image number, class, centre x, centre y, width, height as fractions.
        """
        device = maps[0].device
        if self.criterion is None or self.criterion.device != device:
            self.criterion = ComputeLoss(self.model)
        gains, kind = self.model.hyp, self.config.box_loss
        _, boxes, indices, anchors = self.criterion.build_targets(maps, targets)
        box_loss = torch.zeros((), device=device)
        object_loss = torch.zeros((), device=device)
        for level, raw in enumerate(maps):
            image, anchor, row, column = indices[level]
            objectness = torch.zeros(raw.shape[:4], dtype=raw.dtype, device=device)
            if len(image):
                assigned = raw[image, anchor, row, column]
                centre = assigned[:, :2].sigmoid() * 2 - 0.5
                size = (assigned[:, 2:4].sigmoid() * 2) ** 2 * anchors[level]
                overlap = bbox_iou(torch.cat([centre, size], 1), boxes[level], **{kind: True}).squeeze(1)
                box_loss = box_loss + (1 - overlap).mean()
                objectness[image, anchor, row, column] = overlap.detach().clamp(0).to(objectness.dtype)
            object_loss = object_loss + self.criterion.BCEobj(raw[..., 4], objectness) * self.criterion.balance[level]
        # One class: its loss is zero, as in the package. The package sums over the images of a nominal batch where we
        # take the mean, so that accumulation and several processes give the same gradient.
        scale = self.config.training.nominal_batch or self.config.training.batch
        return {"box": box_loss * gains["box"] * scale, "objectness": object_loss * gains["obj"] * scale}

    def candidates(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) uint8 -> (B, candidates, 6): cx, cy, w, h in pixels, objectness, class."""
        return self.model(self.prepare(images))[0]

    @torch.inference_mode()
    def predict(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(B, 1, S, S) uint8 -> per image (boxes (n, 4) xyxy in [0, 1], scores (n,) in [0, 1], highest first)."""
        return self.suppress(self.candidates(images), images.shape[-1])

    def suppress(self, output: Tensor, side: int) -> list[tuple[Tensor, Tensor]]:
        """The candidates of images of `side` pixels -> what `predict` gives."""
        found = []
        for candidates in output:
            # the objectness alone: the confidence in the only class has no loss, and drifts wherever training takes it
            scores = candidates[:, 4]
            order = scores.topk(min(len(scores), 1000)).indices  # more than any image holds
            order = order[scores[order] > self.config.score_threshold]
            boxes = box_convert(candidates[order, :4], "cxcywh", "xyxy").clamp(0, side) / side
            scores = scores[order]
            keep = batched_nms(boxes, scores, torch.zeros_like(order), self.config.nms_iou)[: self.config.max_boxes]
            found.append((boxes[keep], scores[keep]))
        return found


def build(config: YoloConfig) -> Yolo:
    """Build the detector with random weights, in channels-last layout."""
    return Yolo(config).to(memory_format=torch.channels_last)
