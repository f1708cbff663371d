"""`siimcovid crossval`: train on all folds but one in turn, predict the one left out, score all images by that."""

import argparse
from pathlib import Path
from typing import get_args

from siimcovid.core.configuration import Detector

EXAMPLE = "siimcovid crossval --data FOLDER --weights runs/imagenet --out runs/crossval --preset small"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--data", type=Path, required=True, help="the competition folder")
    parser.add_argument("--weights", type=Path, help="folder of weights to start from; random ones without it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models, tables and scores")
    parser.add_argument("--cache", type=Path, help="folder for the prepared images (default OUT/cache)")
    parser.add_argument("--preset", default="full", help="full (default), small, demo or best")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=(*get_args(Detector), "study"),
        help="(default the preset's)",
    )
    parser.add_argument("--folds", nargs="+", type=int, metavar="K", help="only these (default all of the preset's)")
    parser.add_argument(
        "--best-epoch", action="store_true", help="keep the best epoch on the images held out, not the last: optimistic"
    )
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="override")


def run(args: argparse.Namespace) -> int:
    """Do what is not done yet, print the official score and the report's two tables."""
    from siimcovid.apps.commands.search_command import prepared, refuse_launch
    from siimcovid.core.files import make_folder
    from siimcovid.core.overrides import read_settings
    from siimcovid.core.paths import scratch_folder
    from siimcovid.core.presets import load_preset
    from siimcovid.data import competition
    from siimcovid.evaluation import report_tables
    from siimcovid.training import cross_validation, out_of_fold

    refuse_launch("one for each of some --folds on the same --out")
    make_folder(args.out)
    preset = load_preset(args.preset, read_settings(args.settings))
    images = competition.load(args.data, splits=("train",)).images
    folder, stages = args.cache or scratch_folder(args.out) / "cache", args.stages or preset.stages
    found = cross_validation.cross_validate(
        prepared(images, folder, preset),
        preset,
        folder,
        args.weights,
        args.out,
        stages=stages,
        only=args.folds,
        best_epoch=args.best_epoch,
        data=args.data,
    )
    evaluations = out_of_fold.score(args.data, images, found, preset, args.out)
    chosen = ", their epoch chosen by them" if args.best_epoch else ""
    print(f"{len(found.images)} images held out{chosen}: average precision at IoU > 0.5")
    tables = [report_tables.score_table(evaluations)]
    tables += [report_tables.table_1(evaluations)] if set(stages) - {"study"} else []
    tables += [report_tables.table_2(evaluations[-1:])] if "study" in stages else []
    print("\n\n".join(table.to_string(float_format="{:.3f}".format, na_rep="") for table in tables))
    if "study" in stages:
        print(cross_validation.check_shortcuts(found, folder, args.out))
    print(args.out / "scores.json")
    return 0
