"""A stage's configuration for smaller images: sides, crops and, for training, anchors.

In: the configuration of a stage and a share of the side, 0 to 1. Out: changes for `core.overrides.override`.
"""

from typing import Any

from siimcovid.core.configuration import STRIDE


def scaled_side(side: int, scale: float, stride: int) -> int:
    """A side in pixels times `scale`, rounded down to a multiple of `stride`; unchanged for a scale of 1."""
    return side if scale == 1 else max(stride, int(side * scale) // stride * stride)


def largest_stride(config: Any) -> int:
    """Pixels of the input for one cell of the coarsest map: 64 for YOLOv5's P6 architectures, else 32."""
    return getattr(config, "largest_stride", STRIDE)


def training_changes(config: Any, scale: float) -> dict[str, Any]:
    """Changes to a configuration by which a stage trains, and predicts, on smaller images.

    Anchors are in pixels: those of Faster R-CNN and RetinaNet keep their size on the image. YOLOv5's belong to its
    architecture, and its package fits them to no data set here.
    """
    changes = {"size": scaled_side(config.size, scale, largest_stride(config)), **inference_changes(config, scale)}
    if hasattr(config, "anchor_sides"):
        changes["anchor_sides"] = tuple(max(4, round(side * scale)) for side in config.anchor_sides)
    return changes


def inference_changes(config: Any, scale: float) -> dict[str, Any]:
    """Changes to a configuration by which a trained model predicts on smaller images.

    Its anchors stay as they were trained: a smaller lesion is found by the smaller anchors of a finer level. Faster
    R-CNN of `small`, trained at 256 on the demo competition, has opacity AP .628 there; at 192 .717 with its own
    anchors and .626 with anchors of three quarters of their sides, at 128 .530 and .355 with half of them.
    """
    changes: dict[str, Any] = {"infer_size": scaled_side(config.infer_size, scale, largest_stride(config))}
    if config.augment.crop:
        changes["augment.crop"] = scaled_side(config.augment.crop, scale, STRIDE)
    return changes
