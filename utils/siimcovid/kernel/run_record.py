"""run.json: what was planned, how long each step took, what was dropped and what failed.

    mode, preset (as it runs), competition, hours, sessions, strict
    seconds    {step: seconds}
    steps      [{step, predicted_seconds or null, seconds or null}], in the order of the steps
    jobs       [{model, place, threads, seconds, begin, ended}]: the trainings that ran side by side, each with where
               (a GPU, or the CPU's threads), the second of the run in which it began, and "trained", "paused",
               "out of time" or "failed"
    total      {predicted_seconds, seconds}: from the start of the hours to the end, predicted when the plan was made
    dropped    [a sentence for each thing that was left out to fit the hours]
    degraded   [{step, reason, fallback, traceback}]: see recovery.py
    problems   [what did not fit in the competition folder]
    failures   [{image_id, path, reason}]: images that could not be prepared
    notices    [{image_id, notice}]: what may not show in an image as it was meant, see data/image_cache.py
    ensemble   by which numbers the models are combined and where they come from, see fit_ensemble_step.py
    requested, plan   the preset as asked for, and what of it runs; a restart in the same folder trains by these

The file is standard JSON: a number that is not finite is written as null.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from siimcovid.core.files import write_json

RECORD = "run.json"
FAILURE_COLUMNS = ["image_id", "path", "reason"]
NOTICE_COLUMNS = ["image_id", "notice"]


@dataclass
class RunRecord:
    """What happened so far, apart from the faults."""

    seconds: dict[str, float] = field(default_factory=dict)  # step -> seconds that it took
    predicted: dict[str, float] = field(default_factory=dict)  # step -> seconds, as last predicted before it began
    predicted_total: float | None = None  # of the whole run, when the plan was made
    dropped: list[str] = field(default_factory=list)  # by the plan, before anything of it ran
    ended: list[str] = field(default_factory=list)  # steps that the end of the hours cut short
    failures: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=FAILURE_COLUMNS))
    notices: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=NOTICE_COLUMNS))
    by_priors: int | None = None  # rows of submission.csv that hold the train set's frequencies; None: not written yet
    jobs: list[dict[str, Any]] = field(default_factory=list)  # trainings that ran side by side, see above
    ensemble: dict[str, Any] | None = None  # by which numbers the models are combined, see fit_ensemble_step.py

    def add_seconds(self, step: str, seconds: float) -> None:
        """Add to the seconds of a step, rounded to a hundredth."""
        self.seconds[step] = round(self.seconds.get(step, 0.0) + seconds, 2)

    def predict(self, seconds: Mapping[str, float], begun: str = "") -> None:
        """Take over a forecast of the steps that are not done; what was predicted of those that are stays.

        begun: a step of which a part is done, so that what was predicted of it stays too.
        """
        kept = {*self.seconds, begun}
        self.predicted = {step: value for step, value in self.predicted.items() if step in kept}
        self.predicted |= {step: round(value, 2) for step, value in seconds.items() if step not in kept}

    def end(self, what: str) -> None:
        """Record that the end of the hours cut something short, and print it to stderr."""
        self.ended.append(what)
        print(f"OUT OF TIME: {what}", file=sys.stderr)

    def step_table(self) -> list[dict[str, Any]]:
        """A row per step: `step`, `predicted_seconds` and `seconds`, None where unknown."""
        return [
            {"step": step, "predicted_seconds": self.predicted.get(step), "seconds": self.seconds.get(step)}
            for step in dict.fromkeys([*self.seconds, *self.predicted])
        ]


def write_record(path: Path, facts: Mapping[str, Any]) -> None:
    """Write run.json atomically. Raises OSError where the disk does not allow it."""
    write_json(path, to_json(facts))


def read_record(path: Path) -> Any:
    """The values of a run.json, NaN and Infinity as None; None where there is no such file, or no JSON in it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError):
        return None


def to_json(value: Any) -> Any:
    """A value as json.dumps can write it: numbers that are not finite as None, numpy's as Python's, others as text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [to_json(item) for item in value]
    return None if value is pd.NA or value is pd.NaT else str(value)
