"""The hours of a run: how many are left, what the rest will take, and what is dropped so that it fits.

In: the seconds that costs.py measured on the first images. Out: `RunPlan`, what of the preset will run, and the seconds
each step will take. Only `TimeBudget` reads the time, from a source that a test can replace.

What does not fit is dropped in this order: pseudo-labels, the mirrored images (test-time augmentation), the further
members of a fold ensemble, training epochs down to a quarter, resolution to three quarters and to half of the side, and
then the detectors but the first, the last one first.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.overrides import override
from siimcovid.core.stage_names import member, stage_of

#: Share of the hours that is planned for nothing: what no measurement on the first images foresees.
RESERVE = 0.1

#: Training epochs are cut in twentieths down to a quarter of what was asked; below that, resolution goes first.
EPOCH_SHARES = tuple(k / 20 for k in range(20, 4, -1))

#: What resolution is cut to, as a share of the side.
SCALES = (0.75, 0.5)

#: Seconds that the notebook's pictures take, whatever the images: learning curves, the gallery, figures of the scores.
PICTURES = {"curves": 1.0, "gallery": 2.0, "figures": 3.0}


@dataclass
class TimeBudget:
    """Counts the hours from `started`, both in seconds of the source `now`."""

    hours: float
    started: float | None = None  # None for the moment it is made
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if self.started is None:
            self.started = self.now()

    def spent(self) -> float:
        """Seconds since the start."""
        return self.now() - self.started

    def left(self) -> float:
        """Seconds that may still be used; below 0 where the reserve is being eaten."""
        return self.hours * 3600 * (1 - RESERVE) - self.spent()


@dataclass(frozen=True)
class StageProfile:
    """Measured seconds of one model at the side in pixels that was asked for; 0 where it was not measured."""

    once: float = 0.0  # of training, whatever the epochs: building, features, writing
    epoch: float = 0.0  # of training on all its images, validation included
    load: float = 0.0  # of predicting, whatever the images
    image: float = 0.0  # of predicting one


@dataclass(frozen=True)
class Profile:
    """What was measured, and how much there is to do."""

    prepare: float = 0.0  # seconds an image
    to_prepare: int = 0  # images
    stages: Mapping[str, StageProfile] = field(default_factory=dict)
    test_images: int = 0
    train_images: int = 0
    tables: float = 0.0  # seconds a test image for fusing and writing
    score: bool = False  # whether answers are at hand


@dataclass(frozen=True)
class RunPlan:
    """What runs. Goes into run.json and comes back from it, so that a restart trains with the same settings."""

    hflip_tta: bool  # detectors see mirrored images too
    detectors: tuple[str, ...]
    epochs: Mapping[str, int] = field(default_factory=dict)  # of each stage that is trained
    scale: Mapping[str, float] = field(default_factory=dict)  # share of the side asked for; 1 where absent
    batch: Mapping[str, int] = field(default_factory=dict)  # training batch where memory was too small for the preset's
    members: int = 1  # models of each stage
    pseudo: int = 0  # epochs on pseudo-labels
    members_at_start: Mapping[str, int] = field(
        default_factory=dict
    )  # models of a stage when its training began: see trained.py

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that run."""
        return (*self.detectors, "study")

    def models(self, stages: Iterable[str]) -> list[str]:
        """The members of stages: the first of each, then the second of each, and so on."""
        return [
            member(s, n) for n in range(self.members) for s in stages if n < self.members_at_start.get(s, self.members)
        ]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"detectors": list(self.detectors)}

    @classmethod
    def from_json(cls, values: Any) -> "RunPlan":
        """The inverse of `to_json`; raises InputError for anything else."""
        try:
            parts = {key: {k: kind(v) for k, v in values[key].items()} for key, kind in KINDS.items()}
            counts = {key: int(values[key]) for key in ("members", "pseudo")}
            return cls(bool(values["hflip_tta"]), tuple(map(str, values["detectors"])), **counts, **parts)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InputError(f"the plan in run.json is damaged ({error!r}): remove the file") from None


KINDS = {"epochs": int, "scale": float, "batch": int, "members_at_start": int}


def plan_of_preset(preset: Preset, detectors: tuple[str, ...], trained: bool) -> RunPlan:
    """All that the preset asks for; `trained` where the models are trained first."""
    names = (*detectors, "study") if trained else ()
    epochs = {name: getattr(preset, name).training.epochs for name in names}
    pseudo = preset.pseudo.epochs if trained else 0
    return RunPlan(preset.fusion.hflip_tta, detectors, epochs, members=preset.members, pseudo=pseudo)


def forecast(profile: Profile, plan: RunPlan) -> dict[str, float]:
    """Seconds that each step takes, in the order of the steps."""
    seconds = {"prepare": profile.prepare * profile.to_prepare}
    known = {stage: profile.stages.get(stage, StageProfile()) for stage in plan.stages}
    area = {stage: plan.scale.get(stage, 1.0) ** 2 for stage in plan.stages}
    for name in plan.models(plan.stages):
        stage = stage_of(name)
        seconds[f"fit {name}"] = _training(known[stage], plan.epochs.get(stage, 0)) * area[stage]
    if plan.epochs:
        seconds["curves"] = PICTURES["curves"]
    predict_images = {
        s: stage_profile.load + stage_profile.image * area[s] * profile.test_images
        for s, stage_profile in known.items()
    }
    detectors = [stage_of(name) for name in plan.models(plan.detectors)]
    seconds["detect"] = sum(predict_images[s] for s in detectors) * (2 if plan.hflip_tta else 1)
    seconds["detect"] += profile.tables * profile.test_images
    seconds["classify"] = predict_images["study"] * len(plan.models(["study"]))
    if plan.pseudo:
        share = 1 + profile.test_images / max(1, profile.train_images)
        again = sum(_training(known[s], plan.pseudo * share) * area[s] for s in detectors)
        seconds["fine_tune_on_pseudo_labels"] = again + seconds["detect"]
    seconds["gallery"] = PICTURES["gallery"]
    seconds["submit"] = profile.tables * profile.test_images
    seconds["score"] = profile.tables * profile.test_images if profile.score else 0.0
    seconds["figures"] = PICTURES["figures"] if profile.score else 0.0
    return seconds


def _training(stage_profile: StageProfile, epochs: float) -> float:
    """Seconds of training for that many epochs."""
    return stage_profile.once + stage_profile.epoch * epochs if epochs else 0.0


def after(step: str, seconds: Mapping[str, float]) -> float:
    """Seconds of all steps that come after one, of a forecast."""
    names = list(seconds)
    return sum(seconds[name] for name in names[names.index(step) + 1 :]) if step in seconds else 0.0


def fit_plan(
    profile: Profile,
    requested: RunPlan,
    available: float,
    now: RunPlan | None = None,
    locked: Collection[str] = (),
    done: Collection[str] = (),
) -> RunPlan:
    """The most of `requested` whose steps take no more than `available` seconds together, by the order of dropping.

    settled: stages whose training has begun; their settings stay as they are in `now`. done: steps that take no more
    time. Where nothing fits, the least is returned: the clock ends the steps then.
    """
    fixed = {s: {key: getattr(now, key)[s] for key in KINDS if s in getattr(now, key)} for s in locked}

    def with_fixed(plan: RunPlan) -> RunPlan:
        parts = {key: dict(getattr(plan, key)) for key in KINDS}
        for stage, values in fixed.items():
            for key in KINDS:
                parts[key].pop(stage, None)
            for key, value in values.items():
                parts[key][stage] = value
        return replace(plan, **parts)

    for candidate in _candidates(requested):
        chosen = with_fixed(candidate)
        if sum(seconds for step, seconds in forecast(profile, chosen).items() if step not in done) <= available:
            break
    return chosen


def _candidates(requested: RunPlan) -> Iterator[RunPlan]:
    """From all to the least, in the order of dropping."""
    yield requested
    yield replace(requested, pseudo=0)
    yield (plain := replace(requested, pseudo=0, hflip_tta=False))
    for members in range(requested.members - 1, 0, -1):
        yield (plain := replace(plain, members=members))
    for scale in (1.0, *SCALES):
        scaled = replace(plain, scale=dict.fromkeys(requested.stages, scale) if scale < 1 else {})
        yield from (_shortened(scaled, share) for share in EPOCH_SHARES)
    for count in range(len(requested.detectors) - 1, 0, -1):
        fewer = replace(scaled, detectors=requested.detectors[:count])
        yield from (_shortened(fewer, share) for share in EPOCH_SHARES)
    yield _shortened(replace(scaled, detectors=requested.detectors[:1]), 0.0)


def _shortened(plan: RunPlan, share: float) -> RunPlan:
    """With that share of the epochs, at least one each, and of the stages that run only."""
    epochs = {s: max(1, math.ceil(n * share - 1e-9)) for s, n in plan.epochs.items() if s in plan.stages}
    return replace(plan, epochs=epochs)


def apply(preset: Preset, plan: RunPlan) -> Preset:
    """The preset as it will run."""
    changes: dict[str, Any] = {"fusion.hflip_tta": plan.hflip_tta, "members": plan.members}
    changes["pseudo.epochs"] = plan.pseudo
    for stage, epochs in plan.epochs.items():
        changes[f"{stage}.training.epochs"] = epochs
    for stage, batch in plan.batch.items():
        training = getattr(preset, stage).training
        changes[f"{stage}.training.batch"] = batch
        changes[f"{stage}.training.nominal_batch"] = training.nominal_batch or training.batch
    for stage, scale in plan.scale.items():
        config = getattr(preset, stage)
        changes[f"{stage}.size"] = scaled_side(config.size, scale)
        changes |= {f"{stage}.{key}": value for key, value in smaller_images(config, scale).items()}
        if stage == "rcnn":  # anchors are in pixels: they keep their size on the image
            changes["rcnn.anchor_sides"] = tuple(max(4, round(side * scale)) for side in config.anchor_sides)
    return override(preset, changes)


def smaller_images(config: Any, scale: float) -> dict[str, int]:
    """Changes to a stage's configuration that make it look at smaller images."""
    changes = {"infer_size": scaled_side(config.infer_size, scale)}
    if config.augment.crop:
        changes["augment.crop"] = scaled_side(config.augment.crop, scale)
    return changes


def scaled_side(side: int, scale: float) -> int:
    """A side in pixels that 32 divides, as every model's strides need."""
    return side if scale == 1 else max(32, int(side * scale) // 32 * 32)


def dropped(requested: RunPlan, chosen: RunPlan) -> list[str]:
    """A sentence for each thing that was dropped."""
    lines = []
    if requested.pseudo and not chosen.pseudo:
        lines.append("pseudo-labels: the detectors do not train on test images")
    if requested.hflip_tta and not chosen.hflip_tta:
        lines.append("test-time augmentation: mirrored images are left out")
    models = {len(chosen.models([s])) for s in chosen.stages}
    if min(models) < requested.members:
        lines.append(
            f"fold ensemble: {' or '.join(map(str, sorted(models)))} of {requested.members} models of each stage"
        )
    cut = [f"{s} {n} of {requested.epochs[s]}" for s, n in chosen.epochs.items() if n < requested.epochs.get(s, n)]
    if cut:
        lines.append(f"training epochs: {', '.join(cut)}")
    scales = {chosen.scale[s] for s in chosen.stages if chosen.scale.get(s, 1.0) < 1}
    if scales:
        lines.append(f"resolution: {min(scales):.0%} of the side in pixels")
    left_out = [s for s in requested.detectors if s not in chosen.detectors]
    if left_out:
        lines.append(f"detectors: {', '.join(left_out)} left out")
    return lines
