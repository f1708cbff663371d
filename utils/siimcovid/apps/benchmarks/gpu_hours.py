"""The nine hours of the competition's kernel, worked out for its hidden test set on a T4.

In: the `full` preset; FLOPs counted on its own models. Out: Markdown. Nothing here was measured on a GPU: what the plan
assumes stands in its first table, so that a reader with one can put his own figures in.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from siimcovid.core import stage_names
from siimcovid.core.presets import FULL
from siimcovid.kernel.time_budget import RESERVE
from siimcovid.models import checkpoints
from siimcovid.models.backbone import normalise

IMAGES, HOURS = 6334, 9.0

#: A T4's tensor cores are rated at 65e12 operations a second in fp16. NVIDIA states 800 to 950 images of 224 pixels a
#: second for ResNeXt-101 32x4d in mixed precision (DeepLearningExamples), which is 13e12 to 15e12; half is assumed.
SPEED = 6e12
#: A P100 has no tensor cores and is rated at 18.7e12 in fp16; about a fifth is assumed.
P100_SPEED = 4e12

#: Images that each stage is trained on: NIH ChestX-ray14, RSNA's with boxes (6,012 of its 26,684), the competition's.
NIH_IMAGES, RSNA_IMAGES = 112_120, 6012

#: Seconds of one processor for an image: `siimcovid bench` on 2.5 GHz EPYC cores; 7 % of the images are JPEG Lossless.
PREPARE = 0.93 * 0.05 + 0.07 * 0.22
#: Bytes a second that the kernel's mounted input folder delivers, and the bytes of the hidden images.
DISK, TEST_BYTES = 200e6, 108e9
PROCESSORS = 4  # of Kaggle's GPU machines


def forward_flops(stage: str, config: Any, side: int) -> float:
    """Floating-point operations of a forward pass on one image, a multiplication and an addition counted as two."""
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


def hours_table() -> str:
    """Minutes of inference and hours of training, each stage of the `full` preset, as Markdown."""
    lines = [
        f"Assumed of a T4 under autocast: {SPEED / 1e12:.0f} TFLOP/s (rated: 65). Input folder: {DISK / 1e6:.0f} MB/s. "
        f"{PROCESSORS} processors, {PREPARE:.3f} s of one for an image (measured: `make bench`).",
        "",
        f"| Inference, {IMAGES:,} images | per image | minutes |",
        "|---|---|---|",
    ]
    reading, decoding = TEST_BYTES / DISK / 60, PREPARE * IMAGES / PROCESSORS / 60
    lines.append(f"| read {TEST_BYTES / 1e9:.0f} GB | {TEST_BYTES / IMAGES / 1e6:.0f} MB | {reading:.0f} |")
    lines.append(f"| decode and shrink, while reading | {PREPARE:.3f} s / {PROCESSORS} | ({decoding:.1f}) |")
    total = max(reading, decoding)
    for stage in stage_names.SUBMISSION_STAGES:
        config = getattr(FULL, stage)
        side = config.augment.crop or config.infer_size
        flops = forward_flops(stage, config, side)
        minutes = flops / SPEED * IMAGES / 60
        total += minutes
        lines.append(f"| {stage} at {side} | {flops / 1e9:.0f} GFLOP, {flops / SPEED:.3f} s | {minutes:.1f} |")
    lines.append("| fusion, submission, start | | 2 |")
    total += 2
    lines.append(f"| **together** | | **{total:.0f}** |")
    free = HOURS * (1 - RESERVE) - 2 * reading / 60  # the train and the test images are read before training
    lines += [
        "",
        f"MODE `infer` takes {total / 60:.1f} of the {HOURS:.0f} hours. MODE `finetune` reads the train images too "
        f"and starts no epoch in the last {RESERVE:.0%} of the time; this leaves {free:.1f} hours for training:",
        "",
        "| Training, 4 of 5 folds | images | GFLOP an image, fwd and bwd | epochs | hours, T4 | hours, P100 |",
        "|---|---|---|---|---|---|",
    ]
    share = (FULL.folds - 1) / FULL.folds
    lessons = [("backbone", "NIH", NIH_IMAGES, FULL.backbone.training.epochs)]
    lessons += [("yolo", "RSNA", RSNA_IMAGES, FULL.yolo.rsna_epochs)]
    lessons += [
        (stage, "SIIM", IMAGES, getattr(FULL, stage).training.epochs) for stage in stage_names.SUBMISSION_STAGES
    ]
    for stage, data, images, epochs in lessons:
        config = getattr(FULL, stage)
        side = config.augment.crop or config.size
        # a backward pass costs two forward ones; a frozen backbone needs none
        flops = forward_flops(stage, config, side) * (1 if stage == "study" and config.frozen else 3)
        hours = [flops / speed * images * share * epochs / 3600 for speed in (SPEED, P100_SPEED)]
        lines.append(
            f"| {stage} at {side}, {data} | {images * share:,.0f} | {flops / 1e9:.0f} | {epochs} "
            f"| {hours[0]:.1f} | {hours[1]:.1f} |"
        )
    return "\n".join(lines)
