"""`siimcovid doctor [--kaggle|--train|--change]`: what is present and missing, and the way out of each."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid doctor --train --data FOLDER"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    person = parser.add_mutually_exclusive_group()
    person.add_argument("--kaggle", action="store_true", help="for who submits on Kaggle")
    person.add_argument("--train", action="store_true", help="for who trains on their own images")
    person.add_argument("--change", action="store_true", help="for who changes the code")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the competition folder to train on")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="the weights folder to use")


def run(args: argparse.Namespace) -> int:
    """Print the findings for one person, or for all three; 0 where nothing is missing, else 1."""
    from siimcovid.apps.doctor import PEOPLE, as_text, examine
    from siimcovid.apps.doctor.check_result import MISSING, Surroundings

    around = Surroundings(data=args.data, weights=args.weights)
    chosen = [person for person in PEOPLE if getattr(args, person)] or list(PEOPLE)
    missing = False
    for person in chosen:
        findings = examine(person, around)
        missing |= any(finding.state == MISSING for finding in findings)
        print(as_text(person, findings), end="\n\n" if person != chosen[-1] else "\n")
    return int(missing)
