"""The demo competition: a folder of synthetic images laid out, named and encoded as the real one is.

    OUT/{train,test}/<study>/<series>/<image>.dcm     OUT.truth/test_image_level.csv
    OUT/train_image_level.csv, train_study_level.csv  OUT.truth/test_study_level.csv
    OUT/sample_submission.csv                         OUT.truth/synthetic.json (parameters)

competition_plan says which images there are, radiograph draws them, dicom_writer and competition_tables write them.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from siimcovid.core.errors import InputError
from siimcovid.core.files import make_folder, write_json
from siimcovid.core.progress import progress_bar
from siimcovid.synthetic.anatomy import Anatomy
from siimcovid.synthetic.competition_plan import PlannedImage, plan_split
from siimcovid.synthetic.competition_tables import write_tables
from siimcovid.synthetic.dicom_writer import quiet_pydicom, to_dicom
from siimcovid.synthetic.radiograph import render

#: Changes whenever the same parameters would write other bytes.
VERSION = 1
#: So many images are drawn for each further process.
IMAGES_OF_A_PROCESS = 32
#: Beside the ground truth, so that the competition folder holds nothing that the real one does not.
MARKER = "synthetic.json"


def write_competition(
    folder: Path | str, *, train_studies: int, test_studies: int, seed: int, scale: float, workers: int | None = None
) -> bool:
    """Write the demo competition to `folder` and its ground truth beside it; False if it is already there, whole.

    Args:
        folder: the competition folder; the ground truth goes to the same name with `.truth` appended.
        train_studies, test_studies: how many studies each split has.
        seed: the same seed, numbers and scale give the same bytes, whatever the number of workers.
        scale: image size as a fraction of the real ones, whose sides have 1,140 to 4,891 pixels.
        workers: processes, by default one per core.

    Raises:
        InputError: a number below 1, a scale outside (0, 1], or a folder that holds something else.
    """
    folder = Path(folder)
    truth = folder.with_name(folder.name + ".truth")
    for name, value in (("--train-studies", train_studies), ("--test-studies", test_studies)):
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    if not 0 < scale <= 1:
        raise InputError(f"--scale is {scale}; give a fraction above 0 and at most 1, for instance 0.25")
    images = plan_split(seed, "train", train_studies, scale) + plan_split(seed, "test", test_studies, scale)
    parameters = {
        "version": VERSION,
        "train_studies": train_studies,
        "test_studies": test_studies,
        "seed": seed,
        "scale": scale,
    }
    if _is_complete(folder, truth, parameters, images):
        return False
    write_json(truth / MARKER, {"parameters": parameters, "complete": False})
    boxes = map_images(partial(write_image, folder=folder), images, workers or os.cpu_count() or 1)
    write_tables(images, boxes, folder, truth)
    write_json(truth / MARKER, {"parameters": parameters, "complete": True})
    return True


def _is_complete(folder: Path, truth: Path, parameters: dict, images: list[PlannedImage]) -> bool:
    """Whether a folder holds the demo competition of these parameters with all its images; False where it is empty or
    half written. Raises InputError where it holds something else."""
    make_folder(folder)
    if not any(folder.iterdir()):
        return False
    written = json.loads((truth / MARKER).read_text()) if (truth / MARKER).is_file() else None
    if written is None:
        raise InputError(f"{folder} is not empty and no demo competition; give another folder")
    if written["parameters"] != parameters:
        raise InputError(f"{folder} holds a demo competition of other parameters; remove it or give another folder")
    return written["complete"] and all(image_path(folder, image).is_file() for image in images)


def write_image(image: PlannedImage, folder: Path) -> np.ndarray:
    """Draw an image, write it below `folder`, and return its boxes (n, 4) xyxy in pixels, empty for a repeat."""
    cv2.setNumThreads(1)
    drawn = render(
        Anatomy.draw(image.patient_seed), image.study_label, image.boxes, image.shape, image.study_seed, image.number
    )
    path = image_path(folder, image)
    make_folder(path.parent)
    with quiet_pydicom():
        to_dicom(image, drawn.pixels, np.random.default_rng([image.study_seed, 3, image.number])).save_as(
            path, enforce_file_format=True
        )
    rows, columns = image.shape
    return drawn.boxes * [columns, rows, columns, rows] if image.annotated else drawn.boxes[:0]


def image_path(folder: Path, image: PlannedImage) -> Path:
    """Where the competition keeps an image."""
    return folder / image.split / image.study / image.series / f"{image.image}.dcm"


def map_images(work: Callable, images: list, workers: int) -> list[np.ndarray]:
    """Call `work` on every image; returns the results in the order of the images.

    workers: processes at most; one starts for each IMAGES_OF_A_PROCESS, since it imports for seconds before it draws.
    """
    bar = partial(progress_bar, desc="draw images", total=len(images), unit="image", delay=2)
    workers = min(workers, len(images) // IMAGES_OF_A_PROCESS)
    if workers < 2:
        return list(bar(map(work, images)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(bar(pool.map(work, images, chunksize=4)))
