"""`siimcovid fit-ensemble`: fit on a cross-validation how answers are combined, and put the numbers beside weights."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid fit-ensemble --data FOLDER --crossval runs/crossval --out runs/crossval/weights --preset small"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--data", type=Path, required=True, help="the competition folder of the cross-validation")
    parser.add_argument("--crossval", type=Path, required=True, help="what `siimcovid crossval` wrote with --out")
    parser.add_argument("--out", type=Path, help="a weights folder for ensemble.json (default: print only)")
    parser.add_argument(
        "--preset", default="full", help="full (default), small, demo or best, as in the cross-validation"
    )
    parser.add_argument("--items", nargs="+", help="what is fitted (default all): see inference/fit_ensemble.py")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="override")


def run(args: argparse.Namespace) -> int:
    """Print what each item is worth on images that it was not fitted on, and the numbers."""
    from siimcovid.core.files import make_folder
    from siimcovid.core.overrides import read_settings
    from siimcovid.core.presets import load_preset
    from siimcovid.data import competition
    from siimcovid.inference import fit_ensemble, fitted_numbers
    from siimcovid.training import out_of_fold

    if args.out:
        make_folder(args.out)
    preset = load_preset(args.preset, {**fit_ensemble.NOTHING, **read_settings(args.settings)})
    images = competition.load(args.data, splits=("train",)).images
    said, folds = out_of_fold.read(args.crossval, images, preset)
    numbers, table = fit_ensemble.fit(said, images, folds, preset, args.items or tuple(fit_ensemble.ITEMS))
    print(f"{len(folds)} images, each scored by numbers fitted without its fold: average precision at IoU > 0.5")
    print(table.to_string(float_format="{:.3f}".format, na_rep=""))
    numbers = {**fit_ensemble.NOTHING, **numbers}  # the preset's own are not left beside new ones
    for key, value in numbers.items():
        print(f"--set {key}={','.join(map(str, value)) if isinstance(value, list) else value}")
    if args.out:
        print(fitted_numbers.write(args.out, numbers, preset, args.data.resolve().name))
    return 0
