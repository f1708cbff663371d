"""Cross-validation folds by patient, stratified by study label and number of boxes.

In: the index (competition.py). Out: a fold number per train image, or the train and validation rows of one fold.
A patient's images resemble each other, so a patient on both sides would make the validation score a lie.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from siimcovid.core.errors import InputError

#: Images with as many boxes or more are one stratum: fewer than one in thirty.
MANY_BOXES = 3

#: Annotated images, and images with a box and without, from which on a fold is enough to fit the ensemble's numbers:
#: see docs/training.md.
FEWEST, FEWEST_OF_A_KIND = 100, 20


def assign_folds(
    images: pd.DataFrame, folds: int = 5, seed: int = 0, duplicates: Iterable[Sequence[str]] = ()
) -> pd.Series:
    """The fold, 0 to `folds` - 1, of each train image, and -1 for the rest, as a Series with `images`' index.

    All images of a patient fall into one fold, and so do patients that share an image of `duplicates` (groups
    of image ids, see duplicates.find). Depends on `seed`, not on the order of rows. Raises InputError where a fold
    would stay empty.
    """
    train = images[images["split"] == "train"]
    groups = _united(train, duplicates)
    if folds < 2 or groups.nunique() < folds:
        raise InputError(f"{groups.nunique()} patients do not make {folds} folds: ask for 2 to {groups.nunique()}")
    boxes = train["boxes"].map(len).clip(upper=MANY_BOXES)
    strata = pd.Series(
        [f"{study_label} {n}" for study_label, n in zip(train["study_label"], boxes, strict=True)], index=train.index
    )
    counts = pd.crosstab(groups, strata)
    of_group = pd.Series(_deal(counts.to_numpy(), folds, seed), index=counts.index)
    numbers = of_group[groups].to_numpy()
    return pd.Series(numbers, index=train.index, name="fold").reindex(images.index, fill_value=-1)


def at_most(images: pd.DataFrame, folds: int, duplicates: Iterable[Sequence[str]] = ()) -> int:
    """So many folds, or fewer where the train images are of fewer patients."""
    return min(folds, _united(images[images["split"] == "train"], duplicates).nunique())


def split(
    images: pd.DataFrame, fold: int, folds: int = 5, seed: int = 0, duplicates: Iterable[Sequence[str]] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The index's train rows to train on, and those of `fold` to validate on.

    Images that nobody annotated are left out of training, since their lack of boxes is no ground truth, but not of
    validation, since the competition scores them like any other.
    """
    if not 0 <= fold < folds:
        raise InputError(f"there is no fold {fold} of {folds}: give 0 to {folds - 1}")
    assigned = assign_folds(images, folds, seed, duplicates)
    return images[(assigned >= 0) & (assigned != fold) & images["annotated"]], images[assigned == fold]


def enough_to_fit(images: pd.DataFrame) -> bool:
    """Whether numbers can be fitted on these rows of the index: FEWEST annotated, with and without boxes."""
    boxes = images.loc[images["annotated"].astype(bool), "boxes"].map(len)
    with_boxes = int((boxes > 0).sum())
    return len(boxes) >= FEWEST and min(with_boxes, len(boxes) - with_boxes) >= FEWEST_OF_A_KIND


def _deal(counts: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold for each group of images, so that every fold gets an equal share of each of `counts`' (groups, strata).

    Greedy, the largest groups first: putting c images beside the f that a fold holds of a stratum's total t adds
    2 f c / t^2 (and a constant) to the squared shares summed over folds, so each group goes where that is least over
    its strata. scikit-learn's StratifiedGroupKFold does much the same, but its folds change with its release, and
    1.5 shuffled them out of their strata: a fold must name the same images wherever a model is trained and scored.
    """
    weights = counts / counts.sum(axis=0) ** 2
    held, folds_of_groups = np.zeros((folds, counts.shape[1])), np.empty(len(counts), int)
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    for group in shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]:
        crowding = (held @ weights[group]).round(12)
        folds_of_groups[group] = chosen = np.lexsort((held.sum(axis=1), crowding))[0]
        held[chosen] += counts[group]
    return folds_of_groups


def _united(train: pd.DataFrame, duplicates: Iterable[Sequence[str]]) -> pd.Series:
    """Each row's patient, patients that share a duplicated image under one name; unknown image ids are passed over."""
    groups = train["patient_id"].copy()
    for names in duplicates:
        patients = sorted(groups[train["image_id"].isin(names)].unique())
        groups[groups.isin(patients)] = patients[0] if patients else None
    return groups
