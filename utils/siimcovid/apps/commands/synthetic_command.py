"""`siimcovid synthetic OUT`: write the demo competition, or synthetic images as RSNA or NIH lay theirs out."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid synthetic demo --train-studies 240 --test-studies 60 --seed 0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        help="competition folder to write; the held-back ground truth goes to OUT.truth",
    )
    parser.add_argument("--layout", choices=("competition", "rsna", "nih"), default="competition", help="whose folder")
    parser.add_argument("--train-studies", type=int, default=240, help="studies to train on (default %(default)s)")
    parser.add_argument("--test-studies", type=int, default=60, help="held-back studies (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default %(default)s)")
    parser.add_argument("--scale", type=float, default=0.25, help="image size, fraction of real (default %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")


def run(args: argparse.Namespace) -> int:
    from siimcovid.core.processes import processors
    from siimcovid.synthetic.demo_competition import write_competition
    from siimcovid.synthetic.pretraining_sets import write_pretraining

    if args.layout != "competition":
        images = write_pretraining(
            args.out,
            args.layout,
            count=args.train_studies,
            seed=args.seed,
            scale=args.scale,
            workers=args.workers or processors(),
        )
        print(f"{args.out}: {images} images written")
        return 0
    written = write_competition(
        args.out,
        train_studies=args.train_studies,
        test_studies=args.test_studies,
        seed=args.seed,
        scale=args.scale,
        workers=args.workers,
    )
    print(f"{args.out}: {'written' if written else 'already there'}, ground truth in {args.out}.truth")
    return 0
