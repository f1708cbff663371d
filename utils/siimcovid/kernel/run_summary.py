"""The text that the notebook ends with: what was dropped, what failed, what was left out."""

import pandas as pd

from siimcovid.kernel.recovery import shortened
from siimcovid.kernel.run import Run


def summary(run: Run) -> str:
    """What was dropped, degraded and left out, the seconds in all, and what the submission holds."""
    total = f"total: {run.budget.spent():.0f} s, predicted {_seconds(run.record.predicted_total)}"
    return "\n".join([*problem_lines(run), total, submission_line(run)])


def problem_lines(run: Run) -> list[str]:
    """What was dropped, degraded and left out, each under its title."""
    lines = []
    for title, items in (
        ("Dropped to fit the hours", [*run.record.dropped, *run.record.ended]),
        ("DEGRADED", [f"{d['step']}: {shortened(d['reason'])}; instead: {d['fallback']}" for d in run.degraded]),
        ("Images that could not be prepared", _images(run.record.failures, "reason")),
        ("Images that may not show what was meant", _images(run.record.notices, "notice")),
        ("What did not fit in the competition folder", list(run.competition.problems)),
    ):
        lines += [f"{title}:", *(f"- {item}" for item in items)] if items else [f"{title}: nothing"]
    return lines


def submission_line(run: Run) -> str:
    """How many rows submission.csv has, and how many of them hold the train set's frequencies."""
    rows, by_priors = len(run.competition.sample), run.record.by_priors
    answered = "unknown" if by_priors is None else f"{by_priors} by the train set's frequencies alone"
    return f"submission.csv: {rows} rows, {answered}"


def _images(table: pd.DataFrame, column: str, shown: int = 20) -> list[str]:
    first = table.head(shown)
    lines = [f"{image}: {shortened(text)}" for image, text in zip(first["image_id"], first[column], strict=True)]
    return [*lines, f"and {len(table) - shown} more"] if len(table) > shown else lines


def _seconds(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.0f} s"
