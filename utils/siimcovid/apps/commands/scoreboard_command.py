"""`siimcovid scoreboard RUN`: the scoreboard of a run of the kernel and where its results lie."""

import argparse
import json
from pathlib import Path

EXAMPLE = "siimcovid scoreboard runs/demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", type=Path, help="the run's folder, OUTPUT_DIR of the notebook")


def run(args: argparse.Namespace) -> int:
    """Print the table of scores.json, the seconds of each step and the files."""
    from siimcovid.core.errors import InputError
    from siimcovid.core.labels import CLASSES

    try:
        facts = json.loads((args.run / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{args.run} holds no run.json: give the folder that a run wrote to") from None
    scores = args.run / "scores.json"
    if scores.is_file():
        columns = [*CLASSES, "mean"]
        print(f"{'AP at IoU > 0.5':<16}" + "".join(f"{name:>14}" for name in columns))
        for model, row in json.loads(scores.read_text(encoding="utf-8")).items():
            values = ("" if row[name] is None else f"{row[name]:.3f}" for name in columns)
            print(f"{model:<16}" + "".join(f"{value:>14}" for value in values))
    else:
        print("No answers were at hand, so there are no scores.")
    print("seconds: " + ", ".join(f"{step} {value:.0f}" for step, value in facts["seconds"].items()))
    print(f"submission: {args.run / 'submission.csv'}")
    return 0
