"""`siimcovid ablate`: each part of the system off and on, on synthetic competitions and on folders with answers.

With --crossval each change of a preset by itself instead, cross-validated on a folder's train part.

Several processes, on several machines, may share OUT: each takes a competition, or a change, that no other is training
on.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from siimcovid.core.configuration import Detector

if TYPE_CHECKING:
    from siimcovid.core.configuration import Preset

EXAMPLE = "siimcovid ablate --weights runs/imagenet --out runs/ablation --seeds 0 1 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--out", type=Path, required=True, help="folder for images, models and tables; may be shared")
    parser.add_argument("--weights", type=Path, help="folder of weights to start from; random ones without it")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of synthetic competitions (0 1 2)")
    parser.add_argument("--train-studies", type=int, default=180, help="of each (default 180)")
    parser.add_argument("--test-studies", type=int, default=120, help="of each (default 120)")
    parser.add_argument(
        "--data",
        nargs="*",
        type=Path,
        default=[],
        help="competition folders with answers beside them: the plain system and all that is kept are compared there",
    )
    parser.add_argument("--preset", default="demo", help="demo (default), small, full or best")
    parser.add_argument("--folds", type=int, default=3, help="for fitted numbers and the fold ensemble (default 3)")
    parser.add_argument(
        "--crossval",
        type=Path,
        metavar="FOLDER",
        help="instead: each change of the preset by itself, cross-validated on this competition folder's train part",
    )
    parser.add_argument("--images", type=int, default=1000, help="of it, with --crossval (default 1000)")
    parser.add_argument(
        "--stages", nargs="+", choices=(*get_args(Detector), "study"), help="with --crossval (default the preset's)"
    )
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="override")


def run(args: argparse.Namespace) -> int:
    """Train what is not trained yet, write and print ablation.csv and ablation.md, write ensemble.json; 1 while
    others still train."""
    from siimcovid.apps.ablation import ablation_experiment, ablation_table
    from siimcovid.apps.commands.search_command import refuse_launch
    from siimcovid.core.files import make_folder, write_csv, write_json, write_text
    from siimcovid.core.overrides import read_settings
    from siimcovid.core.presets import load_preset
    from siimcovid.inference.fit_ensemble import NOTHING

    refuse_launch("several `siimcovid ablate` on the same --out")
    make_folder(args.out)
    preset = load_preset(args.preset, read_settings(args.settings))
    if args.crossval:
        return _cross_validate_changes(args, preset)
    plan = ablation_experiment.Plan(
        tuple(args.seeds), args.train_studies, args.test_studies, tuple(args.data), args.folds
    )
    trainers = ablation_experiment.train(plan, preset, args.weights, args.out)
    if trainers is None:
        print("other processes are still training; call again when they have ended")
        return 1
    found = ablation_table.rows(trainers, ablation_experiment.DETECTORS, ablation_experiment.compared(plan))
    write_csv(found, args.out / "ablation.csv")
    parts = ablation_experiment.grouped_rows(plan, found)
    alone = ablation_table.detectors_alone(trainers, ablation_experiment.DETECTORS)
    text = "\n\n".join(
        [
            "Gains, over competitions: mean ± standard deviation",
            *map(ablation_table.gains_table, parts),
            "Average precisions off and on",
            *map(ablation_table.precision_table, parts),
            "Opacity AP of each detector alone, and of the plain and of the whole ensemble",
            ablation_table.ensembles_beside_detectors(alone, found),
        ]
    )
    text += "\n"
    write_text(args.out / "ablation.md", text)
    print(text)
    if plan.seeds:
        numbers = {**NOTHING, **ablation_table.fit_on_all_competitions(trainers, ablation_experiment.compared(plan))}
        write_json(args.out / "ensemble.json", numbers)
        print(f"numbers fitted on all of these competitions: {args.out / 'ensemble.json'}")
    return 0


def _cross_validate_changes(args: argparse.Namespace, preset: "Preset") -> int:
    """Write and print changed_parts.csv and changed_parts.md of what is there; 1 while a part is missing."""
    from siimcovid.apps.ablation import changed_parts
    from siimcovid.apps.commands.search_command import prepared
    from siimcovid.core.files import write_csv, write_text
    from siimcovid.core.labels import STUDY_LABELS
    from siimcovid.core.overrides import override
    from siimcovid.core.paths import scratch_folder
    from siimcovid.data import competition

    images = competition.load(args.crossval, splits=("train",)).images
    images = changed_parts.of_patients(images[images["study_label"].isin(STUDY_LABELS)], args.images)
    cache = scratch_folder(args.out) / "cache"
    trials = changed_parts.Trials(
        prepared(images, cache, preset),
        args.crossval,
        cache,
        args.weights,
        args.out,
        override(preset, {"folds": args.folds}),
        args.seeds,
    )
    rows, whole = trials.run(changed_parts.changes(preset, args.stages or ("study", *preset.fusion.detectors)))
    if len(rows):
        write_csv(rows, args.out / "changed_parts.csv")
        write_text(args.out / "changed_parts.md", text := changed_parts.markdown_table(rows))
        print(text, end="")
    if not whole:
        print("other processes are still training; call again when they have ended")
    return 0 if whole else 1
