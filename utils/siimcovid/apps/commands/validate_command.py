"""`siimcovid validate SUBMISSION --sample SAMPLE [--sizes CSV]`: every fault of a submission, with its line."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid validate submission.csv --sample sample_submission.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("submission", type=Path, help="submission.csv, plain or gzipped")
    parser.add_argument("--sample", type=Path, required=True, help="the competition's sample_submission.csv")
    parser.add_argument("--sizes", type=Path, help="CSV of image_id, rows, columns: boxes must lie inside their image")


def run(args: argparse.Namespace) -> int:
    """Print the faults and return 1, or print what the file holds and return 0."""
    from siimcovid.evaluation.submission_validator import validate

    verdict = validate(args.submission, args.sample, args.sizes)
    if verdict.faults:
        print("\n".join(verdict.faults))
        print(f"{args.submission}: not valid, {len(verdict.faults)} fault{'s' * (len(verdict.faults) > 1)}")
        return 1
    print(f"{args.submission}: valid\n{verdict.holdings.as_text()}")
    return 0
