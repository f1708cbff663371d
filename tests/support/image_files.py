"""DICOM files with the little that an index reads, for several test files."""

from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian


def write_image(path: Path, patient: str = "p", rows: int = 20, columns: int = 10) -> Path:
    """Write a DICOM file of this patient and size, without pixels."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    header.PatientID, header.Rows, header.Columns = patient, rows, columns
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path
