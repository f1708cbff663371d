"""The plan of a run and how it changes: chosen by the measured seconds, chosen again after each step.

In: the preset as asked for, what was measured, the seconds that are left. Out: the RunPlan, the preset as it runs, and
the seconds that the steps to come will take. This module imports no torch.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from siimcovid.core.configuration import Preset
from siimcovid.core.overrides import override, to_dict
from siimcovid.core.stage_names import stage_of
from siimcovid.kernel.queue_forecast import is_training
from siimcovid.kernel.run_plan import RunPlan, apply_plan, dropped, fit_plan, plan_of_preset
from siimcovid.kernel.step_forecast import ESSENTIAL, Profile, corrected, forecast, seconds_after, training_seconds


@dataclass
class Planner:
    """What of a preset runs.

    requested: the preset with the numbers that lie beside the weights, and with OVERRIDES.
    trains: whether the models are trained first (MODE finetune).
    pauses: whether training that the hours end goes on in a later session: nothing of it is dropped then.
    profile: measured seconds; zeros until step_profile.measure has run.
    plan, preset: what of it runs; all of it until `revise` is called.
    locked: stages whose training has begun; their settings stay.
    jobs: models to train at a time; 0: as many as are trained soonest by the profile.
    numbers: overrides that were fitted in this run, see fit_ensemble_step.py; they are no part of `requested`, by which
    a restart is told from another run.
    predicts_at: of the stages whose trained model is known, the side in pixels at which it predicts.
    """

    requested: Preset
    trains: bool
    pauses: bool = False
    profile: Profile = field(default_factory=Profile)
    plan: RunPlan = None  # type: ignore[assignment]  # all of `requested`
    preset: Preset = None  # type: ignore[assignment]
    locked: set[str] = field(default_factory=set)
    jobs: int = 0
    numbers: Mapping[str, Any] = field(default_factory=dict)
    predicts_at: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pauses = self.pauses and self.trains
        self._take(self.plan or self.requested_plan())

    def _take(self, plan: RunPlan) -> None:
        self.plan, self.preset = plan, override(apply_plan(self.requested, plan), self.numbers)

    def requested_plan(self) -> RunPlan:
        """All that was asked for."""
        return plan_of_preset(self.requested, self.requested.fusion.detectors, self.trains)

    def request(self, preset: Preset) -> None:
        """Ask for another preset, before anything of the plan runs."""
        self.requested = preset
        self._take(self.requested_plan())

    def combine_by(self, numbers: Mapping[str, Any]) -> None:
        """Combine the models by these overrides of the preset from here on."""
        self.numbers = numbers
        self._take(self.plan)

    def forecast(self) -> dict[str, float]:
        """Seconds of each step of the plan."""
        return forecast(self.profile, self.plan)

    def seconds_after(self, step: str, essential: bool = False) -> float:
        """Seconds that the plan needs for all that comes after a step, or for the essential steps of it only.

        Where training pauses, a model keeps no time for the models after it: a later session trains them.
        """
        seconds, only = self.forecast(), ESSENTIAL if essential else None
        if self.pauses and only is None:
            only = [name for name in seconds if not is_training(name)]
        return seconds_after(step, seconds, only)

    def revise(self, available: float, done: Collection[str]) -> None:
        """Choose the most that fits into the `available` seconds; the steps that are done take no more of them."""
        requested, pauses = self.requested_plan(), self.pauses
        self._take(fit_plan(self.profile, requested, available, self.plan, self.locked, done, pauses, self.jobs))

    def take_as_trained(self, names: Iterable[str]) -> None:
        """Count models as trained, or as good as: their trainings take no more time of the plan."""
        done = {name: self.plan.epochs.get(stage_of(name), 0) for name in names}
        self.profile = replace(self.profile, trained={**self.profile.trained, **done})

    def train_at_a_time(self, jobs: int) -> None:
        """Train so many models at a time from here on; 1: what is left, with the whole machine for each."""
        self.plan = replace(self.plan, jobs=jobs)

    def least(self, profile: Profile) -> dict[str, float]:
        """Seconds of each step with a plan that drops all that may be dropped, for another profile.

        Also where training pauses: what it cannot do in this session then costs this session nothing.
        """
        requested, least = self.requested_plan(), float("-inf")
        return forecast(profile, fit_plan(profile, requested, least, self.plan, self.locked, jobs=self.jobs))

    def dropped(self) -> list[str]:
        """A sentence for each thing that the plan drops."""
        return dropped(self.requested_plan(), self.plan)

    def resume(self, earlier: RunPlan, locked: Collection[str]) -> None:
        """Keep the settings that an earlier run in the folder had chosen for stages whose training had begun."""
        self.locked = set(locked)
        self._take(
            fit_plan(self.profile, self.requested_plan(), float("inf"), earlier, self.locked, pauses=self.pauses)
        )

    def lock(self, stage: str) -> None:
        """Keep a stage's settings from here on, and the number of its models: its training begins."""
        self.locked.add(stage)
        self.plan = replace(self.plan, members_at_start={stage: self.plan.count(stage), **self.plan.members_at_start})

    def halve_batch(self, stage: str) -> None:
        """Train a stage with half the batch. Raises MemoryError where it is a single image already."""
        batch = getattr(self.preset, stage).training.batch // 2
        if not batch:
            raise MemoryError(f"memory does not suffice to train {stage} on single images")
        self._take(replace(self.plan, batch={**self.plan.batch, stage: batch}))

    def correct(self, stage: str, image: float, not_measured: Collection[str]) -> None:
        """Take over the seconds of a test image that a whole pass of a stage took, see step_forecast.corrected."""
        area = self.plan.scale.get(stage, 1.0) ** 2
        self.profile = corrected(self.profile, stage, image / area, not_measured)

    def predict_at(self, stage: str, side: int) -> None:
        """Take over the side in pixels at which a trained model predicts, see train_stage.fit: time goes with the
        area."""
        before = self.predicts_at.get(stage, getattr(self.preset, stage).infer_size)
        self.predicts_at[stage] = side
        if side != before and stage in self.profile.stages:
            measured = self.profile.stages[stage]
            changed = replace(measured, image=measured.image * (side / before) ** 2)
            self.profile = replace(self.profile, stages={**self.profile.stages, stage: changed})

    def correct_training(self, stage: str, seconds: float) -> None:
        """Take over that training a model took so many seconds: further models of its stage are no cheaper.

        Fewer seconds than foreseen change nothing: an earlier run may have done a part of them.
        """
        area = self.plan.scale.get(stage, 1.0) ** 2
        measured = self.profile.stage(stage)
        foreseen = training_seconds(measured, self.plan.epochs.get(stage, 0)) * area
        if seconds > foreseen > 0:
            slower = measured.scaled(seconds / foreseen)
            slower = replace(slower, load=measured.load, image=measured.image)
            self.profile = replace(self.profile, stages={**self.profile.stages, stage: slower})

    def earlier_plan(self, record: Any, mode: str) -> RunPlan | None:
        """The plan of an earlier run in the folder that was asked for the same; None where there was none.

        record: its run.json. Raises InputError where its plan is damaged.
        """
        same = isinstance(record, dict) and (record.get("mode"), record.get("requested")) == (
            mode,
            json.loads(json.dumps(to_dict(self.requested))),
        )
        return RunPlan.from_json(record["plan"]) if same and record.get("plan") else None
