"""`siimcovid scoreboard RUN`: the scores of a run of the kernel, its seconds, and what failed in it."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid scoreboard runs/demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", type=Path, help="the run's folder, OUTPUT_DIR of the notebook")


def run(args: argparse.Namespace) -> int:
    """Print the scoreboard and where the submission lies."""
    print_scoreboard(args.run)
    print(f"submission: {args.run / 'submission.csv'}")
    return 0


def print_scoreboard(folder: Path) -> None:
    """Print the table of scores.json, the seconds of each step, and how much was dropped and degraded.

    Raises InputError where `folder` has no run.json, or a damaged one.
    """
    from siimcovid.core.errors import InputError
    from siimcovid.core.labels import CLASSES
    from siimcovid.kernel.run_record import RECORD, read_record

    facts = read_record(folder / RECORD)
    if not isinstance(facts, dict) or not isinstance(facts.get("seconds"), dict):
        there = (folder / RECORD).exists()
        raise InputError(
            f"{folder / RECORD} is damaged: repeat the run"
            if there
            else f"{folder} holds no {RECORD}: give the folder that a run wrote to"
        )
    scores = read_record(folder / "scores.json")
    if isinstance(scores, dict):
        columns = [*CLASSES, "mean"]
        print(f"{'AP at IoU > 0.5':<16}" + "".join(f"{name:>14}" for name in columns))
        for model, row in scores.items():
            values = ("" if row.get(name) is None else f"{row[name]:.3f}" for name in columns)
            print(f"{model:<16}" + "".join(f"{value:>14}" for value in values))
    else:
        print("No ground truth was at hand, so there are no scores.")
    print("seconds: " + ", ".join(f"{step} {value:.0f}" for step, value in facts["seconds"].items()))
    for key, what in (("dropped", "dropped to fit the hours"), ("degraded", "DEGRADED steps, see run.json")):
        if found := facts.get(key):
            print(f"{what}: {len(found)}")
