"""Synthetic images in the layouts of the two data sets that come before the competition's: RSNA's and NIH's.

    rsna   OUT/stage_2_train_labels.csv, stage_2_detailed_class_info.csv, stage_2_train_images/<patientId>.dcm
    nih    OUT/Data_Entry_2017.csv, images/<patient>_<follow-up>.png

The images are of the demo competition's kind, of other patients. Each study label stands for labels of the real sets by
FINDINGS_OF_LABEL, a mapping made up for this purpose.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom

from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, make_folder, write_csv
from siimcovid.data.nih_chestxray14 import ENTRIES
from siimcovid.data.rsna_pneumonia import BOX, CLASS_FILE, IMAGE_FOLDER, LABEL_FILE
from siimcovid.synthetic.anatomy import Anatomy
from siimcovid.synthetic.competition_plan import PlannedImage, plan_split
from siimcovid.synthetic.demo_competition import map_images
from siimcovid.synthetic.dicom_writer import quiet_pydicom, to_dicom
from siimcovid.synthetic.radiograph import render

#: NIH's labels that stand for a synthetic image's study label.
FINDINGS_OF_LABEL = {
    "negative": "No Finding",
    "typical": "Infiltration|Pneumonia",
    "indeterminate": "Consolidation",
    "atypical": "Mass|Effusion",
}
CLASS_OF_LABEL = {"negative": "Normal"}  # else by whether there are boxes

#: Added to the seed, so that a demo competition of the same seed has other patients.
SEEDS = {"rsna": 1_000_003, "nih": 2_000_003}


def write_pretraining(folder: Path | str, layout: str, *, count: int, seed: int, scale: float, workers: int) -> int:
    """Write one image of each of `count` synthetic image studies in a layout, "rsna" or "nih"; returns how many.

    Args:
        folder: must be empty or absent.
        scale: image size as a fraction of the real ones, whose sides have 1,140 to 4,891 pixels.
        workers: processes.

    Raises:
        InputError: a number below 1, a scale outside (0, 1] or a folder that is not empty.
    """
    folder = Path(folder)
    if count < 1 or not 0 < scale <= 1:
        raise InputError(f"{count} images at scale {scale}: give at least 1 image and a scale above 0 and at most 1")
    make_folder(folder)
    if any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give another folder")
    images = [image for image in plan_split(seed + SEEDS[layout], "train", count, scale) if image.annotated]
    patients = {patient: number for number, patient in enumerate(sorted({image.patient for image in images}), 1)}
    of_patient = dict.fromkeys(patients, -1)
    names = []
    for image in images:
        of_patient[image.patient] += 1
        names.append(f"{patients[image.patient]:08d}_{of_patient[image.patient]:03d}")
    make_folder(folder / (IMAGE_FOLDER if layout == "rsna" else "images"))
    write: Callable = _write_dicom if layout == "rsna" else _write_png
    boxes = map_images(partial(write, folder=folder), list(zip(images, names, strict=True)), workers)
    tables = _rsna_tables(images, boxes) if layout == "rsna" else _nih_tables(images, names)
    for name, table in tables.items():
        write_csv(table, folder / name)
    return len(images)


def _draw(image: PlannedImage) -> tuple[np.ndarray, np.ndarray]:
    """An image's pixels in [0, 1] and its boxes as xyxy fractions."""
    cv2.setNumThreads(1)
    return render(Anatomy.draw(image.patient_seed), image.study_label, image.boxes, image.shape, image.study_seed)


def _write_dicom(job: tuple[PlannedImage, str], folder: Path) -> np.ndarray:
    image, _ = job
    pixels, boxes = _draw(image)
    with quiet_pydicom():
        dataset: pydicom.Dataset = to_dicom(image, pixels, np.random.default_rng([image.study_seed, 3]))
        dataset.save_as(folder / IMAGE_FOLDER / f"{image.image}.dcm", enforce_file_format=True)
    rows, columns = image.shape
    return boxes * [columns, rows, columns, rows]


def _write_png(job: tuple[PlannedImage, str], folder: Path) -> np.ndarray:
    image, name = job
    pixels, boxes = _draw(image)
    data = cv2.imencode(".png", np.round(pixels * 255).astype(np.uint8), (cv2.IMWRITE_PNG_COMPRESSION, 1))[1]
    with atomic_path(folder / "images" / f"{name}.png") as temporary:
        data.tofile(temporary)
    return boxes


def _rsna_tables(images: list[PlannedImage], boxes: list[np.ndarray]) -> dict[str, pd.DataFrame]:
    labels, classes = [], []
    for image, found in zip(images, boxes, strict=True):
        rows = [(image.image, *np.round([x1, y1, x2 - x1, y2 - y1], 1).tolist(), 1) for x1, y1, x2, y2 in found]
        labels += rows or [(image.image, None, None, None, None, 0)]
        other = CLASS_OF_LABEL.get(image.study_label, "No Lung Opacity / Not Normal")
        classes.append((image.image, "Lung Opacity" if rows else other))
    return {
        LABEL_FILE: pd.DataFrame(labels, columns=["patientId", *BOX, "Target"]),
        CLASS_FILE: pd.DataFrame(classes, columns=["patientId", "class"]),
    }


def _nih_tables(images: list[PlannedImage], names: list[str]) -> dict[str, pd.DataFrame]:
    rows = [
        (f"{name}.png", FINDINGS_OF_LABEL[image.study_label], int(name[9:]), int(name[:8]))
        for image, name in zip(images, names, strict=True)
    ]
    return {ENTRIES[0]: pd.DataFrame(rows, columns=["Image Index", "Finding Labels", "Follow-up #", "Patient ID"])}
