"""`siimcovid kaggle build|check|push`: the datasets and the kernel for Kaggle, tried at home, uploaded."""

import argparse
import tempfile
import time
from pathlib import Path

OUT = Path("datasets")
TRAINED = Path("runs/demo/weights")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="build the three datasets and the kernel's folder")
    build.add_argument("--owner", help="your Kaggle name; asked for once, then remembered")
    build.add_argument(
        "--weights",
        type=Path,
        help=f"folder with manifest.json (default: {TRAINED} where it exists, else ImageNet weights to fine-tune from)",
    )
    check = actions.add_parser("check", help="execute the built bundles as Kaggle would")
    check.add_argument(
        "--minutes", type=float, default=30, help="the longest that a run may take (default %(default)s)"
    )
    check.add_argument("--keep", type=Path, metavar="FOLDER", help="keep everything that was made on the way here")
    push = actions.add_parser("push", help="upload the bundles and push the kernel with Kaggle's own client")
    for action in (build, check, push):
        action.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="the bundles (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the action; 1 if the check found a fault."""
    return {"build": _build, "check": _check, "push": _push}[args.action](args)


def _build(args: argparse.Namespace) -> int:
    from siimcovid.core.paths import is_weights
    from siimcovid.kaggle.build_bundles import build
    from siimcovid.kaggle.kaggle_account import find_owner
    from siimcovid.kaggle.weights_dataset import kernel_parameters
    from siimcovid.models.weights_folder import import_weights

    owner = find_owner(args.out, args.owner)
    with tempfile.TemporaryDirectory() as scratch:
        weights = args.weights or (TRAINED if is_weights(TRAINED) else None)
        if weights is None:
            weights = import_weights("efficientnet_lite0", None, Path(scratch)).parent
        print("\n".join(build(args.out, owner, weights)))
        settings = " ".join(f"{key}={value}" for key, value in kernel_parameters(weights).items())
    print(f"The kernel of {owner} runs with {settings}; `make kaggle-check` tries it, `make push` uploads it.")
    return 0


def _check(args: argparse.Namespace) -> int:
    from siimcovid.core.errors import InputError
    from siimcovid.core.files import make_folder
    from siimcovid.kaggle.rehearsal import check

    begin = time.monotonic()
    if args.keep:
        if args.keep.exists():
            raise InputError(f"{args.keep} is there already: name a new folder")
        make_folder(args.keep)
        verdicts = check(args.out, args.keep.absolute(), minutes=args.minutes)
    else:
        with tempfile.TemporaryDirectory(prefix="siimcovid-kaggle-") as scratch:
            verdicts = check(args.out, Path(scratch), minutes=args.minutes)
    failed = any(verdict.faults for verdict in verdicts)
    print(f"kaggle-check {'FAILED' if failed else 'passed'} in {time.monotonic() - begin:.0f} s")
    return int(failed)


def _push(args: argparse.Namespace) -> int:
    from siimcovid.kaggle.push_bundles import push

    push(args.out)
    return 0
