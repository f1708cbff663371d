"""The hours of a run: how many are left, what the rest will take, and what is dropped so that it fits.

In: the seconds that costs.py measured on the first films. Out: `Choices`, what of the preset will run, and the seconds
each step will take. Only `Clock` reads the time, from a source that a test can replace.

What does not fit is dropped in this order: pseudo-labels, the mirrored films (test-time augmentation), the further
members of a fold ensemble, training epochs down to a quarter, resolution to three quarters and to half of the side, and
then the detectors but the first, the last one first.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from siimcovid.checkpoint import family, member
from siimcovid.configs import Preset
from siimcovid.errors import InputError
from siimcovid.overrides import override

#: Share of the hours that is planned for nothing: what no measurement on the first films foresees.
RESERVE = 0.1

#: Training epochs are cut in twentieths down to a quarter of what was asked; below that, resolution goes first.
EPOCH_SHARES = tuple(k / 20 for k in range(20, 4, -1))

#: What resolution is cut to, as a share of the side.
SCALES = (0.75, 0.5)

#: Seconds that the notebook's pictures take, whatever the films: learning curves, the gallery, figures of the scores.
PICTURES = {"curves": 1.0, "gallery": 2.0, "figures": 3.0}


@dataclass
class Clock:
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
class StageCost:
    """Measured seconds of one model at the side in pixels that was asked for; 0 where it was not measured."""

    once: float = 0.0  # of training, whatever the epochs: building, features, writing
    epoch: float = 0.0  # of training on all its films, validation included
    load: float = 0.0  # of predicting, whatever the films
    film: float = 0.0  # of predicting one


@dataclass(frozen=True)
class Costs:
    """What was measured, and how much there is to do."""

    prepare: float = 0.0  # seconds a film
    to_prepare: int = 0  # films
    stages: Mapping[str, StageCost] = field(default_factory=dict)
    test_films: int = 0
    train_films: int = 0
    tables: float = 0.0  # seconds a test film for fusing and writing
    score: bool = False  # whether answers are at hand


@dataclass(frozen=True)
class Choices:
    """What runs. Goes into run.json and comes back from it, so that a restart trains with the same settings."""

    flips: bool  # detectors see mirrored films too
    detectors: tuple[str, ...]
    epochs: Mapping[str, int] = field(default_factory=dict)  # of each stage that is trained
    scale: Mapping[str, float] = field(default_factory=dict)  # share of the side asked for; 1 where absent
    batch: Mapping[str, int] = field(default_factory=dict)  # training batch where memory was too small for the preset's
    members: int = 1  # models of each stage
    pseudo: int = 0  # epochs on pseudo-labels
    among: Mapping[str, int] = field(default_factory=dict)  # models of a stage when its training began: see trained.py

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that run."""
        return (*self.detectors, "study")

    def models(self, stages: Iterable[str]) -> list[str]:
        """The members of stages: the first of each, then the second of each, and so on."""
        return [member(s, n) for n in range(self.members) for s in stages if n < self.among.get(s, self.members)]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"detectors": list(self.detectors)}

    @classmethod
    def from_json(cls, values: Any) -> "Choices":
        """The inverse of `to_json`; raises InputError for anything else."""
        try:
            parts = {key: {k: kind(v) for k, v in values[key].items()} for key, kind in KINDS.items()}
            counts = {key: int(values[key]) for key in ("members", "pseudo")}
            return cls(bool(values["flips"]), tuple(map(str, values["detectors"])), **counts, **parts)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InputError(f"the plan in run.json is damaged ({error!r}): remove the file") from None


KINDS = {"epochs": int, "scale": float, "batch": int, "among": int}


def asked_choices(preset: Preset, detectors: tuple[str, ...], trained: bool) -> Choices:
    """All that the preset asks for; `trained` where the models are trained first."""
    names = (*detectors, "study") if trained else ()
    epochs = {name: getattr(preset, name).training.epochs for name in names}
    pseudo = preset.pseudo.epochs if trained else 0
    return Choices(preset.fusion.flips, detectors, epochs, members=preset.members, pseudo=pseudo)


def forecast(costs: Costs, choices: Choices) -> dict[str, float]:
    """Seconds that each step takes, in the order of the steps."""
    seconds = {"prepare": costs.prepare * costs.to_prepare}
    known = {stage: costs.stages.get(stage, StageCost()) for stage in choices.stages}
    area = {stage: choices.scale.get(stage, 1.0) ** 2 for stage in choices.stages}
    for name in choices.models(choices.stages):
        stage = family(name)
        seconds[f"fit {name}"] = _training(known[stage], choices.epochs.get(stage, 0)) * area[stage]
    if choices.epochs:
        seconds["curves"] = PICTURES["curves"]
    look = {s: cost.load + cost.film * area[s] * costs.test_films for s, cost in known.items()}
    detectors = [family(name) for name in choices.models(choices.detectors)]
    seconds["detect"] = sum(look[s] for s in detectors) * (2 if choices.flips else 1)
    seconds["detect"] += costs.tables * costs.test_films
    seconds["classify"] = look["study"] * len(choices.models(["study"]))
    if choices.pseudo:
        share = 1 + costs.test_films / max(1, costs.train_films)
        again = sum(_training(known[s], choices.pseudo * share) * area[s] for s in detectors)
        seconds["relearn"] = again + seconds["detect"]
    seconds["gallery"] = PICTURES["gallery"]
    seconds["submit"] = costs.tables * costs.test_films
    seconds["score"] = costs.tables * costs.test_films if costs.score else 0.0
    seconds["figures"] = PICTURES["figures"] if costs.score else 0.0
    return seconds


def _training(cost: StageCost, epochs: float) -> float:
    """Seconds of training for that many epochs."""
    return cost.once + cost.epoch * epochs if epochs else 0.0


def after(step: str, seconds: Mapping[str, float]) -> float:
    """Seconds of all steps that come after one, of a forecast."""
    names = list(seconds)
    return sum(seconds[name] for name in names[names.index(step) + 1 :]) if step in seconds else 0.0


def choose(
    costs: Costs,
    asked: Choices,
    available: float,
    now: Choices | None = None,
    settled: Collection[str] = (),
    done: Collection[str] = (),
) -> Choices:
    """The most of `asked` whose steps take no more than `available` seconds together, by the order of dropping.

    settled: stages whose training has begun; their settings stay as they are in `now`. done: steps that take no more
    time. Where nothing fits, the least is returned: the clock ends the steps then.
    """
    fixed = {s: {key: getattr(now, key)[s] for key in KINDS if s in getattr(now, key)} for s in settled}

    def with_fixed(choices: Choices) -> Choices:
        parts = {key: dict(getattr(choices, key)) for key in KINDS}
        for stage, values in fixed.items():
            for key in KINDS:
                parts[key].pop(stage, None)
            for key, value in values.items():
                parts[key][stage] = value
        return replace(choices, **parts)

    for candidate in _candidates(asked):
        chosen = with_fixed(candidate)
        if sum(seconds for step, seconds in forecast(costs, chosen).items() if step not in done) <= available:
            break
    return chosen


def _candidates(asked: Choices) -> Iterator[Choices]:
    """From all to the least, in the order of dropping."""
    yield asked
    yield replace(asked, pseudo=0)
    yield (plain := replace(asked, pseudo=0, flips=False))
    for members in range(asked.members - 1, 0, -1):
        yield (plain := replace(plain, members=members))
    for scale in (1.0, *SCALES):
        scaled = replace(plain, scale=dict.fromkeys(asked.stages, scale) if scale < 1 else {})
        yield from (_shortened(scaled, share) for share in EPOCH_SHARES)
    for count in range(len(asked.detectors) - 1, 0, -1):
        fewer = replace(scaled, detectors=asked.detectors[:count])
        yield from (_shortened(fewer, share) for share in EPOCH_SHARES)
    yield _shortened(replace(scaled, detectors=asked.detectors[:1]), 0.0)


def _shortened(choices: Choices, share: float) -> Choices:
    """With that share of the epochs, at least one each, and of the stages that run only."""
    epochs = {s: max(1, math.ceil(n * share - 1e-9)) for s, n in choices.epochs.items() if s in choices.stages}
    return replace(choices, epochs=epochs)


def apply(preset: Preset, choices: Choices) -> Preset:
    """The preset as it will run."""
    changes: dict[str, Any] = {"fusion.flips": choices.flips, "members": choices.members}
    changes["pseudo.epochs"] = choices.pseudo
    for stage, epochs in choices.epochs.items():
        changes[f"{stage}.training.epochs"] = epochs
    for stage, batch in choices.batch.items():
        training = getattr(preset, stage).training
        changes[f"{stage}.training.batch"] = batch
        changes[f"{stage}.training.nominal_batch"] = training.nominal_batch or training.batch
    for stage, scale in choices.scale.items():
        config = getattr(preset, stage)
        changes[f"{stage}.size"] = scaled_side(config.size, scale)
        changes |= {f"{stage}.{key}": value for key, value in smaller_films(config, scale).items()}
        if stage == "rcnn":  # anchors are in pixels: they keep their size on the film
            changes["rcnn.anchor_sides"] = tuple(max(4, round(side * scale)) for side in config.anchor_sides)
    return override(preset, changes)


def smaller_films(config: Any, scale: float) -> dict[str, int]:
    """Changes to a stage's configuration that make it look at smaller films."""
    changes = {"infer_size": scaled_side(config.infer_size, scale)}
    if config.augment.crop:
        changes["augment.crop"] = scaled_side(config.augment.crop, scale)
    return changes


def scaled_side(side: int, scale: float) -> int:
    """A side in pixels that 32 divides, as every model's strides need."""
    return side if scale == 1 else max(32, int(side * scale) // 32 * 32)


def dropped(asked: Choices, chosen: Choices) -> list[str]:
    """A sentence for each thing that was dropped."""
    lines = []
    if asked.pseudo and not chosen.pseudo:
        lines.append("pseudo-labels: the detectors do not train on test films")
    if asked.flips and not chosen.flips:
        lines.append("test-time augmentation: mirrored films are left out")
    models = {len(chosen.models([s])) for s in chosen.stages}
    if min(models) < asked.members:
        lines.append(f"fold ensemble: {' or '.join(map(str, sorted(models)))} of {asked.members} models of each stage")
    cut = [f"{s} {n} of {asked.epochs[s]}" for s, n in chosen.epochs.items() if n < asked.epochs.get(s, n)]
    if cut:
        lines.append(f"training epochs: {', '.join(cut)}")
    scales = {chosen.scale[s] for s in chosen.stages if chosen.scale.get(s, 1.0) < 1}
    if scales:
        lines.append(f"resolution: {min(scales):.0%} of the side in pixels")
    left_out = [s for s in asked.detectors if s not in chosen.detectors]
    if left_out:
        lines.append(f"detectors: {', '.join(left_out)} left out")
    return lines
