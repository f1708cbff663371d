"""Preset `best`: what would compete, for two T4 GPUs within Kaggle's hours; never trained here. See docs/best.md.

Sources, all public: the competition's solutions by dungnb1333 (1st place), awsaf49 (4th), b02202050 (6th), syxuming
(15th) and TheoViel (26th), and the pipelines of Ino-Ichan and nvnnghia; YOLOv5's own recipe (hyp.scratch-low of release
6); torchvision. [I] marks what was inferred from those or from counts of the competition's train set, or chosen to fit
the hours: nobody published it. This module imports no torch.
"""

from siimcovid.core.configuration import (
    Augment,
    BackboneConfig,
    FusionConfig,
    Preset,
    RcnnConfig,
    RetinanetConfig,
    StudyConfig,
    Training,
    YoloConfig,
)

#: One network for study model and Faster R-CNN, so that one pretraining on NIH serves both [I]: Ino-Ichan's and
#: nvnnghia's study models, .5805 and .585 in cross-validation, have it; its weights at torchvision are BSD-licensed.
BACKBONE = "efficientnet_v2_m"

#: Study model [I]: crops, shift-scale-rotate, brightness and contrast, blur and cut-outs are what such pipelines have
#: in common, in moderate strengths; without mixup, which has no single study label.
STUDY_AUGMENT = Augment(
    hflip=0.5,
    resized_crop=1.0,
    crop_area=0.5,
    shift_rotate=0.5,
    shift=0.0625,
    degrees=25,
    scale=0.15,
    brightness_contrast=0.5,  # of .2 each, as albumentations has it
    clahe=0.2,
    blur=0.2,
    rectangles=0.5,
    rectangle_count=1,
    rectangle_side=0.4,
)

#: Detectors on a pyramid [I]: the same, turned less, since a turned box grows, and with eight small cut-outs, too
#: small to hide a whole opacity.
PYRAMID_AUGMENT = Augment(
    hflip=0.5,
    resized_crop=1.0,
    crop_area=0.5,
    shift_rotate=0.5,
    shift=0.0625,
    degrees=10,
    scale=0.15,
    brightness_contrast=0.5,
    clahe=0.2,
    blur=0.2,
    rectangles=0.5,
    rectangle_count=8,
    rectangle_side=0.1,
)

#: Height to width of anchors: the median box of the train set is .362 of the image high and .215 wide, 1.7 times [I].
ANCHOR_RATIOS = (1.0, 1.7, 2.5)

#: Of the detectors on a pyramid. b02202050 trained on RSNA first too; so many epochs are what the hours allow [I].
PYRAMID_TRAINING = Training(
    epochs=12,
    batch=4,
    nominal_batch=16,  # Detectron's; Lin et al. 2017
    learning_rate=2e-4,  # [I] between the 1e-4 of the 1st place and the 3e-4 of our study model
    optimizer="adamw",
    weight_decay=1e-4,  # torchvision's references/detection
    schedule="cosine",
    floor=0.0,
    step_epochs=0,
    warmup=300,  # updates, one epoch [I]
    clip_norm=10,  # [I] as preset `small`
    ema=0.997,  # dungnb1333
)

BEST = Preset(
    name="best",
    cache_size=1024,
    nih_cache_size=512,  # a crop of half of it has 362 pixels for the 384 of the backbone; 1024 fill Kaggle's disk [I]
    rsna_cache_size=768,  # the largest input, Faster R-CNN's
    members=5,  # five folds [I]: +.010 to +.020 for others
    fusion=FusionConfig(
        iou=0.6,  # dungnb1333
        hflip_tta=True,  # +.003 for others
        max_boxes=30,  # [I] an image has 8 boxes at most
    ),
    backbone=BackboneConfig(
        training=Training(
            epochs=6,  # [I] what the first session holds; dungnb1333 and b02202050 pretrained on NIH and more
            batch=48,  # 24 on each of two GPUs
            learning_rate=3e-4,
            optimizer="adamw",
            weight_decay=1e-2,
            schedule="one_cycle",
            clip_norm=1,
            ema=0.999,
        ),
        augment=STUDY_AUGMENT,
        backbone=BACKBONE,
        size=384,  # at which torchvision trained the network
        infer_size=384,
        infer_batch=32,
    ),
    rcnn=RcnnConfig(
        training=PYRAMID_TRAINING,
        augment=PYRAMID_AUGMENT,
        backbone=BACKBONE,
        size=768,  # dungnb1333: r200d at 768; b02202050: 800
        infer_size=768,
        infer_batch=8,
        first_stage=2,  # strides 8 to 64: the smallest boxes have 97 pixels [I]
        frozen_stages=0,
        pyramid_channels=256,  # torchvision
        anchor_sides=(72, 144, 288, 480),  # [I] of 5 to 95 % of the train set's boxes: 97 to 352 pixels
        anchor_ratios=ANCHOR_RATIOS,
        rsna_epochs=10,
    ),
    yolo=YoloConfig(
        training=Training(
            epochs=30,  # dungnb1333's YOLOv5x6
            batch=12,
            nominal_batch=64,  # YOLOv5
            learning_rate=0.01,  # YOLOv5
            optimizer="sgd",
            momentum=0.937,  # YOLOv5
            weight_decay=5e-4,  # YOLOv5
            schedule="cosine",
            floor=0.01,  # YOLOv5
            step_epochs=0,
            warmup=245,  # updates: three epochs of 4,900 images, YOLOv5
            ema=0.997,  # YOLOv5 averages too, by a decay that grows; this one is the other models' [I]
        ),
        # YOLOv5's scale, translation and brightness; mosaic as dungnb1333, mixup half of his [I]
        augment=Augment(
            hflip=0.5, shift_rotate=1.0, shift=0.1, degrees=0, scale=0.5, value_gain=0.4, mosaic=1.0, mixup=0.25
        ),
        architecture="yolov5l",  # [I] 1st and 4th places: x6; l is what the hours allow
        size=640,
        infer_size=640,
        infer_batch=16,
        rsna_epochs=15,
        box_loss="CIoU",  # YOLOv5, as the three gains
        box_gain=0.05,
        class_gain=0.5,
        object_gain=1.0,
    ),
    retinanet=RetinanetConfig(  # for a second week, by fusion.detectors; Faster R-CNN's numbers where they fit [I]
        training=PYRAMID_TRAINING,
        augment=PYRAMID_AUGMENT,
        backbone=BACKBONE,
        size=768,
        infer_size=768,
        infer_batch=8,
        first_stage=2,
        frozen_stages=0,
        pyramid_channels=256,
        anchor_sides=(72, 144, 288),
        anchor_ratios=ANCHOR_RATIOS,
        tower_groups=32,  # Wu and He 2018, "Group Normalization": batches of four are too small for batch norm
        box_loss="GIoU",
        rsna_epochs=10,
    ),
    study=StudyConfig(
        training=Training(
            epochs=20,  # nvnnghia, b02202050
            batch=12,  # TheoViel
            learning_rate=3e-4,  # [I] Ino-Ichan 1e-4, syxuming 2.4e-4 with AdamW; nvnnghia 4e-4 with Adam
            optimizer="adamw",
            weight_decay=1e-2,  # AdamW's own in torch
            schedule="cosine",
            floor=0.0,
            step_epochs=0,
            warmup=400,
            clip_norm=1,
            ema=0.997,  # dungnb1333
        ),
        augment=STUDY_AUGMENT,
        backbone=BACKBONE,
        size=512,  # 1st, 6th, 15th and 26th places
        infer_size=512,
        infer_batch=32,
        hidden=1024,  # report, section 3.4
        dropout=0.5,
        mask=32.0,  # [I] nvnnghia: 40 times the mask's BCE
        none=0.25,  # [I]; an own `none` brought others +.003 to +.006
        hflip_tta=True,  # eight views brought dungnb1333 +.006
        frozen=False,
    ),
)
