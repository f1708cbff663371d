"""`siimcovid train STAGE`: train one stage on a competition folder."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("stage", choices=("rcnn", "yolo", "study"))
    parser.add_argument("--data", type=Path, required=True, help="the competition folder")
    parser.add_argument("--weights", type=Path, required=True, help="folder of weights to start from")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and its metrics")
    parser.add_argument("--cache", type=Path, help="folder for the prepared films (default OUT/cache)")
    parser.add_argument("--preset", default="full", help="full (default) or small")
    parser.add_argument("--fold", type=int, help="hold this fold of the patients out and keep the best epoch on it")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="override")


def run(args: argparse.Namespace) -> int:
    """Prepare the films that are not prepared yet, train, print the checkpoint's path."""
    from siimcovid import cache, competition, weights
    from siimcovid.errors import InputError
    from siimcovid.presets import load_preset
    from siimcovid.stages import fit

    settings = {}
    for text in args.settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set takes KEY=VALUE, not {text!r}")
        settings[key] = value
    if args.fold is not None:
        settings |= {"fold": args.fold, f"{args.stage}.training.validate": True}
    preset = load_preset(args.preset, settings)
    images = competition.load(args.data, splits=("train",)).images
    folder = args.cache or args.out / "cache"
    failures = cache.prepare(images, folder, preset.cache_size)
    films = images[~images["image_id"].isin(failures["image_id"])]
    path = fit(args.stage, preset, films, folder, args.weights, args.out)
    weights.register_trained(path, args.stage, preset, args.data.name)
    print(path)
    return 0
