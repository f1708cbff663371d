"""`siimcovid report RUN`: one self-contained HTML page of a run, of a data set, or of both."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid report runs/demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", type=Path, nargs="?", help="the run's folder, OUTPUT_DIR of the notebook")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: RUN/report.html, or data.html)")
    parser.add_argument(
        "--ground-truth", type=Path, metavar="DIR", help="folder of ground truth that is not <competition>.truth/"
    )
    parser.add_argument("--threshold", type=float, help="confidence from which boxes count in Table 1 (default 0.1)")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="a competition folder or its CSVs, or an index, to count"
    )
    parser.add_argument(
        "--headers",
        nargs="+",
        default=[],
        metavar="CSV",
        help="with --data: tables of image_id with patient_id, rows, columns, … instead of DICOM headers",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="a folder of runs with fewer and more images, for a learning curve",
    )
    parser.add_argument("--nih", type=Path, metavar="DIR", help="NIH ChestX-ray14's folder, for the report's Figure 1")
    parser.add_argument("--rsna", type=Path, metavar="DIR", help="RSNA Pneumonia's folder, for the report's Figure 2")


def run(args: argparse.Namespace) -> int:
    """Write the page and print where it lies."""
    from siimcovid.core.errors import InputError
    from siimcovid.core.files import check_writable, write_text
    from siimcovid.evaluation.report_tables import THRESHOLD
    from siimcovid.reporting.html.html_report import data_page, render, run_page
    from siimcovid.reporting.run_folder import read_run

    if not any((args.run, args.data, args.nih, args.rsna)):
        raise InputError("give a run's folder, or data to count with --data, --nih or --rsna")
    if args.out:
        check_writable(args.out)
    images = _images(args) if args.data else None
    if args.run:
        threshold = THRESHOLD if args.threshold is None else args.threshold
        page = run_page(read_run(args.run, args.ground_truth), images, args.nih, args.rsna, threshold, args.runs)
        out = args.out or args.run / "report.html"
    else:
        first = args.data or args.nih or args.rsna
        page = data_page(first.absolute().name, images, args.nih, args.rsna)
        out = args.out or Path("data.html")
    write_text(out, render(page))
    print(out)
    return 0


def _images(args: argparse.Namespace):
    """The index of --data: read as it is where it is a file, else made of the folder's train part."""
    from siimcovid.data.competition import load, read_index
    from siimcovid.data.dicom_headers import read_header_tables

    if args.data.is_file():
        return read_index(args.data)
    headers = read_header_tables(args.headers) if args.headers else None
    return load(args.data, splits=("train",), headers=headers).images
