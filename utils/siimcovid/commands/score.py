"""`siimcovid score SUBMISSION --images CSV --studies CSV`: the competition's six-class mean average precision."""

import argparse
import math
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("submission", type=Path, help="submission.csv")
    parser.add_argument("--images", type=Path, required=True, help="the truth, as train_image_level.csv (or .csv.gz)")
    parser.add_argument("--studies", type=Path, required=True, help="the truth, as train_study_level.csv (or .csv.gz)")
    parser.add_argument("--subset", action="store_true", help="score only the ids submitted")
    parser.add_argument("--threshold", type=float, default=0.5, help="confidence from which boxes count (default 0.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the six average precisions and their mean")


def run(args: argparse.Namespace) -> int:
    """Print the score and its companions; a class without truth is null in the JSON."""
    from siimcovid import LEVEL_COLUMNS, evaluate, metric
    from siimcovid.files import write_json
    from siimcovid.submission import read_table

    comparison = metric.compare(
        read_table(args.submission, ("id", "PredictionString")),
        read_table(args.images, ("id", "label")),
        read_table(args.studies, ("id", *LEVEL_COLUMNS)),
        args.subset,
    )
    matches = metric.match_classes(comparison)
    scores = metric.average_precisions(matches)
    boxes, levels = (
        evaluate.box_figures(matches["opacity"], args.threshold),
        evaluate.level_figures(comparison, matches),
    )
    print(evaluate.as_text(scores, boxes, levels, args.threshold))
    if args.json:
        write_json(args.json, {name: None if math.isnan(value) else value for name, value in scores.items()})
    return 0
