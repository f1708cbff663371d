"""Lay out a person's own images as a competition folder: any mix of DICOM, PNG and JPEG, in any folders.

In: a folder of images; boxes as CSV or COCO JSON; study labels as CSV. Out: the folder that data/competition.py reads,
with a share of the patients held back as its test part and their ground truth in `<out>.truth/`.

    boxes CSV   image_id (or file, filename, image), then xmin, ymin, xmax, ymax or x, y, width, height in pixels of the
                original image; an image without a row, or with empty numbers, has no box
    COCO JSON   images (file_name, width, height) and annotations (image_id, bbox); every category counts as opacity
    labels CSV  image_id or study_id (or file), study_label (one of STUDY_LABELS, or the competition's four 0/1
                columns), and, where they are known, study_id and patient_id

An image is named by its file's name without the ending, or by its path below the folder. PNG and JPEG become DICOM
files with the same pixels, so that everything after this step is the same for all; DICOM files are linked or copied.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, link, write_json, write_text
from siimcovid.core.labels import STUDY_COLUMNS, STUDY_LABELS
from siimcovid.core.tables import numbers, read_csv, some
from siimcovid.data.dicom_headers import read_header

PICTURES = (".png", ".jpg", ".jpeg")
NAMES = ("image_id", "file", "filename", "file_name", "image")  # columns that may name an image, the first one counts
CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x", "y", "width", "height"))

#: Kept free of a file system's and the submission's special characters.
UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")


@dataclass
class FoundImage:
    """One image of the folder."""

    path: Path
    name: str  # its path below the folder, without the ending
    rows: int
    columns: int
    patient_id: str = ""
    study_id: str = ""
    boxes: list[list[float]] = field(default_factory=list)  # xmin, ymin, xmax, ymax in pixels
    study_label: str = ""


@dataclass(frozen=True)
class ImportResult:
    """What was laid out, and what was left out."""

    train: int
    test: int
    boxes: int
    problems: tuple[str, ...]  # a sentence each


def import_images(
    folder: Path | str, boxes: Path | str, labels: Path | str | None, out: Path | str, test_share: float = 0.2
) -> ImportResult:
    """Lay out `folder` as a competition in `out`; see the module's docstring.

    Args:
        folder: images in any layout; what is no DICOM, PNG or JPEG is left out and reported.
        boxes, labels: tables as above; without labels the detectors alone can be trained.
        out: must be empty or absent.
        test_share: share of the patients that are held back, above 0 and below 1; at least one patient.

    Raises:
        InputError: no readable image, a table that does not fit the images, or an `out` that holds something.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of your images")
    if not 0 < test_share < 1:
        raise InputError(f"the test part must be a share between 0 and 1 of the patients, not {test_share}")
    for place in (out, truth_folder(out)):
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise InputError(f"{place} is there already and not empty: give another folder")
    images, problems = find_images(folder)
    if not images:
        raise InputError(f"no readable DICOM, PNG or JPEG image in {folder}" + (f": {problems[0]}" if problems else ""))
    names = names_of(images)
    problems += _add_boxes(images, names, Path(boxes))
    if labels is None:
        problems.append("no study labels were given (--labels): the detectors can be trained, the study model cannot")
    else:
        problems += _add_labels(images, names, Path(labels))
    ids = image_ids(images)
    for image in images:
        image.study_id = UNSAFE.sub("-", image.study_id) or ids[image.name]
        image.patient_id = image.patient_id or image.study_id
    patients = {image.patient_id for image in images}
    if len(patients) < 2:
        raise InputError(
            f"all images are of one patient ({min(patients)}): some are held back, so give those of two or more"
        )
    held_back = _held_back(patients, test_share)
    _write(images, ids, held_back, out, labels is not None)
    test = sum(image.patient_id in held_back for image in images)
    return ImportResult(len(images) - test, test, sum(len(image.boxes) for image in images), tuple(problems))


def truth_folder(out: Path) -> Path:
    """Where the ground truth of the test part lies."""
    return out.with_name(out.name + ".truth")


def find_images(folder: Path) -> tuple[list[FoundImage], list[str]]:
    """The readable images below a folder, by name, and a sentence for what is left out."""
    images, unreadable = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if path.suffix.lower() in PICTURES:
            pixels = read_picture(path)
            if pixels is not None:
                images.append(FoundImage(path, name, *pixels.shape))
                continue
        elif path.suffix.lower() not in (".csv", ".json", ".txt", ".md", ".xml", ".zip"):
            header = read_header(path)
            if not header.fault:
                images.append(FoundImage(path, name, header.rows, header.columns, header.patient_id))
                continue
        else:
            continue
        unreadable.append(path.relative_to(folder).as_posix())
    problems = [f"no readable image, left out: {len(unreadable)} ({some(unreadable)})"] if unreadable else []
    return images, problems


def read_picture(path: Path) -> np.ndarray | None:
    """A PNG or JPEG as grey uint8 or uint16 (rows, columns), upright by its EXIF orientation; None where damaged."""
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error):
        return None
    return pixels if pixels is not None and pixels.dtype in (np.uint8, np.uint16) else None


def names_of(images: Iterable[FoundImage]) -> dict[str, list[FoundImage]]:
    """Every name that a table may use for an image: its path, its file's name, each with and without the ending."""
    names: dict[str, list[FoundImage]] = {}
    for image in images:
        short, end = Path(image.name).name, image.path.suffix
        for name in dict.fromkeys((image.name, short, image.name + end, short + end)):
            names.setdefault(name, []).append(image)
    return names


def image_ids(images: Iterable[FoundImage]) -> dict[str, str]:
    """Image name -> its id in the competition folder: the file's name where it is unique and harmless, else with a
    hash of the path behind it."""
    images = list(images)
    short = pd.Series([UNSAFE.sub("-", Path(image.name).name).strip("-.") for image in images])
    plain = ~short.duplicated(keep=False) & (short == [Path(image.name).name for image in images])
    ids = {}
    for image, name, harmless in zip(images, short, plain, strict=True):
        digest = hashlib.sha256(image.name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        ids[image.name] = name if harmless else f"{name or 'image'}-{digest}"
    return ids


def _only(names: Mapping[str, list[FoundImage]], name: str, path: Path) -> FoundImage | None:
    """The image of a name, which may also be a path of somewhere else. Raises InputError where several have it."""
    tried = (name, name.removesuffix("_image"), Path(name).name, Path(name).stem)
    found = next((names[one] for one in tried if one in names), [])
    if len(found) > 1:
        paths = ", ".join(str(image.path) for image in found[:2])
        raise InputError(f"{path}: {name!r} is the name of several images ({paths}): give the path below the folder")
    return found[0] if found else None


def _naming_column(table: pd.DataFrame, path: Path, further: tuple[str, ...] = ()) -> str:
    for name in (*NAMES, *further):
        if name in table:
            return name
    raise InputError(f"{path} has no column that names the image: one of {', '.join((*NAMES, *further))}")


def _add_boxes(images: list[FoundImage], names: Mapping[str, list[FoundImage]], path: Path) -> list[str]:
    """Give each image its boxes, in pixels; returns what was left out."""
    found = _coco_boxes(path) if path.suffix.lower() == ".json" else _csv_boxes(path)
    unknown, faulty, clipped = [], [], 0
    for name, box in found:
        image = _only(names, name, path)
        if image is None:
            unknown.append(name)
        elif box is not None:
            inside = [
                min(max(value, 0), side) for value, side in zip(box, [image.columns, image.rows] * 2, strict=True)
            ]
            clipped += inside != box
            if inside[2] - inside[0] < 1 or inside[3] - inside[1] < 1:
                faulty.append(name)
            else:
                image.boxes.append(inside)
    if found and len(unknown) == len(found):
        raise InputError(
            f"{path} names none of the {len(images)} images, the first is {unknown[0]!r}; {names_hint(names)}"
        )
    problems = [f"{path.name} names images that are not there: {len(unknown)} ({some(unknown)})"] if unknown else []
    if clipped:
        problems.append(f"boxes that reach outside their image and were clipped: {clipped}")
    if faulty:
        problems.append(f"boxes of less than a pixel, left out: {len(faulty)} ({some(faulty)})")
    return problems


def names_hint(names: Mapping[str, list[FoundImage]]) -> str:
    """How the images are called, for a message."""
    return f"the images are called {some(list(names), 2)}"


def _csv_boxes(path: Path) -> list[tuple[str, list[float] | None]]:
    """(image name, [xmin, ymin, xmax, ymax] or None) of each row of a CSV."""
    table = read_csv(path)
    column = _naming_column(table, path)
    corners = next((group for group in CORNERS if set(group) <= set(table)), None)
    if corners is None:
        wanted = " or ".join(", ".join(group) for group in CORNERS)
        raise InputError(f"{path} has no columns of boxes: give {wanted} in pixels")
    given = (table[list(corners)] != "").all(axis=1)
    values = table[given].assign(**{name: numbers(table[given], name, path) for name in corners})
    sizes = corners == ("x", "y", "width", "height")
    boxes = {}
    for place, a, b, c, d in zip(values.index, *(values[name] for name in corners), strict=True):
        boxes[place] = [a, b, a + c, b + d] if sizes else [a, b, c, d]
    return [(name, boxes.get(place)) for place, name in table[column].items()]


def _coco_boxes(path: Path) -> list[tuple[str, list[float] | None]]:
    """The same of a COCO JSON file, whose bbox is x, y, width, height."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        boxes: list[tuple[str, list[float] | None]] = [(name, None) for name in names.values()]
        for one in content["annotations"]:
            x, y, width, height = (float(value) for value in one["bbox"])
            if not all(map(math.isfinite, (x, y, width, height))):
                raise ValueError(f"bbox {one['bbox']} holds a number that is not finite")
            boxes.append((names[one["image_id"]], [x, y, x + width, y + height]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no COCO JSON with images and annotations ({error!r}): export it again") from None
    return boxes


def _add_labels(images: list[FoundImage], names: Mapping[str, list[FoundImage]], path: Path) -> list[str]:
    """Give each image its study label, and its study and patient where the table knows them."""
    table = read_csv(path)
    column = _naming_column(table, path, ("study_id",))
    values = _label_column(table, path)
    unknown = []
    by_study: dict[str, list[FoundImage]] = {}
    if column == "study_id":
        for image in images:  # the folder that an image lies in, at any depth, may be its study
            for part in Path(image.name).parent.parts:
                by_study.setdefault(part, []).append(image)
    for place, name in table[column].items():
        found = by_study.get(name, []) if column == "study_id" else [_only(names, name, path)]
        if not found or found[0] is None:
            unknown.append(name)
            continue
        for image in found:
            image.study_label = values[place]
            image.study_id = table["study_id"][place] if "study_id" in table else image.study_id
            image.patient_id = table["patient_id"][place] if "patient_id" in table else image.patient_id
    without = [image.name for image in images if not image.study_label]
    if len(without) == len(images):
        raise InputError(f"{path} gives none of the {len(images)} images a study label; {names_hint(names)}")
    problems = [f"{path.name} names what is not there: {len(unknown)} ({some(unknown)})"] if unknown else []
    if without:
        problems.append(f"images without a study label, which the study model does not train on: {some(without)}")
    return problems


def _label_column(table: pd.DataFrame, path: Path) -> pd.Series:
    """The study label of each row. Raises InputError for one that is none of the four."""
    if set(STUDY_COLUMNS) <= set(table):
        marks = np.stack([numbers(table, column, path) for column in STUDY_COLUMNS], axis=1)
        if (np.sort(marks, axis=1) != (0, 0, 0, 1)).any():
            raise InputError(f"{path}: each row must have exactly one of the four study columns set to 1")
        return pd.Series([STUDY_LABELS[place] for place in marks.argmax(axis=1)], index=table.index)
    column = next((name for name in ("study_label", "label") if name in table), None)
    if column is None:
        raise InputError(f"{path} has no column study_label, nor the four columns {', '.join(STUDY_COLUMNS)}")
    values = table[column].str.strip().str.lower()
    if len(wrong := table[column][~values.isin(STUDY_LABELS)]):
        raise InputError(f"{path}: study label {wrong.iloc[0]!r} is none of {', '.join(STUDY_LABELS)}")
    return values


def _held_back(patients: set[str], share: float) -> set[str]:
    """The patients of the test part: those with the lowest hashes, so that the choice does not depend on the rest."""
    order = sorted(patients, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest())
    return set(order[: min(max(round(len(order) * share), 1), len(order) - 1)])


def _write(images: list[FoundImage], ids: Mapping[str, str], held_back: set[str], out: Path, labelled: bool) -> None:
    """Write files and tables; sample_submission.csv, which makes it a competition folder, comes last."""
    parts = {"train": [], "test": []}
    for image in images:
        parts["test" if image.patient_id in held_back else "train"].append(image)
    for split, members in parts.items():
        for image in members:
            target = out / split / image.study_id / "1" / f"{ids[image.name]}.dcm"
            with atomic_path(target) as temporary:
                if image.path.suffix.lower() in PICTURES:
                    _as_dicom(image, ids[image.name]).save_as(temporary, enforce_file_format=True)
                else:
                    link(image.path.resolve(), temporary)
    for split, members in parts.items():
        target = out if split == "train" else truth_folder(out)
        _write_tables(members, ids, target, split, labelled)
    sample = [f"{study}_study,negative 1 0 0 1 1" for study in sorted({image.study_id for image in parts["test"]})]
    sample += [f"{ids[image.name]}_image,none 1 0 0 1 1" for image in parts["test"]]
    write_json(out / "imported.json", {"from": "siimcovid import", "images": len(images)})
    write_text(out / "sample_submission.csv", "\n".join(["id,PredictionString", *sample]) + "\n")


def _write_tables(images: list[FoundImage], ids: Mapping[str, str], folder: Path, split: str, labelled: bool) -> None:
    rows, studies = [], {}
    for image in images:
        boxes = [{"x": a, "y": b, "width": c - a, "height": d - b} for a, b, c, d in image.boxes]
        label = " ".join(f"opacity 1 {a} {b} {c} {d}" for a, b, c, d in image.boxes) or "none 1 0 0 1 1"
        rows.append((f"{ids[image.name]}_image", str(boxes) if boxes else "", label, image.study_id))
        if image.study_label:
            studies[image.study_id] = image.study_label
    columns = ["id", "boxes", "label", "StudyInstanceUID"]
    text = pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n")
    write_text(folder / f"{split}_image_level.csv", text)
    if labelled:
        marks = [(f"{study}_study", *(int(name == label) for name in STUDY_LABELS)) for study, label in studies.items()]
        text = pd.DataFrame(marks, columns=["id", *STUDY_COLUMNS]).to_csv(index=False, lineterminator="\n")
        write_text(folder / f"{split}_study_level.csv", text)


def _as_dicom(image: FoundImage, image_id: str) -> Dataset:
    """A Secondary Capture with the picture's own pixels, without loss."""
    pixels = read_picture(image.path)
    bits = 8 if pixels.dtype == np.uint8 else max(9, int(pixels.max()).bit_length())
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    uids = {name: generate_uid(entropy_srcs=[name, value]) for name, value in
            (("image", image.name), ("study", image.study_id), ("series", image.study_id))}  # fmt: skip
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uids["image"]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uids["study"], uids["series"]
    dataset.PatientID, dataset.Modality, dataset.ConversionType = image.patient_id[:64], "OT", "WSD"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = pixels.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = 0
    data = pixels.astype("u1" if pixels.itemsize == 1 else "<u2").tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    return dataset
