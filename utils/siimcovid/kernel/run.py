"""One run of the kernel: its inputs, its folder, its clock, and the record of what happened.

`Run.recover` is the one place where an error of any step is caught: it is recorded with its traceback, and the pipeline
goes on with what it has. With `strict` it raises instead. The record is run.json:

    mode, preset (as it runs), competition, hours, strict
    seconds    {step: seconds}
    steps      [{step, predicted_seconds, seconds or null}]
    total      {predicted_seconds, seconds}: from the start of the clock to the end, predicted when the plan was made
    dropped    [what was dropped to fit the hours]
    degraded   [{step, reason, instead, traceback}]: what failed, and what was done instead
    problems   [what did not fit in the competition folder]
    failures   [{image_id, path, reason}]: images that could not be prepared
    asked, choices   the preset as asked for, and what of it runs; a restart in the same folder trains by these
"""

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core.configuration import Preset
from siimcovid.core.files import write_json
from siimcovid.core.overrides import to_dict
from siimcovid.core.paths import scratch_folder
from siimcovid.core.presets import FULL
from siimcovid.data.competition import Competition, index_table
from siimcovid.data.image_memory import PREDICTION_BYTES, ImageMemory
from siimcovid.kernel.time_budget import (
    Profile,
    RunPlan,
    TimeBudget,
    after,
    apply,
    dropped,
    fit_plan,
    forecast,
    plan_of_preset,
)

FAILURE_COLUMNS = ["image_id", "path", "reason"]
RECORD = "run.json"


@dataclass
class Run:
    """See the module's docstring. What is not given is found out by the pipeline's steps."""

    folder: Path
    budget: TimeBudget
    strict: bool = False
    mode: str = "infer"
    overrides: dict[str, Any] = field(default_factory=dict)  # OVERRIDES
    requested: Preset = FULL  # the preset with the numbers that lie beside the weights, and with OVERRIDES
    preset: Preset = FULL  # what of it runs
    competition: Competition = field(
        default_factory=lambda: Competition(
            Path(), index_table([]), pd.DataFrame(columns=["id", "PredictionString"], dtype=str), ()
        )
    )
    source: Path = Path()  # the competition folder that was found, also where another stands in for a damaged one
    weights: Path | None = None  # where stages start from, or are loaded from
    verify: bool = True  # whether a manifest vouches for them
    profile: Profile = field(default_factory=Profile)
    plan: RunPlan | None = None
    locked: set[str] = field(default_factory=set)  # stages whose training has begun: their settings stay
    models: dict[str, tuple[Any, Any, bool]] = field(default_factory=dict)  # see trained.load
    unusable: set[str] = field(default_factory=set)  # stages whose model could not be loaded
    memory: ImageMemory = field(default_factory=lambda: ImageMemory(PREDICTION_BYTES))  # of test images, for all models
    seen: dict[str, list[str]] = field(default_factory=dict)  # detector (or "<detector>_hflip") -> images it looked at
    image_study_probs: pd.DataFrame | None = (
        None  # what the study model says of each test image; None where it says nothing
    )
    failures: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=FAILURE_COLUMNS))
    by_priors: int | None = None  # rows of submission.csv that hold the train set's frequencies
    seconds: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    predicted_total: float | None = None
    dropped: list[str] = field(default_factory=list)  # by the plan
    ended: list[str] = field(default_factory=list)  # steps that the clock ended before they were done
    degraded: list[dict[str, str]] = field(default_factory=list)

    @property
    def cache(self) -> Path:
        """The folder of prepared images: no part of a Kaggle kernel's output."""
        return scratch_folder(self.folder) / "cache"

    @property
    def prepared_images(self) -> pd.DataFrame:
        """The index's rows whose image was prepared."""
        images = self.competition.images
        return images[~images["image_id"].isin(self.failures["image_id"])]

    @property
    def test(self) -> pd.DataFrame:
        """The prepared images that the submission must answer, in the index's order."""
        return self.prepared_images[(self.prepared_images["split"] == "test") & self.prepared_images["in_sample"]]

    @contextmanager
    def recover(self, step: str, fallback: str, only: type[Exception] = Exception) -> Iterator[None]:
        """Record what the body raises, and go on; `fallback` says with what. Only errors of the kind `only`."""
        try:
            yield
        except only as error:
            if self.strict:
                raise
            self.degrade(step, str(error) or type(error).__name__, fallback, traceback.format_exc())

    @contextmanager
    def step(self, name: str, fallback: str) -> Iterator[None]:
        """A guarded step, timed, after which run.json is up to date."""
        begin = self.budget.now()
        self.write()  # who is killed in the step leaves what was known before
        with self.recover(name, fallback):
            yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + self.budget.now() - begin, 2)
        self.write()

    def degrade(self, step: str, reason: str, fallback: str, trace: str = "") -> None:
        """Record that something failed, and say so at once."""
        reason = " ".join(reason.split())
        entry = {"step": step, "reason": reason, "fallback": fallback, "traceback": trace}
        self.degraded.append(entry)
        print(f"DEGRADED {step}: {_short(reason)}; instead: {fallback}", file=sys.stderr)

    def end(self, what: str) -> None:
        """Record that the clock ended something early."""
        self.ended.append(what)
        print(f"OUT OF TIME: {what}", file=sys.stderr)

    def needed_after(self, step: str) -> float:
        """Seconds that the plan needs for all that comes after a step."""
        return after(step, forecast(self.profile, self.plan)) if self.plan else 0.0

    def has_time(self, step: str, seconds: float = 0.0) -> bool:
        """Whether a part of a step that takes so long leaves enough for all that comes after the step."""
        return self.budget.left() - seconds > self.needed_after(step)

    def requested_plan(self) -> RunPlan:
        """All that was asked for."""
        return plan_of_preset(self.requested, self.requested.fusion.detectors, self.mode == "finetune")

    def revise(self) -> None:
        """Choose again what fits into the time that is left, and predict the steps to come."""
        with self.recover("plan", "the plan stays as it was"):
            requested = self.requested_plan()
            if "detect" not in self.seconds:  # later there is nothing left to choose
                self.plan = fit_plan(self.profile, requested, self.budget.left(), self.plan, self.locked, self.seconds)
                self.preset = apply(self.requested, self.plan)
                self.dropped = dropped(requested, self.plan)
            coming = forecast(self.profile, self.plan)
            self.predicted = {step: seconds for step, seconds in self.predicted.items() if step in self.seconds}
            self.predicted |= {step: round(coming[step], 2) for step in coming if step not in self.seconds}

    def plan_table(self) -> list[dict[str, Any]]:
        """The plan beside what happened, a row per step."""
        return [
            {"step": step, "predicted_seconds": self.predicted.get(step), "seconds": self.seconds.get(step)}
            for step in dict.fromkeys([*self.seconds, *self.predicted])
        ]

    def write(self) -> None:
        """Write run.json. A disk that is full must not end the run, and what it would have said is printed anyway."""
        try:
            write_json(
                self.folder / RECORD,
                {
                    "mode": self.mode,
                    "preset": to_dict(self.preset),
                    "competition": str(self.source),
                    "hours": self.budget.hours,
                    "strict": self.strict,
                    "seconds": self.seconds,
                    "steps": self.plan_table(),
                    "total": {"predicted_seconds": self.predicted_total, "seconds": round(self.budget.spent(), 1)},
                    "dropped": [*self.dropped, *self.ended],
                    "degraded": self.degraded,
                    "problems": list(self.competition.problems),
                    "failures": self.failures.to_dict("records"),
                    "requested": to_dict(self.requested),
                    "plan": self.plan.to_json() if self.plan else None,
                },
            )
        except OSError as error:
            if self.strict:
                raise
            if not any(entry["step"] == RECORD for entry in self.degraded):
                self.degrade(RECORD, str(error), "the record is printed only")

    def read_record(self) -> Any:
        """The record of an earlier run in this folder; None where there was none."""
        try:
            return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def earlier_plan(self, record: Any) -> RunPlan | None:
        """What an earlier run had chosen that was asked for the same; None where there was none."""
        same = isinstance(record, dict) and (record.get("mode"), record.get("requested")) == (
            self.mode,
            json.loads(json.dumps(to_dict(self.requested))),
        )
        return RunPlan.from_json(record["plan"]) if same and record.get("plan") else None


def summary(run: Run) -> str:
    """What the notebook says last: the plan beside the times, and plainly what was dropped, degraded and left out."""
    lines = [f"{'step':<12}{'predicted':>11}{'actual':>9}"]
    lines += [
        f"{row['step']:<12}{_seconds(row['predicted_seconds']):>11}{_seconds(row['seconds']):>9}"
        for row in run.plan_table()
    ]
    lines.append(f"{'total':<12}{_seconds(run.predicted_total):>11}{_seconds(run.budget.spent()):>9}")
    for title, items in (
        ("Dropped to fit the hours", [*run.dropped, *run.ended]),
        ("DEGRADED", [f"{d['step']}: {_short(d['reason'])}; instead: {d['fallback']}" for d in run.degraded]),
        ("Images that could not be prepared", _failures(run.failures)),
        ("What did not fit in the competition folder", list(run.competition.problems)),
    ):
        lines += ["", f"{title}:", *(f"- {item}" for item in items)] if items else ["", f"{title}: nothing"]
    rows = len(run.competition.sample)
    answered = "unknown" if run.by_priors is None else f"{run.by_priors} by the train set's frequencies alone"
    return "\n".join([*lines, "", f"submission.csv: {rows} rows, {answered}"])


def _failures(failures: pd.DataFrame, shown: int = 20) -> list[str]:
    lines = [f"{row.image_id}: {_short(row.reason)}" for row in failures.head(shown).itertuples()]
    return [*lines, f"and {len(failures) - shown} more"] if len(failures) > shown else lines


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _short(text: str, length: int = 400) -> str:
    return text if len(text) <= length else f"{text[:length]} …"
