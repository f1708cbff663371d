"""Patient, study and UIDs of DICOM files: what is valid stays, what is not is replaced and said."""

import numpy as np
import pytest
from pydicom.uid import UID

from siimcovid.data.dicom_identity import SECONDARY_CAPTURE, derived_uid, is_valid_uid, read_identity
from support.dicom_files import write

PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)
VALID = {"StudyInstanceUID": "1.2.840.1", "SeriesInstanceUID": "1.2.840.2", "SOPInstanceUID": "1.2.840.3"}

#: As the competition's files have them.
COMPETITION = dict(zip(VALID, ("00086460a852", "4b3c2a190f5e", "000a312787f2"), strict=True))


def test_what_is_valid_stays(tmp_path):
    tags = {
        **VALID,
        "PatientID": "ä",
        "PatientBirthDate": "19400305",
        "PatientSex": "F",
        "SpecificCharacterSet": "ISO_IR 100",
    }
    identity = read_identity(write(tmp_path / "a.dcm", PIXELS, 16, **tags))
    assert {name: identity.header[name].value for name in VALID} == VALID
    assert (identity.header.PatientID, identity.header.PatientBirthDate, identity.header.PatientSex) == (
        "ä",
        "19400305",
        "F",
    )
    assert (identity.frames, identity.derived, identity.notices) == (1, (), ())


def test_the_competitions_uids_become_derived_ones_that_keep_studies_together(tmp_path):
    first = read_identity(write(tmp_path / "a.dcm", PIXELS, 16, **COMPETITION))
    second = read_identity(write(tmp_path / "b.dcm", PIXELS, 16, **COMPETITION | {"SOPInstanceUID": "0012ff7358bc"}))
    again = read_identity(tmp_path / "a.dcm")
    for name, value in COMPETITION.items():
        uid = first.header[name].value
        assert uid.startswith("2.25.")
        assert UID(uid).is_valid
        assert any(name in notice and value in notice and uid in notice for notice in first.notices)
        assert again.header[name].value == uid
    assert first.derived == tuple(VALID)
    assert first.header.StudyInstanceUID == second.header.StudyInstanceUID
    assert first.header.SOPInstanceUID != second.header.SOPInstanceUID


def test_missing_uids_are_derived_from_the_content(tmp_path):
    found = []
    for name, pixels in (("a", PIXELS), ("b", PIXELS), ("c", PIXELS + 1)):
        write(tmp_path / name, pixels, 16)
        found.append(read_identity(tmp_path / name))
    assert found[0].header.SeriesInstanceUID == found[1].header.SeriesInstanceUID != found[2].header.SeriesInstanceUID
    assert found[0].derived == ("StudyInstanceUID", "SeriesInstanceUID")
    assert "The image has no StudyInstanceUID" in " ".join(found[0].notices)


@pytest.mark.parametrize(
    ("tags", "name", "words"),
    [
        ({"PatientBirthDate": "00000000"}, "PatientBirthDate", "PatientBirthDate '00000000' of the image is not valid"),
        ({"StudyDate": "8a7b6c5d"}, "StudyDate", "StudyDate '8a7b6c5d'"),
        ({"PatientSex": "X"}, "PatientSex", "PatientSex 'X'"),
        ({"StudyID": "0123456789abcdefg"}, "StudyID", "StudyID '0123456789abcdefg'"),
    ],
)
def test_invalid_values_are_left_out(tmp_path, tags, name, words):
    identity = read_identity(write(tmp_path / "a.dcm", PIXELS, 16, **VALID, **tags))
    assert identity.header[name].value in ("", None)
    assert len(identity.notices) == 1
    assert words in identity.notices[0]


def test_a_file_that_says_nothing(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"no DICOM")
    identity = read_identity(tmp_path / "a.dcm")
    assert identity.header.SOPClassUID == SECONDARY_CAPTURE
    assert identity.derived == tuple(VALID)


def test_frames_count_where_the_class_has_several(tmp_path):
    for sop_class, frames in (("1.2.840.10008.5.1.4.1.1.7.2", 2), ("1.2.840.10008.5.1.4.1.1.7", 1)):
        path = write(tmp_path / "a.dcm", PIXELS, 8, NumberOfFrames=2, SOPClassUID=sop_class)
        assert read_identity(path).frames == frames


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        ("1.2.840.10008.1.2", True),
        ("2.25.0", True),
        ("999.999.01.23.45.6789", False),
        ("9.99", False),
        ("1.02", False),
        ("1..2", False),
        ("1.2\n", False),
        ("", False),
        (f"1.{'2' * 62}", True),
        (f"1.{'2' * 63}", False),
        ("000a312787f2", False),
    ],
)
def test_valid_uids(value, valid):
    assert is_valid_uid(value) == valid


def test_derived_uids_are_uuids_of_version_5():
    number = int(derived_uid("a", 1).removeprefix("2.25."))
    assert (number >> 76) & 0xF == 5
    assert derived_uid("a", 1) == derived_uid("a", 1) != derived_uid("a", 2)
