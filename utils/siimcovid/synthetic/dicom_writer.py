"""A synthetic image as a DICOM file, its header as the competition's: identifiers are hashes, invalid for their VR."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1

from siimcovid.synthetic.anatomy import Anatomy
from siimcovid.synthetic.competition_plan import PlannedImage, identifier

SOP_CLASS = {"DX": "1.2.840.10008.5.1.4.1.1.1.1", "CR": "1.2.840.10008.5.1.4.1.1.1"}


def to_dicom(image: PlannedImage, pixels: np.ndarray, rng: np.random.Generator) -> Dataset:
    """A planned image as a DICOM data set; `pixels` (rows, columns) in [0, 1], 0 is black.

    rng: draws how much of the stored range the image uses. Raises RuntimeError where gdcm cannot encode it.
    """
    stored = _stored_values(image, pixels, rng)
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.MediaStorageSOPClassUID = SOP_CLASS[image.modality]
    d.file_meta.MediaStorageSOPInstanceUID = image.image
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SpecificCharacterSet, d.ImageType = "ISO_IR 100", ["ORIGINAL", "PRIMARY"]
    d.SOPClassUID, d.SOPInstanceUID = SOP_CLASS[image.modality], image.image
    d.StudyDate, d.StudyTime = identifier("date", image.study), identifier("time", image.study)
    d.AccessionNumber, d.Modality = identifier("accession", image.study), image.modality
    d.PatientName, d.PatientID = identifier("name", image.patient), image.patient
    d.PatientSex = "F" if Anatomy.draw(image.patient_seed).breasts else "M"
    d.BodyPartExamined, d.ViewPosition = "CHEST", "AP"
    d.StudyInstanceUID, d.SeriesInstanceUID, d.StudyID = image.study, image.series, identifier("id", image.study)
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


def _stored_values(image: PlannedImage, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pixels in [0, 1] as unsigned integers of the image's bits and photometric interpretation."""
    top = 2**image.bits - 1
    low, high = rng.uniform(0, 0.04), rng.uniform(0.75, 1.0)  # few detectors use all of their range
    stored = np.round((low + (high - low) * pixels) * top)
    return (top - stored if image.photometric == "MONOCHROME1" else stored).astype("u1" if image.bits == 8 else "<u2")


def _jpeg_lossless(dataset: Dataset) -> bytes:
    """The dataset's pixels as one JPEG Lossless SV1 frame, by gdcm, which reads them from a file."""
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


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Let pydicom write identifiers that are no valid UIDs, as the real files' are, without a warning."""
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")
        yield
