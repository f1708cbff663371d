"""`siimcovid weights import|list|verify`: the folder of offline weights and its manifest."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid weights import efficientnet_lite0 --out runs/imagenet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    convert = actions.add_parser("import", help="convert published weights once, without running their pickles' code")
    convert.add_argument("architecture", help="efficientnet_lite0, 1 or 2, resnext101_32x8d or yolov5l")
    convert.add_argument("--file", type=Path, help="the published .pth or .pt (not needed for EfficientNet-Lite)")
    convert.add_argument("--out", type=Path, required=True, help="the weights folder")
    for name, summary in (("list", "show what a manifest holds"), ("verify", "check every file against its checksum")):
        action = actions.add_parser(name, help=summary)
        action.add_argument("folder", type=Path)


def run(args: argparse.Namespace) -> int:
    """Convert, list or verify."""
    from siimcovid.models import published_weights, weights_manifest

    if args.action == "import":
        print(published_weights.import_weights(args.architecture, args.file, args.out))
        return 0
    for name, entry in weights_manifest.read_manifest(args.folder).items():
        if args.action == "verify":
            weights_manifest.verified(args.folder, name)
        print(f"{name}  {entry.get('stage', '?')}  {entry.get('licence', '?')}  {entry.get('source', '?')}")
    return 0
