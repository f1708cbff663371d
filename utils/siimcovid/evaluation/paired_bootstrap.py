"""Which of two submissions is better? A paired bootstrap over patients of the competition's metric.

In: two or more submissions for the same ground truth, and the group (patient, or study) of each of its ids. Out: for
each class and their mean the difference of the average precisions, its percentile interval, and the share of the draws
in which the second is better (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).

Groups are drawn with replacement, the same ones for all submissions. A group that is drawn k times counts as k copies
of its images and studies: the predictions are ranked and matched once, and each draw only weights them, which gives the
metric of the copied data exactly (predictions of copies are equal in confidence and stay beside each other).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.labels import CLASSES
from siimcovid.evaluation.mean_average_precision import Comparison, compare, descending_order, match

#: Draws, and the share of them inside the interval.
DRAWS, COVERAGE = 1000, 0.95


class RankedClass(NamedTuple):
    """One class of one submission, ranked by falling confidence."""

    hit: np.ndarray  # (n,) bool, true positives
    row: np.ndarray  # (n,) place of the prediction's id among the ground truth's ids
    truth_row: np.ndarray  # (m,) the same of each true box


@dataclass(frozen=True)
class BootstrapComparison:
    """How `second` differs from `first`."""

    first: str
    second: str
    groups: int  # number of patients (or studies) that were drawn from
    table: pd.DataFrame  # by class and "mean": difference, low, high, probability that second is better


def group_by_index(ids: Sequence[str], index: pd.DataFrame) -> np.ndarray:
    """The patient of each `<image>_image` and `<study>_study` id, by the index's image_id, study_id and patient_id.

    Raises InputError for ids that the index does not hold.
    """
    patients = dict(zip(index["image_id"] + "_image", index["patient_id"], strict=True))
    patients |= dict(zip(index["study_id"] + "_study", index["patient_id"], strict=True))
    return _looked_up(ids, patients, "the index")


def group_by_study(ids: Sequence[str], images: pd.DataFrame) -> np.ndarray:
    """The study of each id, by the ground truth's columns id and StudyInstanceUID.

    Raises InputError where that column is missing, or an image is not in the table.
    """
    if "StudyInstanceUID" not in images:
        raise InputError("the images' ground truth has no column StudyInstanceUID: name patients with --index")
    studies = dict(zip(images["id"], images["StudyInstanceUID"], strict=True))
    studies |= {name: name.removesuffix("_study") for name in ids if name.endswith("_study")}
    return _looked_up(ids, studies, "the images' ground truth")


def _looked_up(ids: Sequence[str], group_of: Mapping[str, str], source: str) -> np.ndarray:
    if unknown := [name for name in ids if name not in group_of]:
        raise InputError(f"{source} does not say of which patient {unknown[0]} is ({len(unknown)} such ids)")
    return np.array([group_of[name] for name in ids], dtype=object)


def paired_bootstrap(
    submissions: Mapping[str, pd.DataFrame],
    images: pd.DataFrame,
    studies: pd.DataFrame,
    groups: Mapping[str, str],
    draws: int = DRAWS,
    seed: int = 0,
    subset: bool = False,
) -> list[BootstrapComparison]:
    """Compare each further submission with the first.

    Args:
        submissions: name -> table of id and PredictionString.
        images, studies, subset: the ground truth, as `mean_average_precision.score` takes it.
        groups: id -> the group that it is drawn with.
        draws, seed: of the bootstrap.

    Raises:
        InputError: as `mean_average_precision.score`; fewer than two submissions; submissions of different ids.
    """
    if len(submissions) < 2:
        raise InputError("a comparison needs two submissions")
    compared = {name: compare(table, images, studies, subset) for name, table in submissions.items()}
    ids = next(iter(compared.values())).ids
    for name, one in compared.items():
        if not np.array_equal(one.ids, ids):
            raise InputError(f"{name} has other ids than the first submission: compare submissions to the same sample")
    codes, names = pd.factorize(np.array([groups[name] for name in ids], dtype=object))
    ranked = {name: _ranked(one) for name, one in compared.items()}
    rng = np.random.default_rng(seed)
    whole = {name: _precisions(one, np.ones(len(ids))) for name, one in ranked.items()}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in ranked}
    for _ in range(draws):
        copies = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[codes]
        for name, one in ranked.items():
            drawn[name].append(_precisions(one, copies.astype(float)))
    first = next(iter(ranked))
    return [
        BootstrapComparison(first, name, len(names), _differences(whole, drawn, first, name))
        for name in list(ranked)[1:]
    ]


def _differences(
    whole: Mapping[str, np.ndarray], drawn: Mapping[str, list[np.ndarray]], first: str, second: str
) -> pd.DataFrame:
    differences = np.stack(drawn[second]) - np.stack(drawn[first])
    edge = 100 * (1 - COVERAGE) / 2
    low, high = np.nanpercentile(differences, [edge, 100 - edge], axis=0)
    known = np.isfinite(differences)
    better = ((differences > 0) + 0.5 * (differences == 0)).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    columns = {"difference": whole[second] - whole[first], "low": low, "high": high, "probability": better}
    return pd.DataFrame(columns, index=[*CLASSES, "mean"])


def _ranked(comparison: Comparison) -> list[RankedClass]:
    """Each of CLASSES, ranked and matched once."""
    classes = []
    for name in CLASSES:
        found, true = comparison.predictions.of(name), comparison.truth.of(name)
        hit = match(found.row, found.confidence, found.xyxy, true.row, true.xyxy).hit
        classes.append(RankedClass(hit, found.row[descending_order(found.confidence)], true.row))
    return classes


def _precisions(classes: Sequence[RankedClass], weight: np.ndarray) -> np.ndarray:
    """(7,) average precision of each of CLASSES and their mean; weight: (ids,) copies of each id."""
    values = np.array([weighted_precision(one, weight) for one in classes])
    known = values[np.isfinite(values)]
    return np.append(values, known.mean() if len(known) else np.nan)


def weighted_precision(ranked: RankedClass, weight: np.ndarray) -> float:
    """Area under the interpolated precision-recall curve of weighted predictions; nan without a true box."""
    total = weight[ranked.truth_row].sum()
    if not total:
        return np.nan
    copies = weight[ranked.row]
    true = copies * ranked.hit
    precision = np.cumsum(true) / np.maximum(np.cumsum(copies), 1e-12)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * true).sum() / total)


def as_text(comparison: BootstrapComparison, unit: str) -> str:
    """The comparison as lines of text; unit: what was drawn, "patients" or "studies"."""
    lines = [
        f"{comparison.second} minus {comparison.first}, paired bootstrap over {comparison.groups:,} {unit}:",
        f"{'':<15}{'difference':>11}{'95 % interval':>20}{'P(better)':>11}",
    ]
    for name, row in comparison.table.iterrows():
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
        equal = "" if row["low"] > 0 or row["high"] < 0 else "   equal"
        lines.append(f"{name:<15}{row['difference']:>+11.3f}{interval:>20}{row['probability']:>11.2f}{equal}")
    return "\n".join(lines)
