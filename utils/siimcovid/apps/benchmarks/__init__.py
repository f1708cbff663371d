"""What each stage costs beside the plain way to do the same, measured in one run: `siimcovid bench`.

In: nothing, every input is made here from fixed seeds. Out: a table, and the same as JSON:

    machine              processor, cores, Python and torch version
    <name of the work>   work, baseline, unit, baseline_s, ours_s, ratio, clock, floor {what: seconds},
                         notes {what: number}

Baseline and ours take turns, and the best of several rounds counts for each. Both must give the same result, or the
benchmark fails. What one core does is measured in processor seconds of one thread ("processor"), which do not count the
time that other programs take; what uses all cores is measured by the clock on the wall ("wall").
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from siimcovid.core import opencv  # noqa: F401  # fails with a sentence where OpenCV cannot be loaded

CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}

#: name -> module of this package whose function of that name measures it, in the order of the table.
WORKS = {
    "prepare_raw": "image_benchmarks",
    "prepare_jpeg_lossless": "image_benchmarks",
    "feed": "image_benchmarks",
    "study_frozen": "model_benchmarks",
    "infer_rcnn": "model_benchmarks",
    "infer_study": "model_benchmarks",
    "infer_small": "inference_benchmark",
    "fuse": "box_benchmarks",
    "metric": "box_benchmarks",
}


@dataclass(frozen=True)
class Measured:
    """One line of the table; seconds are for one `unit` of work."""

    work: str
    baseline: str
    unit: str
    baseline_s: float
    ours_s: float
    clock: str
    floor: dict[str, float] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.baseline_s / self.ours_s

    def as_dict(self) -> dict[str, Any]:
        """JSON values, rounded to four figures."""
        values = {**vars(self), "ratio": self.ratio}
        return {key: _rounded(value) for key, value in values.items()}


class Race(NamedTuple):
    """Best seconds and last results of two functions."""

    baseline_s: float
    ours_s: float
    baseline: Any
    ours: Any


def race(baseline: Callable[[], Any], ours: Callable[[], Any], rounds: int, clock: str) -> Race:
    """Run two functions in turn, `rounds` times each."""
    results, seconds = [None, None], [float("inf"), float("inf")]
    for _ in range(rounds):
        for k, function in enumerate((baseline, ours)):
            results[k], taken = timed(function, clock)
            seconds[k] = min(seconds[k], taken)
    return Race(*seconds, *results)


def timed(function: Callable[[], Any], clock: str) -> tuple[Any, float]:
    """A function's result and its seconds."""
    begin = CLOCKS[clock]()
    result = function()
    return result, CLOCKS[clock]() - begin


def best(function: Callable[[], Any], rounds: int, clock: str) -> float:
    """Best seconds of a function."""
    return min(timed(function, clock)[1] for _ in range(rounds))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
