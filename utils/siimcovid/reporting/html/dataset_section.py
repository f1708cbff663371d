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
    """Tables and figures of the train split of an index."""
    counts = describe(train)
    blocks = [_totals_table(counts), Pictures(_competition_pictures(train, counts))]
    return [*blocks, *_box_tables(counts)] if counts["boxes"] else blocks


def _totals_table(counts: dict) -> Table:
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
    return Table("Counts of the train part", ["", ""], totals)


def _competition_pictures(train: pd.DataFrame, counts: dict) -> list[Picture]:
    study_labels, per_image = counts["study_labels"], counts["boxes_per_image"]
    drawn = [
        (
            figures.tally_chart("Study labels of the studies", study_labels, "studies"),
            "study-labels",
            f"Studies by study label: {_tally({name: n for name, n in study_labels.items() if n})}",
            "Report, Figure 4.",
        ),
        (
            figures.box_count_chart(per_image),
            "box-count",
            f"Images by number of boxes: {_tally(per_image)}",
            "Report, Figure 5: 0 is its NaN, an image without a box.",
        ),
        (
            figures.box_size_histogram(box_table(train["boxes"])),
            "box-size",
            f"Box areas, {_quantiles(counts, 'area')}",
            "Report, Figure 6: boxes by the share of the image that they cover.",
        ),
        (
            figures.box_position_map(train["boxes"].tolist()),
            "box-map",
            f"Map of box positions; centres: x {_quantiles(counts, 'centre_x')}",
            "How often each place lies in a box. The image's left is the patient's right.",
        ),
        (
            figures.image_size_chart(counts["sizes"]),
            "image-size",
            f"Image sizes: {len(counts['sizes'])} different ones",
            "Rows and columns of the images, the dot's area their number.",
        ),
    ]
    return [Picture(inline(figure, name, alt), caption) for figure, name, alt, caption in drawn]


def _box_tables(counts: dict) -> list[Table]:
    """Images by study label and number of boxes, and the quantiles of the boxes' sizes and centres."""
    most = sorted({n for tally in counts["boxes_per_study_label"].values() for n in tally})
    rows = [
        [study_label, *(f"{tally.get(n, 0):,}" for n in most)]
        for study_label, tally in counts["boxes_per_study_label"].items()
    ]
    note = "Annotated images only: a repeat of an image with boxes was not annotated."
    by_label = Table("Images by study label and number of boxes", ["study label", *map(str, most)], rows, note)
    parts = ("width", "height", "area", "centre_x", "centre_y")
    rows = [[name.replace("_", " "), *(f"{value:.3f}" for value in counts[f"box_{name}"])] for name in parts]
    quantiles = ["", "5 % are below", "median", "95 % are below"]
    return [by_label, Table("Boxes, as fractions of the image", quantiles, rows)]


def _tally(counts: dict) -> str:
    return ", ".join(f"{value}: {count:,}" for value, count in counts.items())


def _quantiles(counts: dict, name: str) -> str:
    if not counts[f"box_{name}"]:
        return "no boxes"
    low, median, high = counts[f"box_{name}"]
    return f"median {median:.3f} of the image, 90 % in {low:.3f} to {high:.3f}"
