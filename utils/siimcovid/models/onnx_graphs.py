"""What of each model ONNX Runtime computes, and how the rest, in PyTorch, makes predictions of it.

A graph takes uint8 images of one size in batches of any number, so normalisation is part of it. Suppression, which
depends on the data, stays in torchvision. Faster R-CNN has two graphs, before its proposals and behind the pooling.
No model's module is imported, so that one whose packages are missing does not take the others with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from siimcovid.models.backbone import normalise
from siimcovid.models.roi_align_inference import pool

if TYPE_CHECKING:
    from siimcovid.models.faster_rcnn import Rcnn
    from siimcovid.models.retinanet import Retinanet
    from siimcovid.models.study_classifier import Study
    from siimcovid.models.yolo import Yolo

#: Computes the graph of that name: its inputs -> its outputs.
Run = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Graph:
    """A part of a model to be exported: `module` on `example`, whose first axis is free."""

    module: nn.Module
    example: Tensor


class StudyLogits(nn.Module):
    """(B, 1, S, S) uint8 -> the parts of the logits of Study.predict."""

    def __init__(self, model: "Study"):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.model.outputs(images)


class YoloCandidates(nn.Module):
    """(B, 1, S, S) uint8 -> the candidates that Yolo.suppress takes."""

    def __init__(self, model: "Yolo"):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.candidates(images)


class PyramidOutputs(nn.Module):
    """(B, 1, S, S) uint8 -> Faster R-CNN's L pyramid maps, channels last, then L times the objectness of the anchors,
    (B, A, h, w), and L times their offsets, (B, 4 A, h, w)."""

    def __init__(self, model: "Rcnn"):
        super().__init__()
        self.detector = model.detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = list(self.detector.backbone(normalise(images)).values())
        objectness, offsets = self.detector.rpn.head(maps)
        return *(one.permute(0, 2, 3, 1) for one in maps), *objectness, *offsets


class BoxHead(nn.Module):
    """(n, C, 7, 7) pooled features -> the logits and the offsets of Faster R-CNN's box head."""

    def __init__(self, model: "Rcnn"):
        super().__init__()
        self.heads = model.detector.roi_heads

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads.box_predictor(self.heads.box_head(pooled))


class AnchorOutputs(nn.Module):
    """(B, 1, S, S) uint8 -> RetinaNet's logits (B, N, 1) and offsets (B, N, 4) of all N anchors."""

    def __init__(self, model: "Retinanet"):
        super().__init__()
        self.detector = model.detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.detector.head(list(self.detector.backbone(normalise(images)).values()))
        return outputs["cls_logits"], outputs["bbox_regression"]


#: Stage -> what its one graph computes; Faster R-CNN has two.
NETWORKS = {"study": StudyLogits, "yolo": YoloCandidates, "retinanet": AnchorOutputs}


def graphs(stage: str, model: nn.Module, side: int) -> dict[str, Graph]:
    """The graphs of a stage's model made for inference, by name, for images of `side` pixels.

    Raises ValueError for a stage that has none.
    """
    images = torch.zeros((1, 1, side, side), dtype=torch.uint8)
    if stage == "rcnn":
        pooler = model.detector.roi_heads.box_roi_pool
        pooled = torch.zeros((1, model.detector.backbone.out_channels, *pooler.output_size))
        return {"pyramid": Graph(PyramidOutputs(model), images), "boxes": Graph(BoxHead(model), pooled)}
    if stage not in NETWORKS:
        raise ValueError(f"no graph of stage {stage} is known")
    return {"network": Graph(NETWORKS[stage](model), images)}


def predict(stage: str, model: nn.Module, run: Run, images: Tensor) -> Tensor | list[tuple[Tensor, Tensor]]:
    """What the stage's `model.predict(images)` gives, with `run(name, input)` for the graphs."""
    side = images.shape[-1]
    if stage == "study":
        return torch.cat(run("network", images), dim=1)
    if stage == "yolo":
        return model.suppress(run("network", images)[0], side)
    detections = _rcnn(model, run, images) if stage == "rcnn" else _retinanet(model, run, images)
    return [(boxes / side, scores) for boxes, scores in detections]


def _sizes(images: Tensor) -> ImageList:
    """What torchvision's anchor generator asks of a batch: the images' sizes."""
    return ImageList(images, [tuple(images.shape[-2:])] * len(images))


def _rcnn(model: "Rcnn", run: Run, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """As torchvision's RegionProposalNetwork.forward and RoIHeads.forward: boxes in pixels and scores."""
    rpn, heads, side = model.detector.rpn, model.detector.roi_heads, images.shape[-1]
    outputs = run("pyramid", images)
    levels = len(outputs) // 3
    maps, objectness, offsets = outputs[:levels], outputs[levels : 2 * levels], outputs[2 * levels :]
    batch = _sizes(images)
    anchors = rpn.anchor_generator(batch, objectness)  # which have the maps' sizes
    counts = [level[0].numel() for level in objectness]
    objectness, offsets = concat_box_prediction_layers(objectness, offsets)
    boxes = rpn.box_coder.decode(offsets, anchors).view(len(images), -1, 4)
    proposals, _ = rpn.filter_proposals(boxes, objectness, batch.image_sizes, counts)
    if not sum(map(len, proposals)):  # of outputs that are not finite
        return [(boxes.new_zeros((0, 4)), boxes.new_zeros(0))] * len(images)
    pooled = pool(heads.box_roi_pool, maps[: len(heads.box_roi_pool.featmap_names)], proposals, side)
    found, scores, _ = heads.postprocess_detections(*run("boxes", pooled), proposals, batch.image_sizes)
    return list(zip(found, scores, strict=True))


def _retinanet(model: "Retinanet", run: Run, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """As torchvision's RetinaNet.forward: boxes in pixels and scores."""
    detector, side, batch = model.detector, images.shape[-1], _sizes(images)
    logits, offsets = run("network", images)
    finest = 2 ** (model.detector.backbone.first + 1)
    cells = [-(-side // (finest << level)) for level in range(len(detector.anchor_generator.sizes))]
    anchors = detector.anchor_generator(batch, [torch.empty((1, 1, one, one)) for one in cells])
    counts = [
        one * one * each for one, each in zip(cells, detector.anchor_generator.num_anchors_per_location(), strict=True)
    ]
    outputs = {"cls_logits": list(logits.split(counts, 1)), "bbox_regression": list(offsets.split(counts, 1))}
    split = [list(of_image.split(counts)) for of_image in anchors]
    found = detector.postprocess_detections(outputs, split, batch.image_sizes)
    return [(one["boxes"], one["scores"]) for one in found]
