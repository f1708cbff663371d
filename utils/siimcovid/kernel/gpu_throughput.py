"""Images a second of one GPU for each stage of a preset: estimates for a T4, or what the smoke kernel measured there.

In: a preset, and perhaps the smoke kernel's profile.json (kaggle/smoke_test.py). Out: stage -> Throughput. Nothing here
was measured on a GPU: every estimate is one, and says so.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siimcovid.core.configuration import STAGES, Preset
from siimcovid.core.errors import InputError
from siimcovid.core.stage_names import DETECTORS

#: A T4's tensor cores are rated at 65e12 operations a second in fp16. NVIDIA states 800 to 950 images of 224 pixels a
#: second for ResNeXt-101 32x4d in mixed precision (DeepLearningExamples), which is 13e12 to 15e12; half is assumed.
SPEED = 6e12

#: A backward pass costs two forward ones.
TRAINING_FACTOR = 3.0


@dataclass(frozen=True)
class T4Estimate:
    """Training images a second of one T4 in half precision at a side in pixels: an estimate, not a measurement."""

    side: int
    images: float


#: Of the models of preset `best`: EfficientNetV2-M with a mask head, YOLOv5l, EfficientNetV2-M with a pyramid.
BEST_ON_T4 = {"study": T4Estimate(512, 28.0), "yolo": T4Estimate(640, 20.0), "rcnn": T4Estimate(768, 9.0)}

#: Images that a model of `best` predicts in the time in which it trains on one. With it the inference of 6,334 images
#: by five folds and their mirror images takes about 1.7 hours on one T4, which is an estimate too.
PREDICTED_PER_TRAINED = 2.4


@dataclass(frozen=True)
class Throughput:
    """Images a second of a stage's model on one GPU. measured: whether it was measured, or is an estimate.

    predict counts an image once, also where the study model looks at its mirror image too.
    """

    train: float
    predict: float
    measured: bool = False


def estimates(preset: Preset) -> dict[str, Throughput]:
    """Stage -> estimate for one T4: by BEST_ON_T4 for `best`, by the models' floating-point operations for others."""
    stages = ("backbone", *preset.stages)
    return {stage: _of_table(preset, stage) or _of_flops(preset, stage) for stage in stages}


def _of_table(preset: Preset, stage: str) -> Throughput | None:
    """By BEST_ON_T4, in proportion to the area of the input; the backbone alone costs what the study model costs."""
    known = BEST_ON_T4.get("study" if stage == "backbone" else stage)
    if preset.name != "best" or known is None:
        return None
    config = getattr(preset, stage)
    passes = 2 if getattr(config, "hflip_tta", False) else 1
    train = known.images * (known.side / config.size) ** 2
    return Throughput(train, known.images * (known.side / config.infer_size) ** 2 * PREDICTED_PER_TRAINED / passes)


def _of_flops(preset: Preset, stage: str) -> Throughput:
    """By SPEED and what a forward pass on one image takes."""
    from siimcovid.models.flops import forward_flops

    config = getattr(preset, stage)
    passes = 2 if getattr(config, "hflip_tta", False) else 1
    factor = 1.0 if getattr(config, "frozen", False) else TRAINING_FACTOR
    side, infer_side = (config.augment.crop or side for side in (config.size, config.infer_size))
    flops = forward_flops(stage, config, side)
    return Throughput(SPEED / (factor * flops), SPEED / (passes * flops * (infer_side / side) ** 2))


def with_profile(found: Mapping[str, Throughput], profile: Path, preset: Preset) -> dict[str, Throughput]:
    """The throughputs with those of profile.json, as the smoke kernel writes it, in the place of estimates.

    A stage that failed there, or was not tried, keeps its estimate; the backbone takes after the study model where both
    train the same network. Raises InputError where the file is no such profile, or is of another preset.
    """
    stages = _read(profile, preset)
    measured = {stage: _measured(stages[stage], getattr(preset, stage)) for stage in found if stage in stages}
    study, backbone = preset.study, preset.backbone
    if "study" in measured and "backbone" not in measured and study.backbone == backbone.backbone and not study.frozen:
        factor = (study.size / backbone.size) ** 2
        measured["backbone"] = Throughput(*(factor * getattr(measured["study"], k) for k in ("train", "predict")), True)
    return {**found, **measured}


def _measured(facts: Mapping[str, Any], config: Any) -> Throughput:
    """What was measured, in proportion to the area where the preset's sides are others."""
    train = facts["train_images_per_second"] * (facts["size"] / config.size) ** 2
    predict = facts["predict_images_per_second"] * (facts["infer_size"] / config.infer_size) ** 2
    predict /= 2 if getattr(config, "hflip_tta", False) else 1
    return Throughput(train, predict, True)


def _read(profile: Path, preset: Preset) -> dict[str, Mapping[str, Any]]:
    """Stage -> what the smoke kernel measured of it, of those that did not fail."""
    try:
        facts = json.loads(Path(profile).read_text(encoding="utf-8"))
        stages = {name: one for name, one in facts["stages"].items() if name in STAGES and "error" not in one}
        keys = ("train_images_per_second", "predict_images_per_second", "size", "infer_size")
        whole = all(float(one[key]) > 0 for one in stages.values() for key in keys)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{profile} is no profile.json of the smoke kernel ({type(error).__name__}: {error}): give the file that "
            "`make kaggle-output SMOKE=1` downloads"
        ) from None
    if not whole or not stages:
        raise InputError(f"{profile} holds no images a second: the smoke kernel measured no stage, see its log")
    if facts.get("preset", preset.name) != preset.name:
        raise InputError(
            f"{profile} was measured with preset {facts['preset']!r}, not {preset.name!r}: push the smoke kernel with "
            f"PRESET={preset.name}"
        )
    return stages


def passes(preset: Preset, stage: str) -> int:
    """How often a stage's model is given each test image; the study model sees mirror images within one."""
    return 2 if stage in DETECTORS and preset.fusion.hflip_tta else 1
