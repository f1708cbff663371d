"""What of a preset runs, and what is dropped in which order when the hours do not suffice.

In: the preset, a Profile and the seconds that are left. Out: `RunPlan`, the preset as it runs, and a sentence for each
thing that was dropped. This module imports no torch.

What does not fit is dropped in this order: pseudo-labels, the mirrored images (test-time augmentation), the further
members of a fold ensemble or study models, training epochs down to a quarter, resolution to three quarters and to half
of the side, and then the detectors but the first, the last one first. Where the training may go on in a later session,
no more than pseudo-labels and the mirrored images are dropped.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from siimcovid.core.configuration import Preset
from siimcovid.core.errors import InputError
from siimcovid.core.overrides import override
from siimcovid.core.stage_names import member
from siimcovid.kernel.lower_resolution import training_changes
from siimcovid.kernel.queue_forecast import is_training, jobs_to_try
from siimcovid.kernel.step_forecast import Profile, forecast, model_seconds

#: Training epochs are cut in twentieths down to a quarter of what was asked; below that, resolution goes first.
EPOCH_SHARES = tuple(k / 20 for k in range(20, 4, -1))

#: What resolution is cut to, as a share of the side.
SCALES = (0.75, 0.5)


@dataclass(frozen=True)
class RunPlan:
    """What runs. Goes into run.json and comes back from it, so that a restart trains with the same settings."""

    hflip_tta: bool  # detectors predict mirrored images too
    detectors: tuple[str, ...]
    epochs: Mapping[str, int] = field(default_factory=dict)  # of each stage that is trained
    scale: Mapping[str, float] = field(default_factory=dict)  # share of the side asked for; 1 where absent
    batch: Mapping[str, int] = field(default_factory=dict)  # training batch where memory was too small for the preset's
    members: int = 1  # models of each stage
    study_models: int = 1  # models of the study stage, without a fold ensemble
    pseudo: int = 0  # epochs on pseudo-labels
    members_at_start: Mapping[str, int] = field(
        default_factory=dict
    )  # models of a stage when its training began: see stage_models.member_images
    jobs: int = 1  # models that are trained at a time, see side_by_side_training.py
    from_study: tuple[str, ...] = ()  # detectors that start from the study model's backbone, which is trained first

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that run, in the order of their training."""
        return ("study", *self.detectors) if self.from_study else (*self.detectors, "study")

    def count(self, stage: str) -> int:
        """Number of a stage's models."""
        return max(self.members, self.study_models if stage == "study" else 1)

    def models(self, stages: Iterable[str]) -> list[str]:
        """The models of stages: the first of each, then the second of each, and so on."""
        counts = {stage: min(self.count(stage), self.members_at_start.get(stage, math.inf)) for stage in stages}
        return [member(s, n) for n in range(max(map(self.count, counts), default=0)) for s in counts if n < counts[s]]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"detectors": list(self.detectors), "from_study": list(self.from_study)}

    @classmethod
    def from_json(cls, values: Any) -> "RunPlan":
        """The inverse of `to_json`; raises InputError for anything else."""
        try:
            parts = {key: {k: kind(v) for k, v in values[key].items()} for key, kind in PER_STAGE.items()}
            counts = {key: int(values[key]) for key in ("members", "pseudo")}
            counts |= {key: max(1, int(values.get(key, 1))) for key in ("jobs", "study_models")}  # new in this version
            names = {key: tuple(map(str, values.get(key, ()))) for key in ("detectors", "from_study")}
            return cls(bool(values["hflip_tta"]), **names, **counts, **parts)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"the plan in run.json is damaged ({error!r}): remove the file") from None


#: The fields of a RunPlan that hold a value per stage, and its type.
PER_STAGE = {"epochs": int, "scale": float, "batch": int, "members_at_start": int}


def plan_of_preset(preset: Preset, detectors: tuple[str, ...], trained: bool) -> RunPlan:
    """All that the preset asks for; `trained` where the models are trained first."""
    names = (*detectors, "study") if trained else ()
    epochs = {name: getattr(preset, name).training.epochs for name in names}
    pseudo = preset.pseudo.epochs if trained else 0
    from_study = tuple(name for name in detectors if trained and getattr(preset, name).study_backbone)
    return RunPlan(
        preset.fusion.hflip_tta,
        detectors,
        epochs,
        members=preset.members,
        study_models=preset.study_models if preset.members == 1 else 1,
        pseudo=pseudo,
        from_study=from_study,
    )


def fit_plan(
    profile: Profile,
    requested: RunPlan,
    available: float,
    now: RunPlan | None = None,
    locked: Collection[str] = (),
    done: Collection[str] = (),
    pauses: bool = False,
    jobs: int = 0,
) -> RunPlan:
    """The most of `requested` whose steps take no more than `available` seconds together, by the order of dropping.

    locked: stages whose training has begun; their settings stay as they are in `now`. done: steps that take no more
    time. pauses: what does not fit is trained in a later session, so nothing of the training is dropped, and nothing
    else for its sake. jobs: models to train at a time; 0 takes the number by which the steps take the least. It stays
    once training has begun. Where nothing fits, the least is returned: the end of the hours cuts the steps short then.
    """

    def total(plan: RunPlan, training: bool = True) -> float:
        seconds = forecast(profile, plan)
        return sum(seconds[step] for step in seconds if step not in done and (training or not is_training(step)))

    fixed = {s: {key: getattr(now, key)[s] for key in PER_STAGE if s in getattr(now, key)} for s in locked}

    def with_fixed(plan: RunPlan) -> RunPlan:
        parts = {key: dict(getattr(plan, key)) for key in PER_STAGE}
        for stage, values in fixed.items():
            for key in PER_STAGE:
                parts[key].pop(stage, None)
            for key, value in values.items():
                parts[key][stage] = value
        return replace(plan, **parts)

    for candidate in _candidates(requested, pauses):
        plan = with_fixed(candidate)
        to_train = [name for name, seconds in model_seconds(profile, plan).items() if seconds]
        numbers = [now.jobs] if locked else jobs_to_try(profile.machine, to_train, jobs)
        chosen = min((replace(plan, jobs=number) for number in numbers), key=total)
        if total(chosen, training=not pauses) <= available:
            break
    return chosen


def _candidates(requested: RunPlan, pauses: bool) -> Iterator[RunPlan]:
    """From all to the least, in the order of dropping; with `pauses` those whose models are the same."""
    yield requested
    yield replace(requested, pseudo=0)
    yield (plain := replace(requested, pseudo=0, hflip_tta=False))
    if pauses:
        return
    for members in range(requested.members - 1, 0, -1):
        yield (plain := replace(plain, members=members))
    for models in range(requested.study_models - 1, 0, -1):
        yield (plain := replace(plain, study_models=models))
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


def apply_plan(preset: Preset, plan: RunPlan) -> Preset:
    """The preset as it will run."""
    changes: dict[str, Any] = {key: getattr(plan, key) for key in ("members", "study_models")}
    changes |= {"fusion.hflip_tta": plan.hflip_tta, "pseudo.epochs": plan.pseudo}
    for stage, epochs in plan.epochs.items():
        changes[f"{stage}.training.epochs"] = epochs
    for stage, batch in plan.batch.items():
        training = getattr(preset, stage).training
        changes[f"{stage}.training.batch"] = batch
        changes[f"{stage}.training.nominal_batch"] = training.nominal_batch or training.batch
    for stage, scale in plan.scale.items():
        changes |= {f"{stage}.{key}": value for key, value in training_changes(getattr(preset, stage), scale).items()}
    return override(preset, changes)


def dropped(requested: RunPlan, chosen: RunPlan) -> list[str]:
    """A sentence for each thing that was dropped."""
    lines = []
    if requested.pseudo and not chosen.pseudo:
        lines.append("pseudo-labels: the detectors do not train on test images")
    if requested.hflip_tta and not chosen.hflip_tta:
        lines.append("test-time augmentation: mirrored images are left out")
    if (studies := len(chosen.models(["study"]))) < requested.study_models:
        lines.append(f"study model: {studies} of {requested.study_models}")
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
