"""`siimcovid bench`: each stage's cost beside the plain way to do the same; `--scale` for the whole, `--peers` for
other people's trainings beside ours."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid bench --only fuse metric --out runs/bench.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--out", type=Path, help="also write the table as JSON, for instance runs/bench.json")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="measure only these")
    parser.add_argument("--scale", type=Path, metavar="PNG", help="instead plot time and memory over images")
    parser.add_argument("--gpu-hours", action="store_true", help="instead print the hours on a T4, from FLOPs")
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="FOLDER",
        help="instead train other people's models and ours side by side on a competition with ground truth beside it; "
        "--out is runs/peers.json by default",
    )
    parser.add_argument(
        "--minutes", nargs="+", type=float, default=[5, 10, 20], help="with --peers: of training, one each (5 10 20)"
    )
    parser.add_argument("--threads", type=int, help="with --peers: of every contender (default: one for each core)")


def run(args: argparse.Namespace) -> int:
    """Print the table, or do what is asked for instead."""
    if args.scale:
        from siimcovid.apps.benchmarks.scaling_benchmark import plot

        plot(args.scale)
    elif args.gpu_hours:
        from siimcovid.apps.benchmarks.gpu_hours import hours_table

        print(hours_table())
    elif args.peers:
        from siimcovid.apps.benchmarks.peers.compare_peers import compare
        from siimcovid.core.processes import processors

        threads = processors() if args.threads is None else args.threads
        compare(args.peers, args.out or Path("runs/peers.json"), args.minutes, threads, args.only)
    else:
        from siimcovid.apps.benchmarks.run_benchmarks import run as run_works
        from siimcovid.core.files import check_writable

        if args.out:
            check_writable(args.out)
        run_works(args.only, args.out)
    return 0
