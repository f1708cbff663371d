"""Reader of NIH ChestX-ray14, the data of the backbone's training (report, section 2.1; Wang et al. 2017).

In: NIH's own folder: Data_Entry_2017.csv (or its later edition Data_Entry_2017_v2020.csv) and the images in images/ or
images_001/images/ to images_012/images/. Out: a table with a row per image:

    image_id, path, patient_id     str; image_id is the file's name without its ending
    one column per name of NIH_FINDINGS  int, 0 or 1
"""

import os
from pathlib import Path

import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.labels import NIH_FINDINGS
from siimcovid.core.tables import find_table, no_table, read_csv, some
from siimcovid.data.picture_files import PICTURES

ENTRIES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")


def load_nih(folder: Path | str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read NIH's folder: the table above, sorted by image_id, and a sentence for each thing that did not fit.

    Images are found by their names without the ending, so that a copy converted to JPEG serves too; those of the CSV
    that are not there are reported and left out. Raises InputError where the CSV or every image is missing, or where a
    label is none of NIH_FINDINGS.
    """
    folder = Path(folder).expanduser().absolute()
    entries = next((path for name in ENTRIES if (path := find_table(folder, name))), None)
    if entries is None:
        raise InputError(f"{no_table(folder, ENTRIES[0])}: give the folder of NIH ChestX-ray14")
    table = read_csv(entries, ("Image Index", "Finding Labels", "Patient ID"))
    paths = _images(folder)
    labels = [set(text.split("|")) for text in table["Finding Labels"]]
    for image, names in zip(table["Image Index"], labels, strict=True):
        if unknown := sorted(names.difference(NIH_FINDINGS)):
            raise InputError(
                f"{entries}: {image} has the label {unknown[0]!r}, which is none of {', '.join(NIH_FINDINGS)}"
            )
    image_ids = table["Image Index"].map(lambda name: Path(name).stem)
    images = pd.DataFrame({"image_id": image_ids, "path": image_ids.map(paths), "patient_id": table["Patient ID"]})
    images = images.assign(**{label: [int(label in names) for names in labels] for label in NIH_FINDINGS})

    problems = []
    if images["image_id"].duplicated().any():
        repeated = images["image_id"][images["image_id"].duplicated()].tolist()
        problems.append(f"repeated images in {entries.name}: {len(repeated):,} ({some(repeated)})")
    missing = images["image_id"][images["path"].isna()].tolist()
    if len(missing) == len(images):
        raise InputError(f"{folder} has none of the images of {entries.name}: put them into {folder / 'images'}")
    if missing:
        problems.append(f"images of {entries.name} without a file, left out: {len(missing):,} ({some(missing)})")
    images = images.dropna(subset=["path"]).drop_duplicates("image_id").sort_values("image_id")
    return images.reset_index(drop=True), tuple(problems)


def _images(folder: Path) -> dict[str, str]:
    """Name without ending -> path, of every picture in NIH's image folders."""
    numbered = sorted(folder.glob("images_*"))
    paths = {}
    for inside in (folder / "images", *(part / "images" for part in numbered), *numbered):
        if inside.is_dir():
            with os.scandir(inside) as found:
                names = sorted(entry.name for entry in found if not entry.name.startswith("."))
            for stem, ending in map(os.path.splitext, names):
                if ending.lower() in PICTURES:
                    paths.setdefault(stem, str(inside / (stem + ending)))
    return paths
