"""Reader of NIH ChestX-ray14, the data of the backbone's training (report, section 2.1; Wang et al. 2017).

In: NIH's own folder: Data_Entry_2017.csv (or its later edition Data_Entry_2017_v2020.csv) and the films in images/ or
images_001/images/ to images_012/images/. Out: a table with a row per film:

    image_id, path, patient_id     str; image_id is the file's name without its ending
    one column per name of LABELS  int, 0 or 1
"""

import os
from pathlib import Path

import pandas as pd

from siimcovid.errors import InputError
from siimcovid.tables import read_csv, some

#: The 15 outputs, in their order: 14 findings, and that there is none.
LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax", "No Finding"),
)

ENTRIES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
ENDINGS = (".png", ".jpg", ".jpeg")


def load_nih(folder: Path | str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read NIH's folder: the table above, sorted by image_id, and a sentence for each thing that did not fit.

    Films are found by their names without the ending, so that a copy converted to JPEG serves too; those of the CSV
    that are not there are reported and left out. Raises InputError where the CSV or every film is missing, or a label
    is none of LABELS.
    """
    folder = Path(folder).expanduser().absolute()
    entries = next((folder / name for name in ENTRIES if (folder / name).is_file()), None)
    if entries is None:
        raise InputError(f"no {ENTRIES[0]} in {folder}: give the folder of NIH ChestX-ray14")
    table = read_csv(entries, ("Image Index", "Finding Labels", "Patient ID"))
    paths = _films(folder)
    labels = [set(text.split("|")) for text in table["Finding Labels"]]
    for image, names in zip(table["Image Index"], labels, strict=True):
        if unknown := sorted(names.difference(LABELS)):
            raise InputError(f"{entries}: {image} has the label {unknown[0]!r}, which is none of {', '.join(LABELS)}")
    image_ids = table["Image Index"].map(lambda name: Path(name).stem)
    films = pd.DataFrame({"image_id": image_ids, "path": image_ids.map(paths), "patient_id": table["Patient ID"]})
    films = films.assign(**{label: [int(label in names) for names in labels] for label in LABELS})

    problems = []
    if films["image_id"].duplicated().any():
        repeated = films["image_id"][films["image_id"].duplicated()].tolist()
        problems.append(f"repeated images in {entries.name}: {len(repeated):,} ({some(repeated)})")
    missing = films["image_id"][films["path"].isna()].tolist()
    if len(missing) == len(films):
        raise InputError(f"{folder} has none of the films of {entries.name}: put them into {folder / 'images'}")
    if missing:
        problems.append(f"images of {entries.name} without a file, left out: {len(missing):,} ({some(missing)})")
    films = films.dropna(subset=["path"]).drop_duplicates("image_id").sort_values("image_id")
    return films.reset_index(drop=True), tuple(problems)


def _films(folder: Path) -> dict[str, str]:
    """Name without ending -> path, of every picture in NIH's image folders."""
    numbered = sorted(folder.glob("images_*"))
    paths = {}
    for inside in (folder / "images", *(shelf / "images" for shelf in numbered), *numbered):
        if inside.is_dir():
            with os.scandir(inside) as found:
                names = sorted(entry.name for entry in found if not entry.name.startswith("."))
            for stem, ending in map(os.path.splitext, names):
                if ending.lower() in ENDINGS:
                    paths.setdefault(stem, str(inside / (stem + ending)))
    return paths
