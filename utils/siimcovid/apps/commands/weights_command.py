"""`siimcovid weights list|import|verify`: what can be had, and the folder of offline weights with its manifest."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid weights import efficientnet_lite0 --out runs/imagenet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    convert = actions.add_parser("import", help="convert published weights once, without running their pickles' code")
    convert.add_argument("name", help="of `siimcovid weights list`: efficientnet_lite0, resnext101_32x8d, yolov5l …")
    convert.add_argument("file", type=Path, nargs="?", help="the published file (not needed for EfficientNet-Lite)")
    convert.add_argument("--file", type=Path, dest="named_file", help="the same")
    convert.add_argument("--out", type=Path, required=True, help="the weights folder")
    show = actions.add_parser("list", help="show what can be imported, or what a folder's manifest holds")
    show.add_argument("folder", type=Path, nargs="?", help="a weights folder; without one all published weights")
    check = actions.add_parser("verify", help="check every file against its checksum")
    check.add_argument("folder", type=Path)


def run(args: argparse.Namespace) -> int:
    """Convert, list or verify."""
    from siimcovid.models import published_weights, weights_manifest

    if args.action == "import":
        print(published_weights.import_weights(args.name, args.named_file or args.file, args.out))
        return 0
    if args.folder is None:
        _list_published()
        return 0
    for name, entry in weights_manifest.read_manifest(args.folder).items():
        if args.action == "verify":
            weights_manifest.verified(args.folder, name)
        print(f"{name}  {entry.get('stage', '?')}  {entry.get('licence', '?')}  {entry.get('source', '?')}")
    return 0


def _list_published() -> None:
    """Print each published weights' name, use and licence, and its files: size, first digits of SHA-256, address."""
    from siimcovid.models.weights_catalogue import catalogue

    for entry in catalogue().values():
        print(f"{entry.name}  {entry.use}  [{entry.licence}]")
        for file in entry.files:
            size = f"{file.megabytes:.0f} MiB" if file.megabytes else "size not published"
            digits = f"SHA-256 {file.sha256}…" if file.sha256 else "SHA-256 not published"
            licence = f"  [{file.licence}]" if file.licence else ""
            print(f"    {size}  {digits}  {file.address or 'in its Python package'}{licence}")
