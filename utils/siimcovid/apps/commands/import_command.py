"""`siimcovid import FOLDER --boxes boxes.csv|coco.json [--labels labels.csv] --out DATA`: your own images as a
competition folder, for `make run DATA=DATA` and `siimcovid train`."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid import xrays --boxes boxes.csv --labels labels.csv --out data/mine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", type=Path, help="images: DICOM, PNG and JPEG in any layout")
    parser.add_argument("--boxes", type=Path, required=True, help="boxes in pixels, as CSV or COCO JSON")
    parser.add_argument("--labels", type=Path, help="study label (and study_id, patient_id) of each image or study")
    parser.add_argument("--out", type=Path, required=True, help="the competition folder to make; must not exist yet")
    parser.add_argument(
        "--test-share", type=float, default=0.2, help="share of the patients held back to score on (default 0.2)"
    )


def run(args: argparse.Namespace) -> int:
    """Lay the images out, and say what was left out and what comes next."""
    from siimcovid.data.import_images import import_images, truth_folder

    result = import_images(args.folder, args.boxes, args.labels, args.out, args.test_share)
    print(f"{args.out}: {result.train} images to train on, {result.test} held back, {result.boxes} boxes")
    for problem in result.problems:
        print(f"note: {problem}")
    print(f"ground truth of the images held back: {truth_folder(args.out)}")
    print(f"next: siimcovid index {args.out}, then make run DATA={args.out}")
    return 0
