"""`siimcovid index [FOLDER]`: one row per image of a competition folder, and what they add up to."""

import argparse
from collections.abc import Iterator
from pathlib import Path

EXAMPLE = "siimcovid index FOLDER --out index.csv --coco train.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="competition folder (default: found below /kaggle)")
    parser.add_argument(
        "--headers",
        nargs="+",
        default=[],
        metavar="CSV",
        help="tables of image_id with patient_id, study_id, series_id, rows, columns, instead of DICOM headers",
    )
    parser.add_argument("--out", type=Path, metavar="CSV", help="write the index")
    parser.add_argument("--coco", type=Path, metavar="JSON", help="write the train images and boxes as COCO JSON")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that read headers")


def run(args: argparse.Namespace) -> int:
    from siimcovid.core.errors import InputError
    from siimcovid.core.files import check_writable, write_json
    from siimcovid.core.paths import find_competition
    from siimcovid.data.coco_export import to_coco
    from siimcovid.data.competition import load, read_index, write_index
    from siimcovid.data.dataset_statistics import describe
    from siimcovid.data.dicom_headers import read_header_tables

    for path in filter(None, (args.out, args.coco)):
        check_writable(path)
    if args.out and args.out.is_file():
        try:
            read_index(args.out)
        except InputError:  # the competition's own table, perhaps
            raise InputError(f"{args.out} is there and is no index: name another file, or remove it") from None
    headers = read_header_tables(args.headers) if args.headers else None
    competition = load(find_competition(args.folder), headers=headers, workers=args.workers)
    images = competition.images
    print(competition.folder)
    for split in ("train", "test"):
        _print(split, describe(images[images["split"] == split]))
    for problem in competition.problems:
        print(f"note: {problem}")
    if args.out:
        write_index(images, args.out)
        print(f"{args.out}: {len(images):,} rows")
    if args.coco:
        coco = to_coco(images[images["split"] == "train"], competition.folder)
        write_json(args.coco, coco)
        print(f"{args.coco}: {len(coco['images']):,} images, {len(coco['annotations']):,} annotations")
    return 0


def _print(split: str, counts: dict) -> None:
    """One split's counts, a line each; lines about boxes and study labels only where there are any."""
    totals = "  ".join(f"{name} {counts[name]:,}" for name in ("images", "studies", "patients", "boxes"))
    print(f"{split:5}  {totals}")
    for title, text in _lines(counts):
        print(f"       {title}: {text}")


def _lines(counts: dict) -> Iterator[tuple[str, str]]:
    if any(counts["study_labels"].values()):
        yield "study labels", _tally(counts["study_labels"])
    if counts["studies"]:
        yield "images per study", _tally(counts["images_per_study"])
    if counts["boxes"]:
        if counts["repeated_studies"]:
            yield "studies of several images, by images with boxes", _tally(counts["repeated_studies"])
        yield "images that nobody annotated", f"{counts['not_annotated']:,}"
        yield "boxes per image", _tally(counts["boxes_per_image"])
        for study_label, tally in counts["boxes_per_study_label"].items():
            yield f"boxes per {study_label} image", _tally(tally)
        for name in ("width", "height", "area", "centre_x", "centre_y"):
            low, median, high = counts[f"box_{name}"]
            title = f"box {name}, median [5 %, 95 %]".replace("_", " ")
            yield title, f"{median:.3f} [{low:.3f}, {high:.3f}]"
    if counts["sizes"]:
        rows, columns, _ = zip(*counts["sizes"], strict=True)
        yield "commonest rows x columns", "  ".join(f"{r} x {c}: {n:,}" for r, c, n in counts["sizes"][:4])
        yield "rows and columns", f"{min(rows)} to {max(rows)} and {min(columns)} to {max(columns)}"


def _tally(counts: dict) -> str:
    return "  ".join(f"{value}: {count:,}" for value, count in counts.items())
