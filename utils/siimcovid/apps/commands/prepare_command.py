"""`siimcovid prepare [COMPETITION] --out CACHE`: a competition's DICOMs as upright 8-bit pictures, made once."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid prepare FOLDER --out cache --size 1024 --workers 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "competition", nargs="?", metavar="COMPETITION", help="competition folder (default: found below /kaggle)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="CACHE", help="folder for the pictures")
    parser.add_argument("--size", type=int, default=1024, help="longer side in pixels (default: 1024)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each processor)")


def run(args: argparse.Namespace) -> int:
    import pandas as pd

    from siimcovid.core.files import make_folder
    from siimcovid.core.paths import find_competition
    from siimcovid.core.tables import some
    from siimcovid.data.competition import load
    from siimcovid.data.dicom_headers import IMAGE_COLUMNS
    from siimcovid.data.image_cache import prepare, read_notices

    make_folder(args.out)
    no_headers = pd.DataFrame(columns=list(IMAGE_COLUMNS))  # only ids and paths are needed: spares opening every file
    images = load(find_competition(args.competition), headers=no_headers).images
    _refuse_others(args.out, set(images["image_id"]))
    failures = prepare(images, args.out, args.size, args.workers)
    print(f"{args.out}: {len(images) - len(failures):,} images of {len(images):,}")
    if len(failures):
        print(f"{args.out / 'failures.csv'}: {len(failures):,} cannot be read ({some(list(failures['image_id']))})")
    if len(noticed := read_notices(args.out)["image_id"].unique()):
        print(f"{args.out / 'notices.csv'}: {len(noticed):,} may not show what was meant ({some(list(noticed))})")
    return 0


def _refuse_others(cache: Path, image_ids: set[str]) -> None:
    """Raise InputError where a folder holds prepared images, and none of this competition's."""
    from siimcovid.core.errors import InputError

    prepared = {path.stem for path in cache.glob("[!.]*.png")}
    if prepared and not prepared & image_ids:
        raise InputError(
            f"{cache} holds {len(prepared):,} images of another data set, {min(prepared)} for one: name another folder"
        )
