"""The demo competition: a folder of synthetic images laid out, named and encoded as the real one is, answers held back.

    OUT/{train,test}/<study>/<series>/<image>.dcm     OUT.truth/test_image_level.csv
    OUT/train_image_level.csv, train_study_level.csv  OUT.truth/test_study_level.csv
    OUT/sample_submission.csv                         OUT.truth/synthetic.json (parameters)

Every proportion here was counted on the competition's own files (6,334 train images, 6,054 studies, 3,261 patients).
Proportions are dealt out, not drawn: a split of 60 studies holds each study label, encoding and number of boxes as
often as its share says.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import gdcm
import numpy as np
import pandas as pd
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1
from tqdm import tqdm

from siimcovid.core.errors import InputError
from siimcovid.core.files import make_folder, write_csv, write_json
from siimcovid.core.labels import STUDY_COLUMNS, STUDY_LABELS
from siimcovid.synthetic.anatomy import Anatomy
from siimcovid.synthetic.radiograph import render

#: Changes whenever the same parameters would write other bytes.
VERSION = 1
MARKER = "synthetic.json"  # beside the answers, so that the competition folder holds nothing the real one does not

# Counts over the real train set. Studies by study label, and by study label the number of boxes on the study's boxed
# image.
LABEL_COUNTS = {"negative": 1676, "typical": 2855, "indeterminate": 1049, "atypical": 474}
BOX_COUNTS = {
    "negative": {0: 1676},
    "typical": {1: 27, 2: 2654, 3: 152, 4: 21},
    "indeterminate": {1: 685, 2: 345, 3: 17, 4: 2},
    "atypical": {0: 83, 1: 261, 2: 115, 3: 14, 4: 1},
}
#: Studies by number of images; those with several share out over the study labels as below.
IMAGE_COUNTS = {2: 207, 3: 15, 4: 4, 5: 3}
REPEATED_COUNTS = {"negative": 53, "typical": 130, "indeterminate": 42, "atypical": 7}
#: Patients by number of studies.
STUDIES_PER_PATIENT = {
    1: 2061, 2: 599, 3: 282, 4: 125, 5: 69, 6: 46, 7: 18, 8: 12, 9: 11, 10: 7, 11: 8, 12: 3, 13: 8, 14: 2, 15: 2,
    16: 2, 17: 1, 18: 1, 19: 1, 20: 2, 25: 1,
}  # fmt: skip
#: Rows x columns of the 24 commonest sizes, which cover 3 of 4 images.
SIZE_COUNTS = {
    (2336, 2836): 731, (3480, 4240): 572, (3480, 4248): 555, (3488, 4256): 485, (2544, 3056): 445, (2320, 2832): 370,
    (2800, 3408): 268, (2539, 3050): 259, (2520, 3032): 187, (2436, 3032): 185, (1140, 1387): 181, (2330, 2846): 175,
    (1760, 2140): 165, (2801, 2802): 157, (3032, 3032): 147, (2991, 2992): 123, (2540, 2880): 115, (2416, 2872): 106,
    (3052, 3052): 104, (2536, 3048): 76, (4020, 4891): 68, (2874, 2840): 65, (4240, 3480): 56, (2400, 2880): 48,
}  # fmt: skip
BITS_COUNTS = {12: 4311, 15: 1240, 8: 401, 14: 210, 16: 166, 10: 3, 13: 3}
PHOTOMETRIC_COUNTS = {"MONOCHROME2": 4633, "MONOCHROME1": 1701}
SYNTAX_COUNTS = {ExplicitVRLittleEndian: 5894, JPEGLosslessSV1: 440}
MODALITY_COUNTS = {"DX": 3242, "CR": 3092}
SOP_CLASS = {"DX": "1.2.840.10008.5.1.4.1.1.1.1", "CR": "1.2.840.10008.5.1.4.1.1.1"}


@dataclass(frozen=True)
class Image:
    """One image to write: all there is to know before its pixels are drawn."""

    split: str
    study: str
    series: str
    image: str
    patient: str
    number: int  # of the image within its study, from 0
    annotated: bool  # False for the repeats of a study, whose opacities nobody boxed
    study_label: str
    boxes: int
    shape: tuple[int, int]
    bits: int
    photometric: str
    syntax: str
    modality: str
    patient_seed: int
    study_seed: int


def deal(rng: np.random.Generator, counts: dict, total: int) -> list:
    """`total` of the keys of `counts`, each as often as its share (largest remainders), in random order."""
    shares = np.array(list(counts.values())) / sum(counts.values()) * total
    times = np.floor(shares).astype(int)
    times[np.argsort(times - shares, kind="stable")[: total - times.sum()]] += 1
    dealt = [key for key, n in zip(counts, times, strict=True) for _ in range(n)]
    return [dealt[i] for i in rng.permutation(total)]


def _identifier(*parts: object) -> str:
    """12 hexadecimal digits, as the competition has where a UID, a patient or a date should stand."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:12]


def _patients(rng: np.random.Generator, studies: int) -> list[int]:
    """For each study its patient's number: as many patients a study, with as many studies each, as were counted."""
    patients = max(round(studies * 3261 / 6054), 1)
    sizes = np.sort(deal(rng, STUDIES_PER_PATIENT, patients))[::-1]
    while sizes.sum() != studies:  # the few patients with many studies are dealt in or out as a whole
        most = int(np.argmax(sizes))
        if sizes.sum() > studies:
            sizes[most] -= 1
        else:
            sizes[int(rng.integers(patients))] += 1
    return list(rng.permutation(np.repeat(np.arange(patients), sizes)))


def plan_split(seed: int, split: str, studies: int, scale: float) -> list[Image]:
    """Every image of a split, in the order in which they are drawn."""
    rng = np.random.default_rng([seed, {"train": 1, "test": 2}[split]])
    study_labels = deal(rng, LABEL_COUNTS, studies)
    patients = _patients(rng, studies)
    box_decks = {
        study_label: deal(rng, BOX_COUNTS[study_label], study_labels.count(study_label)) for study_label in LABEL_COUNTS
    }
    repeated = round(studies * sum(REPEATED_COUNTS.values()) / sum(LABEL_COUNTS.values()))
    image_counts = np.ones(studies, int)
    image_deck = deal(rng, IMAGE_COUNTS, repeated)
    for study_label in deal(rng, REPEATED_COUNTS, repeated):
        single = [i for i in range(studies) if study_labels[i] == study_label and image_counts[i] == 1]
        if single:
            image_counts[rng.choice(single)] = image_deck.pop()
    shapes = deal(rng, SIZE_COUNTS, studies)
    tables = {
        "bits": BITS_COUNTS,
        "photometric": PHOTOMETRIC_COUNTS,
        "syntax": SYNTAX_COUNTS,
        "modality": MODALITY_COUNTS,
    }
    decks = {name: deal(rng, counts, int(image_counts.sum())) for name, counts in tables.items()}
    images = []
    for i in range(studies):
        key = (seed, split, i)
        patient = (seed, split, patients[i])
        study_seed, annotated = int(rng.integers(2**31)), int(rng.integers(image_counts[i]))
        boxes = box_decks[study_labels[i]].pop()
        images += [
            Image(
                split=split,
                study=_identifier("study", *key),
                series=_identifier("series", *key, number),
                image=_identifier("image", *key, number),
                patient=_identifier("patient", *patient),
                number=number,
                annotated=number == annotated,
                study_label=study_labels[i],
                boxes=boxes,
                shape=tuple(max(2 * round(side * scale / 2), 64) for side in shapes[i]),
                patient_seed=int(_identifier("anatomy", *patient), 16),
                study_seed=study_seed,
                **{name: deck.pop() for name, deck in decks.items()},
            )
            for number in range(image_counts[i])
        ]
    return images


def _jpeg_lossless(dataset: Dataset) -> bytes:
    """The dataset's pixels as one JPEG Lossless SV1 frame, by gdcm, which wants them in a file."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        dataset.save_as(file.name, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(file.name)
        if not reader.Read():
            raise RuntimeError("gdcm cannot read the image it is to encode")
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        if not change.Change():
            raise RuntimeError("gdcm cannot encode JPEG Lossless")
        frame = change.GetOutput().GetDataElement().GetSequenceOfFragments().GetFragment(0).GetByteValue().GetBuffer()
    return frame if isinstance(frame, bytes) else frame.encode("utf-8", "surrogateescape")


def encode(image: Image, pixels: np.ndarray, rng: np.random.Generator) -> Dataset:
    """DICOM file of an image; `pixels` (rows, columns) in [0, 1], 0 is black."""
    top = 2**image.bits - 1
    low, high = rng.uniform(0, 0.04), rng.uniform(0.75, 1.0)  # few detectors use all of their range
    stored = np.round((low + (high - low) * pixels) * top)
    stored = (top - stored if image.photometric == "MONOCHROME1" else stored).astype("u1" if image.bits == 8 else "<u2")
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.MediaStorageSOPClassUID = SOP_CLASS[image.modality]
    d.file_meta.MediaStorageSOPInstanceUID = image.image
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SpecificCharacterSet, d.ImageType = "ISO_IR 100", ["ORIGINAL", "PRIMARY"]
    d.SOPClassUID, d.SOPInstanceUID = SOP_CLASS[image.modality], image.image
    d.StudyDate, d.StudyTime = _identifier("date", image.study), _identifier("time", image.study)
    d.AccessionNumber, d.Modality = _identifier("accession", image.study), image.modality
    d.PatientName, d.PatientID = _identifier("name", image.patient), image.patient
    d.PatientSex = "F" if Anatomy.draw(image.patient_seed).breasts else "M"
    d.BodyPartExamined, d.ViewPosition = "CHEST", "AP"
    d.StudyInstanceUID, d.SeriesInstanceUID, d.StudyID = image.study, image.series, _identifier("id", image.study)
    d.SeriesNumber, d.InstanceNumber = image.number + 1, 1
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, image.photometric
    d.Rows, d.Columns = stored.shape
    d.BitsAllocated, d.BitsStored, d.HighBit = stored.itemsize * 8, image.bits, image.bits - 1
    d.PixelRepresentation = 0
    d.PixelData = stored.tobytes()
    if image.syntax == JPEGLosslessSV1:
        d.PixelData = encapsulate([_jpeg_lossless(d)])
        d.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    return d


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Let pydicom write identifiers that are no valid UIDs, as the real files' are, without a word."""
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")
        yield


def image_path(folder: Path, image: Image) -> Path:
    """Where the competition keeps an image."""
    return folder / image.split / image.study / image.series / f"{image.image}.dcm"


def write_image(image: Image, folder: Path) -> np.ndarray:
    """Draw an image, write it below `folder`, and return its boxes (n, 4) xyxy in pixels, empty for a repeat."""
    cv2.setNumThreads(1)
    drawn = render(
        Anatomy.draw(image.patient_seed), image.study_label, image.boxes, image.shape, image.study_seed, image.number
    )
    path = image_path(folder, image)
    make_folder(path.parent)
    with quiet_pydicom():
        encode(image, drawn.pixels, np.random.default_rng([image.study_seed, 3, image.number])).save_as(
            path, enforce_file_format=True
        )
    rows, columns = image.shape
    return drawn.boxes * [columns, rows, columns, rows] if image.annotated else drawn.boxes[:0]


def image_row(image: Image, boxes: np.ndarray) -> tuple[str, str | None, str, str]:
    """A row of `train_image_level.csv`: id, boxes, label, StudyInstanceUID; numbers have five digits, as there."""
    entries, labels = [], []
    for x1, y1, x2, y2 in np.round(boxes, 5).tolist():
        entries.append({"x": x1, "y": y1, "width": round(x2 - x1, 5), "height": round(y2 - y1, 5)})
        labels.append(f"opacity 1 {x1} {y1} {x2} {y2}")
    return (
        f"{image.image}_image",
        str(entries) if entries else None,
        " ".join(labels) or "none 1 0 0 1 1",
        image.study,
    )


def _csv(path: Path, columns: list[str], rows: list[tuple]) -> None:
    """Write a table as the competition's are written."""
    write_csv(pd.DataFrame(rows, columns=columns), path)


def write_competition(
    folder: Path | str, *, train_studies: int, test_studies: int, seed: int, scale: float, workers: int | None = None
) -> bool:
    """Write the demo competition to `folder` and its answers beside it; False if it is already there, whole.

    Args:
        folder: the competition folder; the answers go to the same name with `.truth` appended.
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
    make_folder(folder)
    if any(folder.iterdir()):
        written = json.loads((truth / MARKER).read_text()) if (truth / MARKER).is_file() else None
        if written is None:
            raise InputError(f"{folder} is not empty and no demo competition; give another folder")
        if written["parameters"] != parameters:
            raise InputError(f"{folder} holds a demo competition of other parameters; remove it or give another folder")
        if written["complete"] and all(image_path(folder, image).is_file() for image in images):
            return False
    write_json(truth / MARKER, {"parameters": parameters, "complete": False})
    boxes = map_images(partial(write_image, folder=folder), images, workers or os.cpu_count() or 1)
    write_tables(images, boxes, folder, truth)
    write_json(truth / MARKER, {"parameters": parameters, "complete": True})
    return True


def map_images(work: Callable, images: list, workers: int) -> list[np.ndarray]:
    """`work` on every image, in parallel; the results in the order of the images."""
    bar = partial(tqdm, desc="synthetics", total=len(images), unit="image", delay=2)
    if workers == 1:
        return list(bar(map(work, images)))
    with ProcessPoolExecutor(min(workers, len(images)), mp_context=get_context("spawn")) as pool:
        return list(bar(pool.map(work, images, chunksize=4)))


def write_tables(images: list[Image], boxes: list[np.ndarray], folder: Path, truth: Path) -> None:
    """The competition's three CSVs to `folder`, the test split's two to `truth`."""
    for split, place in (("train", folder), ("test", truth)):
        of_split = [(image, found) for image, found in zip(images, boxes, strict=True) if image.split == split]
        rows = sorted(image_row(image, found) for image, found in of_split)
        _csv(place / f"{split}_image_level.csv", ["id", "boxes", "label", "StudyInstanceUID"], rows)
        rows = sorted(
            {
                (f"{image.study}_study", *(int(image.study_label == study_label) for study_label in STUDY_LABELS))
                for image, _ in of_split
            }
        )
        _csv(place / f"{split}_study_level.csv", ["id", *STUDY_COLUMNS], rows)
    test = [image for image in images if image.split == "test"]
    sample = sorted({(f"{image.study}_study", "negative 1 0 0 1 1") for image in test})
    sample += [(f"{image.image}_image", "none 1 0 0 1 1") for image in test]  # in no order, as in the original
    _csv(folder / "sample_submission.csv", ["id", "PredictionString"], sample)
