"""Whose image a DICOM file is and by which UIDs it is referred to, made valid.

In: the path of a DICOM file. Out: a `DicomIdentity` whose header has the patient, the study and the UIDs, each a value
that the standard allows, and sentences on what was left out or replaced. The competition's UIDs are 12 hexadecimal
digits and its dates are hashes; other files have none at all.
"""

import re
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pydicom.valuerep import validate_value

from siimcovid.core.files import sha256
from siimcovid.data.dicom_numbers import one_line

#: Elements of the patient and study that every object of a study repeats, with their VR; empty where the file has none.
PATIENT_AND_STUDY = {
    "PatientID": "LO",
    "PatientName": "PN",
    "PatientBirthDate": "DA",
    "PatientSex": "CS",
    "StudyDate": "DA",
    "StudyTime": "TM",
    "StudyID": "SH",
    "AccessionNumber": "SH",
    "ReferringPhysicianName": "PN",
}

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")

#: SOP class of an image whose file does not say it, by its modality; secondary capture for others.
SOP_CLASSES = {"CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

#: SOP classes of projection images that may have several frames: secondary capture, angiography, fluoroscopy.
MULTI_FRAME = {
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("7.1", "7.2", "7.3", "7.4", "12.1", "12.2", "12.1.1", "12.2.1")
}

#: What UIDs are derived in: UUIDs of version 5.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "siimcovid")

#: First component 0, 1 or 2, at most 64 characters, no component with a leading 0.
VALID_UID = re.compile(r"(?=.{3,64}$)[012](\.(0|[1-9][0-9]*))+")


@dataclass(frozen=True)
class DicomIdentity:
    """Whose image a file is.

    Attributes:
        header: PATIENT_AND_STUDY, UIDS, SOPClassUID and SpecificCharacterSet (UTF-8), all valid.
        frames: number of frames, 1 for a SOP class that is not MULTI_FRAME, whatever the file says.
        derived: the keywords of UIDs that were missing or invalid and are derived ones under 2.25.
        notices: a sentence for each value that is not the file's own.
    """

    header: Dataset
    frames: int
    derived: tuple[str, ...]
    notices: tuple[str, ...]


def derived_uid(*facts: Any) -> str:
    """A UID under 2.25 made of a UUID (version 5): the same for the same facts."""
    return f"2.25.{uuid.uuid5(NAMESPACE, repr(facts)).int}"


def is_valid_uid(value: str) -> bool:
    """Whether a value is a UID by the standard's rules."""
    return VALID_UID.fullmatch(value) is not None


def read_identity(path: Path) -> DicomIdentity:
    """Read the identity of a DICOM file. An invalid UID becomes one that is derived from its value, so that the images
    of a study stay together; a missing one is derived from the file's content. Raises OSError alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, for each value that is not valid
        return _identity(path, _read(path))


def _identity(path: Path, found: Dataset) -> DicomIdentity:
    header, notices, derived = Dataset(), [], []
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword, vr in PATIENT_AND_STUDY.items():
        value = _text(found, keyword)
        if value and not _is_valid(keyword, vr, value):
            notices.append(f"{keyword} '{one_line(value)}' of the image is not valid and left out.")
            value = ""
        setattr(header, keyword, value)
    for keyword in UIDS:
        value = _text(found, keyword)
        if not value and keyword == "SOPInstanceUID":
            value = _text(getattr(found, "file_meta", Dataset()), "MediaStorageSOPInstanceUID")
        if not is_valid_uid(value):
            replacement = derived_uid(keyword, value or sha256(path))
            said = (
                f"{keyword} '{one_line(value)}' of the image is not valid" if value else f"The image has no {keyword}"
            )
            notices.append(f"{said}: {replacement}, derived from {'it' if value else 'its content'}, stands for it.")
            derived.append(keyword)
            value = replacement
        setattr(header, keyword, value)
    header.SOPClassUID = _text(found, "SOPClassUID") or _text(
        getattr(found, "file_meta", Dataset()), "MediaStorageSOPClassUID"
    )
    if not is_valid_uid(header.SOPClassUID):
        header.SOPClassUID = SOP_CLASSES.get(_text(found, "Modality").upper(), SECONDARY_CAPTURE)
        notices.append(f"The image does not say its SOP class, which is taken as {UID(header.SOPClassUID).name}.")
    frames = _text(found, "NumberOfFrames") if header.SOPClassUID in MULTI_FRAME else ""
    return DicomIdentity(header, int(frames) if frames.isdigit() else 1, tuple(derived), tuple(notices))


def _read(path: Path) -> Dataset:
    keywords = (*PATIENT_AND_STUDY, *UIDS, "SOPClassUID", "Modality", "NumberOfFrames", "SpecificCharacterSet")
    try:
        return dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(keywords))
    except OSError as error:
        if error.errno is not None:
            raise
    except Exception:  # a damaged header makes pydicom raise nearly anything
        pass
    return Dataset()


def _text(dataset: Dataset, keyword: str) -> str:
    """An element as text, "" where it is missing or cannot be decoded; of several values, one with backslashes."""
    try:
        element = dataset.get(keyword)
        values = element if isinstance(element, (list, tuple)) or type(element).__name__ == "MultiValue" else [element]
        return "\\".join("" if value is None else str(value) for value in values).strip(" \0")
    except Exception:  # see _read
        return ""


def _is_valid(keyword: str, vr: str, value: str) -> bool:
    """Whether the standard allows a value, which then can be written in UTF-8."""
    if keyword == "PatientSex":
        return value in ("M", "F", "O")
    if "\\" in value or not value.isprintable():
        return False
    try:
        value.encode()
        validate_value(vr, value, config.RAISE)
    except (ValueError, TypeError):
        return False
    return True
