"""`siimcovid train STAGE`: train one stage on the folder of one of the three data sets.

In several processes (`torchrun --nproc_per_node 2 -m siimcovid train …`) they share the images and the gradient.
"""

import argparse
from pathlib import Path

from siimcovid.core.configuration import STAGES

EXAMPLE = "siimcovid train rcnn --data FOLDER --weights runs/imagenet --out runs/rcnn --preset small"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the competition, of RSNA's or of NIH's images"
    )
    parser.add_argument("--weights", type=Path, help="folder of weights to start from; random ones without it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and its metrics")
    parser.add_argument("--cache", type=Path, help="folder for the prepared images (default OUT/cache)")
    parser.add_argument("--preset", default="full", help="full (default), small, demo or best")
    parser.add_argument("--fold", type=int, help="hold this fold of the patients out and keep the best epoch on it")
    parser.add_argument("--hours", type=float, help="start no epoch that would end later than this")
    parser.add_argument("--pause", action="store_true", help="what --hours ends goes on when it is started again")
    parser.add_argument("--resume-from", type=Path, metavar="FOLDER", help="the --out of a training that paused there")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="override")


def run(args: argparse.Namespace) -> int:
    """Prepare the images that are not prepared yet, train, draw the learning curves, print what was done."""
    import json
    import sys
    import time

    from siimcovid.core.device import launched_as
    from siimcovid.core.files import make_folder
    from siimcovid.core.overrides import read_settings
    from siimcovid.core.paths import scratch_folder
    from siimcovid.core.presets import load_preset
    from siimcovid.data import dataset_readers
    from siimcovid.models import weights_manifest
    from siimcovid.reporting import figures
    from siimcovid.training import pretraining, train_stage

    started = time.monotonic()
    make_folder(args.out)
    kind = dataset_readers.kind_of(args.data, args.stage)
    settings = read_settings(args.settings)
    if args.fold is not None:
        settings |= {"fold": args.fold, f"{args.stage}.training.validate": True}
    preset = pretraining.preset_for(load_preset(args.preset), settings, args.stage, kind)
    images, problems = dataset_readers.read(args.data, kind)
    images = pretraining.wanted_images(images, getattr(preset, args.stage).training, kind)
    state = launched_as()
    folder = args.cache or scratch_folder(args.out) / "cache"
    failures = train_stage.prepare(images, folder, preset.cache_size)
    if state.is_main_process:
        print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
        if len(failures):
            print(f"{len(failures)} images could not be read, see {folder / 'failures.csv'}", file=sys.stderr)
    prepared_images = images[~images["image_id"].isin(failures["image_id"])]
    hours = float("inf") if args.hours is None else args.hours
    path = train_stage.fit(
        args.stage,
        preset,
        prepared_images,
        folder,
        args.weights,
        args.out,
        lambda seconds: time.monotonic() - started + seconds < hours * 3600,
        pause=args.pause,
        resume_from=args.resume_from,
    )
    if state.is_main_process:
        weights_manifest.register_trained(path, args.stage, preset, args.data)
        figures.learning_curves(args.out).savefig(args.out / "learning_curves.png", dpi=110)
        start = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["start"]
        if start["file"]:
            print(
                f"started from {start['file']}: {start['taken']} tensors taken, {len(start['left'])} left as they were"
            )
        else:
            print("started from random weights")
        print(path)
    return 0
