"""The nine hours of the competition's kernel, worked out for its hidden test set on a T4.

In: the `full` preset; FLOPs counted on its own models. Out: Markdown. Nothing here was measured on a GPU: what the plan
assumes stands in its first table, so that a reader with one can put his own figures in.
"""

from siimcovid.core import stage_names
from siimcovid.core.presets import FULL
from siimcovid.kernel.gpu_throughput import SPEED, TRAINING_FACTOR
from siimcovid.kernel.session_jobs import (
    DISK,
    HIDDEN_IMAGES,
    IMAGE_BYTES,
    NIH_IMAGES,
    PREPARE,
    PROCESSORS,
    RSNA_IMAGES,
    TRAIN_IMAGES,
)
from siimcovid.kernel.time_budget import RESERVE
from siimcovid.models.flops import forward_flops

HOURS = 9.0

#: A P100 has no tensor cores and is rated at 18.7e12 in fp16; about a fifth is assumed.
P100_SPEED = 4e12


def hours_table() -> str:
    """Minutes of inference and hours of training, each stage of the `full` preset, as Markdown."""
    lines = [
        f"Assumed of a T4 under autocast: {SPEED / 1e12:.0f} TFLOP/s (rated: 65). Input folder: {DISK / 1e6:.0f} MB/s. "
        f"{PROCESSORS} processors, {PREPARE:.3f} s of one for an image (measured: `make bench`).",
        "",
        f"| Inference, {HIDDEN_IMAGES:,} images | per image | minutes |",
        "|---|---|---|",
    ]
    reading, decoding = HIDDEN_IMAGES * IMAGE_BYTES / DISK / 60, PREPARE * HIDDEN_IMAGES / PROCESSORS / 60
    lines.append(f"| read {HIDDEN_IMAGES * IMAGE_BYTES / 1e9:.0f} GB | {IMAGE_BYTES / 1e6:.0f} MB | {reading:.0f} |")
    lines.append(f"| decode and shrink, while reading | {PREPARE:.3f} s / {PROCESSORS} | ({decoding:.1f}) |")
    total = max(reading, decoding)
    for stage in stage_names.SUBMISSION_STAGES:
        config = getattr(FULL, stage)
        side = config.augment.crop or config.infer_size
        flops = forward_flops(stage, config, side)
        minutes = flops / SPEED * HIDDEN_IMAGES / 60
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
        (stage, "SIIM", TRAIN_IMAGES, getattr(FULL, stage).training.epochs) for stage in stage_names.SUBMISSION_STAGES
    ]
    for stage, data, images, epochs in lessons:
        config = getattr(FULL, stage)
        side = config.augment.crop or config.size
        # a frozen backbone needs no backward pass
        flops = forward_flops(stage, config, side) * (1 if stage == "study" and config.frozen else TRAINING_FACTOR)
        hours = [flops / speed * images * share * epochs / 3600 for speed in (SPEED, P100_SPEED)]
        lines.append(
            f"| {stage} at {side}, {data} | {images * share:,.0f} | {flops / 1e9:.0f} | {epochs} "
            f"| {hours[0]:.1f} | {hours[1]:.1f} |"
        )
    return "\n".join(lines)
