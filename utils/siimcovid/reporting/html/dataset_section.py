"""The section about a data set: the report's Figures 1, 2 and 4 to 6, counted on the tables that are given."""

from pathlib import Path

import pandas as pd

from siimcovid.data.dataset_statistics import box_table, describe, nih_findings, rsna_classes
from siimcovid.reporting import figures
from siimcovid.reporting.html.inline_svg import inline
from siimcovid.reporting.html.page_blocks import Note, Picture, Pictures, Section, Table


def data_section(images: pd.DataFrame | None, nih: Path | None = None, rsna: Path | None = None) -> Section:
    """Counts and pictures of an index's train part, and of the two pretraining sets where they are given."""
    blocks: list = []
    train = None if images is None else images[images["split"] == "train"]
    if train is None or train.empty:
        blocks.append(Note("The run read no train part, so there is nothing to count; give its folder with --data."))
    else:
        blocks += _competition_blocks(train)
    pretraining = []
    if nih is not None:
        counts, total = nih_findings(nih)
        caption = f"Report, Figure 1: NIH ChestX-ray14, {sum(counts.values()):,} findings on {total:,} images"
        pretraining.append(_tally_picture("nih", "NIH findings", counts, "findings", caption))
    if rsna is not None:
        counts, total = rsna_classes(rsna)
        caption = f"Report, Figure 2: RSNA Pneumonia, {sum(counts.values()):,} rows (a row per box) on {total:,} images"
        pretraining.append(_tally_picture("rsna", "RSNA classes", counts, "rows", caption))
    if pretraining:
        blocks.append(Pictures(pretraining, "Pretraining"))
    return Section("data", "Data", blocks)


def _tally_picture(name: str, title: str, counts: dict[str, int], unit: str, caption: str) -> Picture:
    alt = f"{title}: " + ", ".join(f"{key} {count:,}" for key, count in counts.items())
    return Picture(inline(figures.tally_chart(title, counts, unit, across=True), name, alt), caption + ".")


def _competition_blocks(train: pd.DataFrame) -> list:
    counts = describe(train)
    totals = [
        ["images", f"{counts['images']:,}"],
        ["studies", f"{counts['studies']:,}"],
        ["patients", f"{counts['patients']:,}"],
        ["boxes", f"{counts['boxes']:,}"],
        ["images per study", _tally(counts["images_per_study"])],
        ["images that nobody annotated", f"{counts['not_annotated']:,}"],
    ]
    if counts["sizes"]:
        totals.append(["commonest rows x columns", ", ".join(f"{r} x {c} ({n:,})" for r, c, n in counts["sizes"][:4])])
    study_labels = {name: n for name, n in counts["study_labels"].items() if n}
    boxes = box_table(train["boxes"])
    pictures = [
        Picture(
            inline(
                figures.tally_chart("Study labels of the studies", counts["study_labels"], "studies"),
                "study labels-tally",
                f"Studies by study label: {_tally(study_labels)}",
            ),
            "Report, Figure 4.",
        ),
        Picture(
            inline(
                figures.box_count_chart(counts["boxes_per_image"]),
                "box-count",
                f"Images by number of boxes: {_tally(counts['boxes_per_image'])}",
            ),
            "Report, Figure 5: 0 is its NaN, an image without a box.",
        ),
        Picture(
            inline(figures.box_size_histogram(boxes), "box-size", f"Box areas, {_quantiles(counts, 'area')}"),
            "Report, Figure 6: boxes by the share of the image that they cover.",
        ),
        Picture(
            inline(
                figures.box_position_map(train["boxes"].tolist()),
                "box-map",
                f"Map of box positions; centres: x {_quantiles(counts, 'centre_x')}",
            ),
            "How often each place lies in a box. The image's left is the patient's right.",
        ),
        Picture(
            inline(
                figures.image_size_chart(counts["sizes"]),
                "image-size",
                f"Image sizes: {len(counts['sizes'])} different ones",
            ),
            "Rows and columns of the images, the dot's area their number.",
        ),
    ]
    blocks = [Table("Counts of the train part", ["", ""], totals), Pictures(pictures)]
    if counts["boxes"]:
        most = sorted({n for tally in counts["boxes_per_study_label"].values() for n in tally})
        rows = [
            [study_label, *(f"{tally.get(n, 0):,}" for n in most)]
            for study_label, tally in counts["boxes_per_study_label"].items()
        ]
        note = "Annotated images only: a repeat of an image with boxes was not looked at."
        blocks.append(Table("Images by study label and number of boxes", ["study_label", *map(str, most)], rows, note))
        parts = ("width", "height", "area", "centre_x", "centre_y")
        rows = [[name.replace("_", " "), *(f"{value:.3f}" for value in counts[f"box_{name}"])] for name in parts]
        title = "Boxes, as fractions of the image"
        blocks.append(Table(title, ["", "5 % are below", "median", "95 % are below"], rows))
    return blocks


def _tally(counts: dict) -> str:
    return ", ".join(f"{value}: {count:,}" for value, count in counts.items())


def _quantiles(counts: dict, name: str) -> str:
    if not counts[f"box_{name}"]:
        return "no boxes"
    low, median, high = counts[f"box_{name}"]
    return f"median {median:.3f} of the image, 90 % in {low:.3f} to {high:.3f}"
