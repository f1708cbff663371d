"""`siimcovid search STAGE SPACE`: a stage trained with many settings, compared on one held-out fold."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from siimcovid.core.configuration import STAGES

if TYPE_CHECKING:
    import pandas as pd

    from siimcovid.core.configuration import Preset

EXAMPLE = "siimcovid search study study --data FOLDER --weights runs/imagenet --out runs/search --preset small"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("space", help="the space file (YAML), or `study` for the report's search of the study model")
    parser.add_argument("--data", type=Path, required=True, help="folder of images, as for `siimcovid train`")
    parser.add_argument("--weights", type=Path, help="folder of weights to start from; random ones without it")
    parser.add_argument("--out", type=Path, required=True, help="folder for search.csv; may be shared by processes")
    parser.add_argument("--cache", type=Path, help="folder for the prepared images (default OUT/cache)")
    parser.add_argument("--preset", default="full", help="full (default), small, demo or best: what trials share")
    parser.add_argument("--fold", type=int, help="the fold held out (default the preset's, 0)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="override")
    parser.add_argument("--trials", type=int, metavar="N", help="of a random search (default the space file's)")
    parser.add_argument("--seed", type=int, default=0, help="of the trials drawn (default 0)")


def run(args: argparse.Namespace) -> int:
    """Run the trials that are left, print the table and the best trial's settings; 1 if no trial has finished."""
    from siimcovid.core.files import make_folder
    from siimcovid.core.overrides import override, read_settings
    from siimcovid.core.paths import scratch_folder
    from siimcovid.core.presets import load_preset
    from siimcovid.data import dataset_readers
    from siimcovid.models import weights_manifest
    from siimcovid.training import cross_validation, hyperparameter_search, pretraining, search_space

    refuse_launch("several searches on the same --out")
    make_folder(args.out)
    fold = {} if args.fold is None else {"fold": args.fold}
    kind, settings = dataset_readers.kind_of(args.data, args.stage), read_settings(args.settings) | fold
    preset = pretraining.preset_for(load_preset(args.preset), settings, args.stage, kind)
    space = search_space.read_space(search_space.find_space(args.space), args.stage, preset)
    runs = search_space.trials(space, args.trials, args.seed)
    cross_validation.refuse_seen(args.weights, [args.stage], args.data.resolve().name)
    folder = args.cache or scratch_folder(args.out) / "cache"
    images, _ = dataset_readers.read(args.data, kind)
    prepared_images = prepared(images, folder, preset)
    table = hyperparameter_search.search(args.stage, runs, preset, prepared_images, folder, args.weights, args.out)
    print(table.drop(columns="reason").to_string(index=False, na_rep="", float_format="{:.4g}".format))
    for row in table[table["state"] == "failed"].itertuples():
        print(f"{row.trial} failed: {row.reason}")
    print(args.out / "search.csv")
    found = hyperparameter_search.best(args.out, table)
    if found is None:
        return 1
    trial, settings = found
    weights_manifest.register_trained(
        trial / f"{args.stage}.safetensors", args.stage, override(preset, settings), args.data
    )
    print(f"best, in {trial}: {hyperparameter_search.as_set(settings)}")
    return 0


def refuse_launch(instead: str) -> None:
    """Processes of `accelerate launch` go in step, and would wait for one that another trial keeps busy."""
    import os

    from siimcovid.core.errors import InputError

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"this command runs as one process: for more devices start {instead}, not `accelerate launch`")


def prepared(images: "pd.DataFrame", folder: Path, preset: "Preset") -> "pd.DataFrame":
    """The rows of an index whose images could be read, and are now in the cache."""
    from siimcovid.training.train_stage import prepare

    failures = prepare(images, folder, preset.cache_size)
    return images[~images["image_id"].isin(failures["image_id"])]
