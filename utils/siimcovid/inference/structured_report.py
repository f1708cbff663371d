"""DICOM Structured Reports of predictions, for the viewers that radiologists use: `siimcovid predict --dicom-sr`.

In: `FilePredictions` and the `TrainedModel` that made them. Out, for each image that is DICOM:

    OUT/dicom-sr/<path of the image below the named folder>.dcm   a Comprehensive SR by template TID 1500
    OUT/dicom-sr.csv                                              image_id, report, notice: a row per report

A report belongs to the image's patient and study. It holds a measurement group for each box (TID 1410: the region in
the image's pixels, finding "Opacity" in the lung, certainty in percent) and one for the image (TID 1501: a probability
for each study label and for no opacity), each with the algorithm's name, version and weights; and as comments that it
is for research, what the weights were trained on, and which of the image's UIDs were missing or invalid: derived ones
under 2.25 stand for them. A PNG or JPEG file has no patient to report on and gets none.

A report's own UID is derived from the image's and all that was predicted with what, so a report that is there already
is not written again.
"""

import math
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from siimcovid import __version__
from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, write_csv
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.data import image_files
from siimcovid.data.dicom_identity import DicomIdentity, derived_uid, read_identity
from siimcovid.data.image_files import ImageFile
from siimcovid.inference.predict_files import FilePredictions
from siimcovid.inference.trained_model import ImageRow, TrainedModel

if TYPE_CHECKING:
    from highdicom import sr
    from pydicom.dataset import Dataset

FOLDER = "dicom-sr"
COLUMNS = ["image_id", "report", "notice"]

ALGORITHM = "siimcovid"

#: The coding scheme of what has no code in a public one, and its codes for the probabilities.
SCHEME = "99SIIMCOVID"
PROBABILITIES = {
    "negative": "Probability of no appearance of pneumonia",
    "typical": "Probability of typical appearance of COVID-19",
    "indeterminate": "Probability of indeterminate appearance of COVID-19",
    "atypical": "Probability of atypical appearance of COVID-19",
    "none": "Certainty of no opacity",
}

#: Bytes of a file's name in a report's path; an image with a longer one gets its image_id.
LONGEST_NAME = 240

#: Series and instance number: the reports are a series of their own, numbered high so that it comes last.
SERIES_NUMBER = 9900


class Written(NamedTuple):
    """What `write_reports` did.

    Attributes:
        table: COLUMNS; a report's path below OUT.
        derived: how many of the images had a missing or invalid UID.
        pictures: how many PNG and JPEG images there are, which get no report.
    """

    table: pd.DataFrame
    derived: int
    pictures: int


def require_highdicom() -> None:
    """Raise InputError where highdicom, which writes the reports, is not installed."""
    try:
        import highdicom.sr  # noqa: F401
    except ModuleNotFoundError:
        raise InputError("--dicom-sr needs highdicom: pip install 'siimcovid[dicom-sr]'") from None


def write_reports(
    found: FilePredictions,
    images: Sequence[ImageFile],
    rows: Sequence[ImageRow],
    model: TrainedModel,
    sources: Sequence[Path],
    out: Path,
) -> Written:
    """Write a report for each DICOM image that was predicted.

    Args:
        found, rows: the predictions; see `predict_files.predict_files` and `write_predictions.predicted_rows`.
        images: where the images are; see `image_files.find_images`.
        sources: the paths that the user named, below which the reports' paths repeat the images'.
        out: the reports are written to OUT/dicom-sr, their table to OUT/dicom-sr.csv.

    In a distributed launch each process writes its share, and all return the whole table.
    """
    row_of = {row.image_id: row for row in rows}
    predicted = [image for image in images if image.image_id in row_of]
    paths = report_paths(predicted, sources)
    results = []
    for image in predicted[found.rank :: found.processes]:
        with tempfile.TemporaryDirectory(prefix="siimcovid-") as temporary:
            try:
                file = image_files.place(image, Path(temporary))
                if file.suffix != ".dcm":
                    results.append((image.image_id, None, 0, ""))
                    continue
                identity = read_identity(file)
            except (InputError, OSError):  # it was read a moment ago; what cannot be read now has no report
                continue
        _write(out / FOLDER / paths[image.image_id], identity, row_of[image.image_id], model)
        report = str(PurePath(FOLDER) / paths[image.image_id])
        results.append((image.image_id, report, bool(identity.derived), " ".join(identity.notices)))
    results = sorted(found.gather(results), key=lambda result: result[0])
    reports = [result for result in results if result[1] is not None]
    table = pd.DataFrame([(name, report, notice) for name, report, _, notice in reports], columns=COLUMNS)
    if found.rank == 0:
        write_csv(table, out / f"{FOLDER}.csv")
    return Written(table, sum(derived for _, _, derived, _ in reports), len(results) - len(reports))


def report_paths(images: Sequence[ImageFile], sources: Sequence[Path]) -> Mapping[str, PurePath]:
    """image_id -> relative path of the image's report: the image's own below the folder or archive that was named.

    Where several paths were named, their last part comes first. Never one above or outside; two images have never the
    same.
    """
    named = [Path(source).expanduser() for source in sources]
    taken: set[PurePath] = set()
    found = {}
    for image in images:
        base = next((path for path in named if path == image.path or path in image.path.parents), image.path.parent)
        above = base.parent if base == image.path or len(named) > 1 else base
        inside = (*image.path.relative_to(above).parts, *PurePath(image.member).parts)
        path = PurePath(*(part for part in inside if part not in ("..", "/", "//")))
        if path.suffix.lower() != ".dcm":
            path = path.with_name(f"{path.name}.dcm")
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
            path = PurePath(f"{image.image_id}.dcm")
        unique, number = path, 2
        while unique in taken:
            unique, number = path.with_name(f"{path.stem}_{number}{path.suffix}"), number + 1
        taken.add(unique)
        found[image.image_id] = unique
    return found


def _write(path: Path, identity: DicomIdentity, row: ImageRow, model: TrainedModel) -> None:
    """Write one report, unless it is there already."""
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of anonymised patients are not in the standard's form, and stay so
        report = structured_report(identity, row, model)
    try:
        if dcmread(path).SOPInstanceUID == report.SOPInstanceUID:
            return
    except Exception:  # not there, or damaged: pydicom raises nearly anything
        pass
    with atomic_path(path) as temporary:
        report.save_as(temporary, enforce_file_format=True)


def structured_report(identity: DicomIdentity, row: ImageRow, model: TrainedModel) -> "Dataset":
    """The report of one image's prediction: a highdicom ComprehensiveSR."""
    from highdicom import sr
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom.sr.codedict import codes

    header = identity.header
    numbers = [[float(value) for value in values] for values in (row.study_probs.values(), [row.none], *row.boxes)]
    facts = (numbers, model.identity, model.notices, __version__)
    uid = derived_uid("report", header.StudyInstanceUID, header.SOPInstanceUID, *facts)
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", model.identity, __version__),
        name=ALGORITHM,
        manufacturer_name=ALGORITHM,
        model_name=f"{ALGORITHM} {__version__}",
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=sr.CodedConcept("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[_image_group(identity, row, model, uid), *_box_groups(identity, row, model, uid)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    for notice in (*model.notices, *identity.notices):
        content[0].ContentSequence.append(
            sr.TextContentItem(codes.DCM.Comment, notice, relationship_type=sr.RelationshipTypeValues.CONTAINS)
        )
    return sr.ComprehensiveSR(
        evidence=[header],
        content=content,
        series_instance_uid=derived_uid("series", header.StudyInstanceUID, model.identity, __version__),
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer=ALGORITHM,
        manufacturer_model_name=ALGORITHM,
        software_versions=__version__,
        device_serial_number=model.identity[:16],
        series_description=f"{ALGORITHM} {__version__}, research use only",
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="Codes of siimcovid", version=__version__)],
    )


def _image_group(
    identity: DicomIdentity, row: ImageRow, model: TrainedModel, uid: str
) -> "sr.MeasurementsAndQualitativeEvaluations":
    """The probabilities of the study labels and of no opacity, of the whole image."""
    from highdicom import sr

    values = {label: row.study_probs.get(label, math.nan) for label in STUDY_LABELS} | {"none": row.none}
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=derived_uid(uid, "image"), identifier="image"),
        source_images=[sr.SourceImageForMeasurementGroup(**_reference(identity))],
        algorithm_id=_algorithm(model),
        measurements=[
            _percent(sr.CodedConcept(name, SCHEME, PROBABILITIES[name]), value)
            for name, value in values.items()
            if math.isfinite(value)
        ],
    )


def _box_groups(
    identity: DicomIdentity, row: ImageRow, model: TrainedModel, uid: str
) -> "list[sr.PlanarROIMeasurementsAndQualitativeEvaluations]":
    """A group for each box; its outline is a closed polyline in pixels, (0, 0) the first pixel's outer corner."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    groups = []
    for number, box in enumerate(row.boxes, start=1):
        left, top, right, bottom = box.xmin, box.ymin, box.xmax, box.ymax
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])
        groups.append(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(
                    uid=derived_uid(uid, "box", number), identifier=f"opacity {number}"
                ),
                referenced_region=sr.ImageRegion(
                    sr.GraphicTypeValues.POLYLINE, corners, sr.SourceImageForRegion(**_reference(identity))
                ),
                finding_type=codes.DCM.Opacity,
                finding_sites=[sr.FindingSite(codes.SCT.Lung)],
                algorithm_id=_algorithm(model),
                measurements=[_percent(codes.DCM.CertaintyOfFinding, box.score)],
            )
        )
    return groups


def _reference(identity: DicomIdentity) -> dict:
    """The image as its references in the report name it; of several frames the first, which is what is predicted."""
    return {
        "referenced_sop_class_uid": identity.header.SOPClassUID,
        "referenced_sop_instance_uid": identity.header.SOPInstanceUID,
        "referenced_frame_numbers": [1] if identity.frames > 1 else None,
    }


def _algorithm(model: TrainedModel) -> "sr.AlgorithmIdentification":
    from highdicom import sr

    parameters = [f"weights {model.identity}", *model.notices]
    return sr.AlgorithmIdentification(ALGORITHM, __version__, parameters)


def _percent(name: "sr.CodedConcept", fraction: float) -> "sr.Measurement":
    """A measurement in percent, to two decimals, of a fraction in [0, 1]."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    return sr.Measurement(name, round(100 * float(fraction), 2), codes.UCUM.Percent)
