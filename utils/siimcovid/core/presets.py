"""Every number of the system: preset `full` (the report's) here, `small` (the same system for two CPU cores) and `demo`
(`small` for a few hundred images) in preset_small.py, and `best` (what would compete, for two GPUs) in preset_best.py.

What they are made of stands in configuration.py. This module imports no torch.
"""

from collections.abc import Mapping
from typing import Any

from siimcovid.core.configuration import (
    Augment,
    BackboneConfig,
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
from siimcovid.core.preset_small import DEMO, SMALL

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

PRESETS = {"full": FULL, "small": SMALL, "demo": DEMO, "best": BEST}


def load_preset(name: str, overrides: Mapping[str, Any] | None = None) -> Preset:
    """A preset by name, with dotted overrides such as {"rcnn.training.epochs": 3}."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; choose {' or '.join(PRESETS)}")
    return override(PRESETS[name], overrides or {}).check()
