"""From measured seconds to what each step of a plan will take.

In: `Profile`, the seconds that step_profile.py measured on the first images, and a RunPlan. Out: step -> seconds.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from siimcovid.core.configuration import Preset, validation_passes
from siimcovid.core.stage_names import stage_of
from siimcovid.kernel.queue_forecast import QUEUE, Machine, of_queue

if TYPE_CHECKING:
    from siimcovid.kernel.run_plan import RunPlan

#: Seconds that the notebook's figures take, whatever the images: learning curves, the gallery, figures of the scores.
PICTURES = {"curves": 1.0, "gallery": 2.0, "figures": 3.0}

#: The step that fits the ensemble, and its seconds for an image and a detector's pass, measured with 100 boxes each.
FIT_ENSEMBLE = "fit_ensemble"
FIT_SECONDS = 0.02

#: Steps without which rows of the submission hold the train set's frequencies.
ESSENTIAL = ("detect", "classify", "submit")

#: Seconds of inference for a million pixels of a network on two CPU cores, for a stage of which nothing could be
#: measured: Faster R-CNN with ResNeXt-101 takes 5.0 s and YOLOv5l 1.4 s at 512 x 512, with EfficientNet-Lite0 .095 s
#: and YOLOv5n .035 s at 256 x 256. A step of training takes three times as long: forward, and backward twice.
MEGAPIXEL_SECONDS = {"full": 20.0, "small": 1.5, "demo": 1.5}
TRAINING_FACTOR = 3.0

#: How many times faster than two CPU cores a GPU is at least, for the same guess.
GPU_FACTOR = 20.0


@dataclass(frozen=True)
class StageProfile:
    """Seconds of one model at the side in pixels that was asked for."""

    once: float = 0.0  # of training, whatever the epochs: building the model, features, writing
    epoch: float = 0.0  # of an epoch on all its images, with `validation`, saving and evaluating
    validation: float = 0.0  # the part of `epoch` behind the last step: the held-out fold, saving
    load: float = 0.0  # of predicting, whatever the images
    image: float = 0.0  # of predicting one

    def scaled(self, factor: float) -> "StageProfile":
        """All seconds times a factor."""
        return StageProfile(**{item.name: factor * getattr(self, item.name) for item in fields(self)})


@dataclass(frozen=True)
class Profile:
    """What was measured, and how much there is to do."""

    prepare: float = 0.0  # seconds an image
    to_prepare: int = 0  # images
    stages: Mapping[str, StageProfile] = field(default_factory=dict)
    test_images: int = 0
    train_images: int = 0
    tables: float = 0.0  # seconds a test image for fusing and writing
    trained: Mapping[str, int] = field(default_factory=dict)  # model -> epochs that an earlier session has trained
    score: bool = False  # whether the ground truth is at hand
    machine: Machine = field(default_factory=Machine)  # what trainings side by side share
    held_out: int = 0  # images that no stage is trained on, to fit the ensemble

    def stage(self, name: str) -> StageProfile:
        """The seconds of a stage; zeros where it was not measured."""
        return self.stages.get(name, StageProfile())


def forecast(profile: Profile, plan: "RunPlan") -> dict[str, float]:
    """Seconds that each step takes, in the order of the steps."""
    seconds = {"prepare": profile.prepare * profile.to_prepare}
    known = {stage: profile.stage(stage) for stage in plan.stages}
    area = {stage: plan.scale.get(stage, 1.0) ** 2 for stage in plan.stages}
    trainings = model_seconds(profile, plan)
    if plan.jobs > 1:
        seconds[QUEUE] = of_queue(trainings, profile.machine, plan.jobs, waits_for(plan))
    else:
        seconds |= {f"fit {name}": each for name, each in trainings.items()}
    if plan.epochs:
        seconds["curves"] = PICTURES["curves"]
    loads = {s: known[s].load for s in plan.stages}  # of a model, with the first images that it predicts
    if plan.epochs and profile.held_out:
        passes_of = {s: plan.study_models if s == "study" else 1 + plan.hflip_tta for s in plan.stages}
        images = {s: profile.held_out * passes_of[s] for s in plan.stages}
        seconds[FIT_ENSEMBLE] = sum(loads[stage_of(name)] for name in plan.models(plan.stages))
        seconds[FIT_ENSEMBLE] += sum(known[s].image * area[s] * images[s] for s in plan.stages)
        loads = dict.fromkeys(loads, 0.0)
        seconds[FIT_ENSEMBLE] += FIT_SECONDS * sum(images[s] for s in plan.detectors)
    passes = {s: known[s].image * area[s] * profile.test_images for s in plan.stages}
    detectors = [stage_of(name) for name in plan.models(plan.detectors)]
    seconds["detect"] = sum(loads[s] + passes[s] * (2 if plan.hflip_tta else 1) for s in detectors)
    seconds["detect"] += profile.tables * profile.test_images
    seconds["classify"] = (loads["study"] + passes["study"]) * len(plan.models(["study"]))
    if plan.pseudo:
        share = 1 + profile.test_images / max(1, profile.train_images)
        again = sum(training_seconds(known[s], plan.pseudo * share) * area[s] for s in detectors)
        seconds["fine_tune_on_pseudo_labels"] = again + seconds["detect"]
    seconds["gallery"] = PICTURES["gallery"]
    seconds["submit"] = profile.tables * profile.test_images
    seconds["score"] = profile.tables * profile.test_images if profile.score else 0.0
    seconds["figures"] = PICTURES["figures"] if profile.score else 0.0
    return seconds


def waits_for(plan: "RunPlan") -> dict[str, str]:
    """Detector -> the study model whose backbone it starts from, of each member."""
    return {name: name.replace(stage_of(name), "study", 1) for name in plan.models(plan.from_study)}


def model_seconds(profile: Profile, plan: "RunPlan") -> dict[str, float]:
    """Seconds that each model of the plan has yet to train with the whole machine, in the order of the steps."""
    seconds = {}
    for name in plan.models(plan.stages):
        stage = stage_of(name)
        epochs = max(0, plan.epochs.get(stage, 0) - profile.trained.get(name, 0))
        seconds[name] = training_seconds(profile.stage(stage), epochs) * plan.scale.get(stage, 1.0) ** 2
    return seconds


def training_seconds(stage: StageProfile, epochs: float) -> float:
    """Seconds of training for that many epochs; none without one."""
    return stage.once + stage.epoch * epochs if epochs else 0.0


def seconds_after(step: str, seconds: Mapping[str, float], only: Collection[str] | None = None) -> float:
    """Seconds of the steps that come after one, of a forecast; 0 where the forecast has no such step.

    only: the steps that count; None for all.
    """
    names = list(seconds)
    later = names[names.index(step) + 1 :] if step in seconds else []
    return sum(seconds[name] for name in later if only is None or name in only)


def guess_stage(stage: str, profile: Profile, preset: Preset, trains: bool, gpu: bool) -> StageProfile:
    """Seconds of a stage that could not be measured, rather too high: a step must not count as nothing.

    They are the highest of the stages that were measured, times the ratio of the images' areas where this stage's are
    larger. Where none was, they follow from MEGAPIXEL_SECONDS and the preset.
    """
    config = getattr(preset, stage)
    guesses = []
    for other, measured in profile.stages.items():
        theirs = getattr(preset, other)
        if measured.image:
            guesses.append(measured.scaled(max(1.0, (config.infer_size / theirs.infer_size) ** 2)))
    if not guesses or (trains and not any(guess.epoch for guess in guesses)):
        guesses.append(_guess_from_preset(stage, profile, preset, trains, gpu))
    return _highest(guesses)


def _guess_from_preset(stage: str, profile: Profile, preset: Preset, trains: bool, gpu: bool) -> StageProfile:
    config = getattr(preset, stage)
    megapixel = MEGAPIXEL_SECONDS.get(preset.name, max(MEGAPIXEL_SECONDS.values())) / (GPU_FACTOR if gpu else 1.0)
    image = megapixel * config.infer_size**2 / 1e6
    if not trains:
        return StageProfile(image=image)
    training = TRAINING_FACTOR * megapixel * config.size**2 / 1e6
    passes = validation_passes(config) if config.training.validate else 0
    validation = image * passes * profile.train_images / preset.folds
    return StageProfile(
        image=image, validation=validation, epoch=training * profile.train_images + validation, once=10 * training
    )


def _highest(profiles: Iterable[StageProfile]) -> StageProfile:
    """The highest of each of the seconds."""
    profiles = list(profiles)
    return StageProfile(**{f.name: max(getattr(p, f.name) for p in profiles) for f in fields(StageProfile)})


def corrected(profile: Profile, stage: str, image: float, not_measured: Iterable[str]) -> Profile:
    """The profile after a stage took `image` seconds for each test image, in a whole pass.

    Its own price becomes what was measured. Where that is more than was foreseen, the prices of the stages that have
    predicted nothing yet grow by the same factor: what slowed one model down, as a slow disk, slows the others down.
    """
    before = profile.stage(stage)
    factor = max(1.0, image / before.image) if before.image else 1.0
    stages = dict(profile.stages) | {stage: replace(before, image=image)}
    for other in not_measured:
        if other != stage and other in stages:
            stages[other] = replace(stages[other], image=stages[other].image * factor)
    return replace(profile, stages=stages)
