"""One run of the kernel: holds together its parameters, hours, inputs, plan, models, predictions and record."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core.configuration import Preset
from siimcovid.core.overrides import to_dict
from siimcovid.core.paths import scratch_folder
from siimcovid.data.competition import Competition
from siimcovid.data.image_memory import PREDICTION_BYTES, ImageMemory
from siimcovid.kernel.kernel_inputs import KernelInputs
from siimcovid.kernel.notebook_parameters import Parameters
from siimcovid.kernel.recovery import Recovery
from siimcovid.kernel.replanning import Planner
from siimcovid.kernel.run_plan import RunPlan
from siimcovid.kernel.run_record import RECORD, RunRecord, write_record
from siimcovid.kernel.step_forecast import ESSENTIAL
from siimcovid.kernel.time_budget import TimeBudget

#: Steps that may use the reserve: without them rows of the submission hold the train set's frequencies.
USES_RESERVE = ESSENTIAL


@dataclass
class LoadedModels:
    """Models in memory.

    loaded: a stage, or a member of its fold ensemble -> its configuration, the model made for inference, and whether
    it is the weights folder's (True) or was trained by this run.
    unusable: those that could not be loaded.
    """

    loaded: dict[str, tuple[Any, Any, bool]] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)


@dataclass
class TestPredictions:
    """What the models predicted of the test images.

    predicted: detector (or "<detector>_hflip") -> ids of the images that it predicted, also those without a box.
    image_study_probs: image_id, study_id and the study model's probabilities; None without any.
    memory: decoded test images, for the next model.
    """

    __test__ = False  # pytest: no tests

    predicted: dict[str, list[str]] = field(default_factory=dict)
    image_study_probs: pd.DataFrame | None = None
    memory: ImageMemory = field(default_factory=lambda: ImageMemory(PREDICTION_BYTES))


@dataclass
class Run:
    """See the module's docstring."""

    parameters: Parameters
    budget: TimeBudget
    recovery: Recovery = field(default_factory=Recovery)
    record: RunRecord = field(default_factory=RunRecord)
    inputs: KernelInputs = field(default_factory=KernelInputs)
    planner: Planner = None  # type: ignore[assignment]  # of the parameters
    models: LoadedModels = field(default_factory=LoadedModels)
    predictions: TestPredictions = field(default_factory=TestPredictions)

    def __post_init__(self) -> None:
        given = self.parameters
        self.planner = self.planner or Planner(
            given.preset, given.mode == "finetune", given.sessions > 1, jobs=given.jobs
        )

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self.parameters.output_dir

    @property
    def mode(self) -> str:
        """MODE: infer or finetune."""
        return self.parameters.mode

    @property
    def plan(self) -> RunPlan:
        """What runs."""
        return self.planner.plan

    @property
    def preset(self) -> Preset:
        """The preset as it runs."""
        return self.planner.preset

    @property
    def competition(self) -> Competition:
        """The index, the sample and what did not fit in the competition folder."""
        return self.inputs.competition

    @property
    def degraded(self) -> list[dict[str, str]]:
        """The faults that were recovered from, see recovery.py."""
        return self.recovery.degraded

    @property
    def cache(self) -> Path:
        """The folder of prepared images: no part of a Kaggle kernel's output."""
        return scratch_folder(self.folder) / "cache"

    @property
    def prepared_images(self) -> pd.DataFrame:
        """The index's rows whose image was prepared."""
        images = self.competition.images
        return images[~images["image_id"].isin(self.record.failures["image_id"])]

    @property
    def test(self) -> pd.DataFrame:
        """The prepared images that have a row in the submission, in the index's order."""
        return self.prepared_images[(self.prepared_images["split"] == "test") & self.prepared_images["in_sample"]]

    @contextmanager
    def step(self, name: str, fallback: str, timed_as: str = "") -> Iterator[None]:
        """A timed step whose errors are recovered from; run.json is written before and after it.

        timed_as: the step that its seconds count for, where it is a part of another.
        """
        begin = self.budget.now()
        self.write()  # who is killed in the step leaves what was known before
        with self.recovery.recover(name, fallback):
            yield
        self.record.add_seconds(timed_as or name, self.budget.now() - begin)
        self.write()

    def has_time(self, step: str, seconds: float = 0.0) -> bool:
        """Whether a part of a step that takes so long leaves enough for all that comes after the step.

        The steps of USES_RESERVE may use the reserve too, and keep time only for each other: where training took
        longer than was foreseen, that pays for the predictions.
        """
        if step in USES_RESERVE:
            return self.budget.left_with_reserve() - seconds > self.planner.seconds_after(step, essential=True)
        return self.has_time_to_spare(step, seconds)

    def has_time_to_spare(self, step: str, seconds: float = 0.0) -> bool:
        """As `has_time`, for what improves a step and may be left out: without the reserve."""
        return self.budget.left() - seconds > self.planner.seconds_after(step)

    def revise(self, spoken_for: float = 0.0, begun: str = "") -> None:
        """Choose again what fits into the time that is left, and predict the steps to come.

        spoken_for: seconds that go to what runs now. begun: a step that has begun, whose prediction stays.
        """
        with self.recovery.recover("plan", "the plan stays as it was"):
            if "detect" not in self.record.seconds:  # later there is nothing left to choose
                self.planner.revise(self.budget.left() - spoken_for, self.record.seconds)
                self.record.dropped = self.planner.dropped()
            self.record.predict(self.planner.forecast(), begun)

    def write(self) -> None:
        """Write run.json. A full disk must not end the run: that is recorded, and the summary is printed anyway."""
        facts = {
            "mode": self.mode,
            "preset": to_dict(self.preset),
            "competition": str(self.inputs.source),
            "hours": self.budget.hours,
            "sessions": self.parameters.sessions,
            "strict": self.recovery.strict,
            "seconds": self.record.seconds,
            "steps": self.record.step_table(),
            "jobs": self.record.jobs,
            "total": {"predicted_seconds": self.record.predicted_total, "seconds": round(self.budget.spent(), 1)},
            "dropped": [*self.record.dropped, *self.record.ended],
            "degraded": self.degraded,
            "problems": list(self.competition.problems),
            "failures": self.record.failures.to_dict("records"),
            "notices": self.record.notices.to_dict("records"),
            "ensemble": self.record.ensemble,
            "requested": to_dict(self.planner.requested),
            "plan": self.plan.to_json(),
        }
        try:
            write_record(self.folder / RECORD, facts)
        except OSError as error:
            if self.recovery.strict:
                raise
            if not any(entry["step"] == RECORD for entry in self.degraded):
                self.recovery.degrade(RECORD, str(error), "the record is printed only")
