"""Floating-point operations of a stage's model, counted on its shapes: nothing is computed, and no GPU is needed."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from siimcovid.models import checkpoints
from siimcovid.models.backbone import normalise


def forward_flops(stage: str, config: Any, side: int) -> float:
    """Floating-point operations of a forward pass on one image, a multiplication and an addition counted as two.

    side: of the square input in pixels.
    """
    model = checkpoints.build_model(stage, config).eval().to("meta")  # counts shapes, computes nothing
    images = torch.zeros(1, 1, side, side, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        _forward(stage, config, model, images)
    return float(counter.get_total_flops())


def _forward(stage: str, config: Any, model: Any, images: Tensor) -> None:
    if stage in ("backbone", "study"):
        model.predict(images)
    elif stage == "yolo":
        model.model.train()(model.prepare(images))  # without the decoding of boxes, which counts for nothing
    else:  # without suppression, whose outcome depends on values
        detector = model.detector
        maps = list(detector.backbone(normalise(images)).values())
        if stage == "retinanet":
            detector.head(maps)
            return
        detector.rpn.head(maps)
        pooled = torch.zeros(config.proposals, config.pyramid_channels, 7, 7, device="meta")
        detector.roi_heads.box_predictor(detector.roi_heads.box_head(pooled))
