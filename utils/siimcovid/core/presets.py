"""Every number of the system: presets `full` (the report's) and `small` (the same system for two CPU cores) here, and
`best` (what would compete, for two GPUs) in preset_best.py.

What they are made of stands in configuration.py. This module imports no torch.
"""

from collections.abc import Mapping
from typing import Any

from siimcovid.core.configuration import (
    Augment,
    BackboneConfig,
    FusionConfig,
    LateFusionConfig,
    Preset,
    RcnnConfig,
    RetinanetConfig,
    StudyConfig,
    Training,
    YoloConfig,
)
from siimcovid.core.errors import InputError
from siimcovid.core.overrides import override
from siimcovid.core.preset_best import BEST

#: The report's changes to images for its classifiers: section 3.1, "Training of the backbone", and 3.4.
CLASSIFIER_AUGMENT = Augment(hflip=0.5, blur=0.3, shift_rotate=1.0, shift=0.0, degrees=20, erase=0.3, crop=224)

#: And for Faster R-CNN: section 3.1.
PYRAMID_AUGMENT = Augment(
    hflip=0.3, shift_rotate=0.3, degrees=20, sharpen=0.5, blur=0.25, brightness_contrast=0.3, cutouts=0.3
)

FULL = Preset(
    name="full",
    cache_size=1024,
    backbone=BackboneConfig(  # report, section 3.1
        training=Training(epochs=35, batch=32, learning_rate=0.001, validate=True),
        augment=CLASSIFIER_AUGMENT,
        backbone="resnext101_32x8d",
        size=256,
        infer_size=256,
        infer_batch=32,
    ),
    rcnn=RcnnConfig(  # report, section 3.1
        training=Training(epochs=50, batch=10, learning_rate=0.001, validate=True),
        augment=PYRAMID_AUGMENT,
        backbone="resnext101_32x8d",
        size=512,
        infer_size=1024,
        infer_batch=6,
        first_stage=1,
        frozen_stages=0,
        pyramid_channels=256,
        anchor_sides=(32, 64, 128, 256, 512),
    ),
    yolo=YoloConfig(  # report, section 3.2
        training=Training(
            epochs=35,
            batch=3,
            learning_rate=0.01,
            momentum=0.937,
            weight_decay=0.0005,
            warmup=1000,
            nominal_batch=64,
            validate=True,
        ),
        augment=Augment(hflip=0.5, vflip=0.1, value_gain=0.4, mixup=0.5),
        architecture="yolov5l",
        size=512,
        infer_size=512,
        infer_batch=8,
    ),
    retinanet=RetinanetConfig(
        # Lin et al. 2017, section 4: SGD, .01 for 16 images an update, decay .0001, sides 32 to 512 at strides 8 to
        # 128; the warm-up is that of their published code, Detectron. Backbone, sizes, epochs, schedule and changes to
        # images are Faster R-CNN's, since theirs were for COCO.
        training=Training(
            epochs=50,
            batch=8,
            learning_rate=0.01,
            nesterov=False,
            weight_decay=0.0001,
            warmup=500,
            nominal_batch=16,
            validate=True,
        ),
        augment=PYRAMID_AUGMENT,
        backbone="resnext101_32x8d",
        size=512,
        infer_size=1024,
        infer_batch=6,
        first_stage=2,
        frozen_stages=0,
        pyramid_channels=256,
        anchor_sides=(32, 64, 128, 256, 512),
    ),
    study=StudyConfig(  # report, section 3.4
        training=Training(epochs=58, batch=15, learning_rate=0.0005, validate=True),
        augment=CLASSIFIER_AUGMENT,
        backbone="resnext101_32x8d",
        size=256,
        infer_size=256,
        infer_batch=32,
    ),
)

SMALL = Preset(
    name="small",
    cache_size=320,
    # fitted by `siimcovid ablate` on out-of-fold predictions of the synthetic competitions with seeds 0, 1 and 2
    fusion=FusionConfig(calibration=(0.8814, -1.4514, 1.2588, 0.6136)),
    late_fusion=LateFusionConfig(
        none=(-1.3489, 0.8311, 0.6172, 0.0648, 0.0),
        laterality=(
            0.5503,
            -0.0768,
            0.0458,
            0.7996,
            -2.0271,
            -0.0475,
            -0.6944,
            -0.5936,
            1.4768,
            0.1243,
            0.6486,
            -0.206,
        ),
        label_laterality=(
            3.2844,
            0.0197,
            0.0059,
            0.0064,
            0.0846,
            1.8358,
            0.0175,
            3.9708,
            0.6611,
            0.7219,
            3.4932,
            0.4073,
        ),
        label_power=0.35,
    ),
    backbone=BackboneConfig(
        training=Training(
            epochs=5,
            batch=16,
            learning_rate=1e-3,
            optimizer="adamw",
            weight_decay=1e-2,
            schedule="one_cycle",
            clip_norm=1,
        ),
        augment=Augment(hflip=0.5, brightness_contrast=0.5),
        backbone="efficientnet_lite0",
        size=256,
        infer_size=256,
        infer_batch=32,
    ),
    rcnn=RcnnConfig(
        training=Training(
            epochs=7,
            batch=4,
            learning_rate=6e-4,
            optimizer="adamw",
            weight_decay=1e-4,
            schedule="one_cycle",
            clip_norm=10,
        ),
        augment=Augment(hflip=0.5, brightness_contrast=0.5),
        backbone="efficientnet_lite0",
        size=256,
        infer_size=256,
        infer_batch=8,
        first_stage=2,
        frozen_stages=2,
        pyramid_channels=96,
        anchor_sides=(24, 48, 96, 160),
        anchor_ratios=(1.0, 1.7, 2.5),
        proposals_before_nms=400,
        proposals_train=200,
        proposals=100,
        boxes_per_image=64,
        head_width=256,
        nms_iou=0.4,
        rsna_epochs=7,
    ),
    yolo=YoloConfig(
        training=Training(
            epochs=9,
            batch=4,
            learning_rate=1e-3,
            optimizer="adamw",
            weight_decay=1e-4,
            schedule="one_cycle",
            clip_norm=10,
        ),
        augment=Augment(hflip=0.5, brightness_contrast=0.5),
        architecture="yolov5n",
        nms_iou=0.4,
        backbone="efficientnet_lite0",
        rsna_epochs=9,
        frozen_stages=2,
        size=256,
        infer_size=256,
        infer_batch=8,
    ),
    retinanet=RetinanetConfig(
        training=Training(
            epochs=9,
            batch=4,
            learning_rate=6e-4,
            optimizer="adamw",
            weight_decay=1e-4,
            schedule="one_cycle",
            clip_norm=10,
        ),
        augment=Augment(hflip=0.5, brightness_contrast=0.5),
        backbone="efficientnet_lite0",
        size=256,
        infer_size=256,
        infer_batch=8,
        first_stage=2,
        frozen_stages=2,
        pyramid_channels=96,
        anchor_sides=(24, 48, 96),
        anchor_ratios=(1.0, 1.7, 2.5),
        tower_convolutions=2,
        tower_groups=8,
        box_loss="GIoU",
        candidates=300,
        nms_iou=0.4,
        rsna_epochs=9,
    ),
    study=StudyConfig(
        training=Training(
            epochs=40,
            batch=16,
            learning_rate=1e-3,
            optimizer="adamw",
            weight_decay=1e-2,
            schedule="one_cycle",
            balance="oversample",
        ),
        augment=Augment(hflip=0.5),
        backbone="efficientnet_lite0",
        size=320,
        infer_size=320,
        infer_batch=16,
        dropout=0.5,
        views=2,
    ),
)

PRESETS = {"full": FULL, "small": SMALL, "best": BEST}


def load_preset(name: str, overrides: Mapping[str, Any] | None = None) -> Preset:
    """A preset by name, with dotted overrides such as {"rcnn.training.epochs": 3}."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; choose {' or '.join(PRESETS)}")
    return override(PRESETS[name], overrides or {}).check()
