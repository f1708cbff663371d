"""The whole ablation: which variant is trained on which competition, and every comparison on all of them.

What is switched on and off stands in compared_systems.py, the table of the results in ablation_table.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from siimcovid.apps.ablation.ablation_data import read, write_synthetic
from siimcovid.apps.ablation.compared_systems import PLAIN_SYSTEM, prediction
from siimcovid.apps.ablation.trained_variants import Variant, VariantTrainer, trainer, variants
from siimcovid.core import stage_names
from siimcovid.core.configuration import Preset, PseudoLabelConfig
from siimcovid.core.errors import InputError
from siimcovid.inference import pseudo_labels
from siimcovid.training.hyperparameter_search import claimed

DETECTORS = stage_names.DETECTORS


@dataclass(frozen=True)
class Plan:
    """The competitions of an ablation."""

    seeds: tuple[int, ...]  # of synthetic ones, on which every item is compared
    train_studies: int
    test_studies: int
    data: tuple[Path, ...]  # folders, on which the plain system is compared with all that is kept
    folds: int


def compared(plan: Plan) -> list[str]:
    """Names of the competitions on which every item is compared."""
    return [f"synthetic-{seed}" for seed in plan.seeds]


def grouped_rows(plan: Plan, found: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of the synthetic competitions together, then those of each folder."""
    synthetic = found["competition"].isin(compared(plan))
    return [
        part
        for part in (found[synthetic], *(part for _, part in found[~synthetic].groupby("competition")))
        if len(part)
    ]


def labels(one: VariantTrainer, variants_of: Mapping[str, Variant], config: PseudoLabelConfig) -> pd.DataFrame:
    """The test images that the plain system answers surely, with its answer for their truth."""
    return pseudo_labels.label(prediction(one, PLAIN_SYSTEM, variants_of), one.data.test, config)


def train(
    plan: Plan, preset: Preset, start: Path | None, out: Path
) -> dict[str, tuple[VariantTrainer, dict[str, Variant]]] | None:
    """Run every variant that is not trained yet and return the trainers; None while another process trains some.

    Raises InputError where two competitions have one name, or a folder has no answers.
    """
    synthetic = {f"synthetic-{seed}": seed for seed in plan.seeds}
    folders = {name: out / "competitions" / name for name in synthetic}
    for folder in plan.data:
        name = folder.resolve().name
        if name in folders:
            raise InputError(f"two competitions have the name {name}: rename the folder {folder}")
        folders[name] = folder
    trainers, busy = {}, False
    for name, folder in folders.items():
        with claimed(out / name) as ours:
            busy |= not ours
            if ours:
                if name in synthetic:
                    write_synthetic(synthetic[name], folder, plan.train_studies, plan.test_studies)
                one = trainer(read(folder, out / name, start, preset), preset, plan.folds)
                wanted = {variant.name: variant for variant in variants(DETECTORS, plan.folds, every=name in synthetic)}
                for variant in wanted.values():
                    one.run(variant, partial(labels, one, wanted))
                trainers[name] = one, wanted
    return None if busy else trainers
