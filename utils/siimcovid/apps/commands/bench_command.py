"""`siimcovid bench`: each stage's cost beside the plain way to do the same; `--scale` and `--budget` for the whole."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--out", type=Path, help="also write the table as JSON, for instance runs/bench.json")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="measure only these")
    parser.add_argument("--scale", type=Path, metavar="PNG", help="instead plot time and memory over images")
    parser.add_argument("--budget", action="store_true", help="instead print the worked plan for a T4 as Markdown")


def run(args: argparse.Namespace) -> int:
    """Print the table, or do what is asked for instead."""
    if args.scale:
        from siimcovid.apps.benchmarks.scaling_benchmark import plot

        plot(args.scale)
    elif args.budget:
        from siimcovid.apps.benchmarks.gpu_hours import plan

        print(plan())
    else:
        from siimcovid.apps.benchmarks.run_benchmarks import run as run_works
        from siimcovid.core.files import check_writable

        if args.out:
            check_writable(args.out)
        run_works(args.only, args.out)
    return 0
