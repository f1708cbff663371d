"""`siimcovid predict PATH… --weights W --out OUT`: predict files, folders and zip archives of DICOM, PNG and JPEG.

Any layout, no CSV needed. A call that was killed goes on where it stopped. Under `accelerate launch` or `torchrun` the
images are split between the processes. Files that cannot be read are listed in OUT/failures.csv.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

    from siimcovid.data.image_files import ImageFile
    from siimcovid.inference.predict_files import FilePredictions
    from siimcovid.inference.structured_report import Written

EXAMPLE = "siimcovid predict chest.dcm scans/ study.zip --weights runs/demo/weights --out predictions --pictures"

EXAMPLE = "siimcovid predict chest.dcm scans/ study.zip --weights runs/demo/weights --out predictions --pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image files, folders or zip archives")
    parser.add_argument("--weights", type=Path, help="folder of trained stages (default: search below /kaggle/input)")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    parser.add_argument("--pictures", action="store_true", help="also draw each image with its boxes")
    parser.add_argument(
        "--dicom-sr", action="store_true", help="also write a DICOM Structured Report for each DICOM image"
    )
    parser.add_argument("--threshold", type=float, default=0.1, help="leave out boxes of a lower score (default: 0.1)")
    parser.add_argument(
        "--submission", type=Path, metavar="SAMPLE", help="also write the competition's file for these ids"
    )
    parser.add_argument(
        "--sizes",
        type=Path,
        metavar="CSV",
        help="image_id, rows, columns of the originals: the submission's boxes are in their pixels",
    )
    words = parser.add_mutually_exclusive_group()
    words.add_argument("-q", "--quiet", action="store_true", help="no progress, and only what is wrong")
    words.add_argument("-v", "--verbose", action="store_true", help="where reading fails, for each unreadable file")


def run(args: argparse.Namespace) -> int:
    """Predict, write the files, say where they are and what the weights were trained on."""
    from siimcovid.core.errors import InputError
    from siimcovid.core.paths import find_weights
    from siimcovid.core.tables import some
    from siimcovid.data.image_files import find_images
    from siimcovid.inference import predict_files, structured_report, trained_model, write_predictions

    if not 0 <= args.threshold <= 1:
        raise InputError(f"--threshold is {args.threshold:g}; give a number from 0 to 1")
    _check_places(args)
    if args.dicom_sr:
        structured_report.require_highdicom()
    images, failures = find_images(args.paths)
    if not images and not failures:
        raise InputError(f"{some([str(path) for path in args.paths])} holds no DICOM, PNG or JPEG image; name others")
    model = trained_model.load(find_weights(args.weights))
    found = predict_files.predict_files(model, images, failures, args.out, progress=not args.quiet)
    main = found.rank == 0
    if main:
        rows = write_predictions.write_tables(found, model, args.threshold, args.out)
    elif args.pictures or args.dicom_sr:
        rows = write_predictions.predicted_rows(found, model, args.threshold)
    if args.pictures:
        write_predictions.write_pictures(found, images, rows, model, args.out)
    if args.dicom_sr:
        reports = structured_report.write_reports(found, images, rows, model, args.paths, args.out)
    if not main:
        return 0
    said = [
        f"{args.out}: {len(found.index):,} images, {sum(len(row.boxes) for row in rows):,} boxes of "
        f"{args.threshold:g} or more (predictions.csv, boxes.csv, coco.json)"
    ]
    if args.dicom_sr:
        said.append(_of_reports(reports, args.out))
    wrong = _of_failures(found.failures, args.out)
    if args.submission:
        path = args.out / "submission.csv"
        absent = write_predictions.write_competition_submission(found, images, model, args.submission, path, args.sizes)
        (wrong if absent else said).append(
            f"{path}" + (f": {len(absent):,} ids have no image and get the train set's frequencies" if absent else "")
        )
    wrong += _of_unlike(found)
    for line in wrong if args.quiet else [*said, *wrong, *model.notices]:
        print(line)
    if args.verbose:
        _print_tracebacks(images, found.failures["path"].tolist())
    return 0


def _of_unlike(found: "FilePredictions") -> list[str]:
    """A sentence on the images that are unlike those that the study model learnt from, where there are any."""
    from siimcovid.core.tables import some
    from siimcovid.inference.predictor import unlike_images

    unlike = set(unlike_images(found.outputs.study_probs))
    paths = found.index.loc[found.index["image_id"].isin(unlike), "path"].tolist()
    what = "unlike the images that the study model learnt from, perhaps no frontal chest radiographs"
    return [f"{len(paths):,} images are {what} ({some(paths)})"] if paths else []


def _of_failures(failures: "DataFrame", out: Path) -> list[str]:
    """A sentence on the files that cannot be read, where there are any."""
    from siimcovid.core.tables import some

    if not len(failures):
        return []
    paths = failures["path"].tolist()
    return [f"{out / 'failures.csv'}: {len(paths):,} files cannot be read ({some(paths)})"]


def _print_tracebacks(images: "list[ImageFile]", failed: list[str]) -> None:
    """Print to stderr where reading fails, for each image that could not be read."""
    from siimcovid.data.image_files import tracebacks

    for path, text in tracebacks([image for image in images if image.shown in failed]):
        print(f"\n{path}\n{text}", end="", file=sys.stderr)


def _of_reports(reports: "Written", out: Path) -> str:
    """A sentence on the structured reports that were written."""
    said = f"{out / 'dicom-sr'}: {len(reports.table):,} structured reports"
    if reports.derived:
        said += f", {reports.derived:,} of images with missing or invalid UIDs: derived ones under 2.25 stand for them"
    return said + (f"; {reports.pictures:,} PNG and JPEG images get none" if reports.pictures else "")


def _check_places(args: argparse.Namespace) -> None:
    """Raise InputError where OUT cannot be a folder or SAMPLE is no file, before anything is computed."""
    from siimcovid.core.errors import InputError

    for place in (args.out, *args.out.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file; name a folder for --out")
    if args.submission and not args.submission.is_file():
        raise InputError(f"{args.submission} is no file; give the competition's sample_submission.csv to --submission")
    if args.sizes and not args.sizes.is_file():
        raise InputError(f"{args.sizes} is no file; give a CSV of image_id, rows, columns to --sizes")
