"""`siimcovid predict PATH… --weights W --out OUT`: predict files, folders and zip archives of DICOM, PNG and JPEG.

Any layout, no CSV needed. A call that was killed goes on where it stopped. Under `accelerate launch` or `torchrun` the
images are split between the processes. Files that cannot be read are listed in OUT/failures.csv.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siimcovid.inference.structured_report import Written

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
    found = predict_files.predict_files(model, images, failures, args.out)
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
    print(
        f"{args.out}: {len(found.index):,} images, {sum(len(row.boxes) for row in rows):,} boxes of "
        f"{args.threshold:g} or more (predictions.csv, boxes.csv, coco.json)"
    )
    if args.dicom_sr:
        print(_of_reports(reports, args.out))
    if args.submission:
        path = args.out / "submission.csv"
        absent = write_predictions.write_competition_submission(found, images, model, args.submission, path)
        print(
            f"{path}" + (f": {len(absent):,} ids have no image and get the train set's frequencies" if absent else "")
        )
    if len(found.failures):
        print(
            f"{args.out / 'failures.csv'}: {len(found.failures):,} files cannot be read "
            f"({some(found.failures['path'].tolist())})"
        )
    print("\n".join(model.notices))
    return 0


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
