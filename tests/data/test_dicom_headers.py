"""DICOM headers of whole, damaged and foreign files, and the tables that stand in for them."""

import pandas as pd
import pytest

from siimcovid.core.errors import InputError
from siimcovid.data.dicom_headers import Header, read_header, read_header_tables, scan_images
from support.image_files import write_image


@pytest.mark.parametrize("preamble", [True, False])
def test_header_of_a_image(tmp_path, preamble):
    header_of = write_image(tmp_path / "a.dcm", "123456789e12 ", 300, 200)
    if not preamble:
        header_of.write_bytes(header_of.read_bytes()[132:])
    assert read_header(header_of) == Header("123456789e12", 300, 200, "")


def test_a_header_that_cannot_be_read_is_a_fault(tmp_path):
    whole = write_image(tmp_path / "whole.dcm").read_bytes()
    contents = {"empty": b"", "text": b"no DICOM file at all" * 20, "zeros": bytes(500), "cut": whole[:150]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        header = read_header(tmp_path / name)
        assert (header.rows, header.columns) == (0, 0), name
        assert header.fault, name
    assert read_header(tmp_path / "absent").fault.startswith("FileNotFoundError")


def test_headers_of_real_files(real):
    headers = {path.name: read_header(path) for path in sorted((real / "dicom").iterdir())}
    unreadable = {name for name, header in headers.items() if header.fault}
    assert unreadable == {"meta_missing_tsyntax.dcm", "no_meta.dcm"}  # without Rows; damaged at its first byte
    assert headers["gdcm-CR-MONO1-10-chest.dcm"][1:3] == (440, 440)
    assert headers["CR-MONO1-10-chest_nopreamble"][1:3] == (440, 440)


@pytest.mark.parametrize("workers", [1, 5])
def test_ids_are_names_of_files_and_folders(tmp_path, workers):
    headers_of = [("s1", "r1", "a"), ("s1", "r2", "b"), ("s2", "r1", "c")]
    for study, series, image in headers_of:
        write_image(tmp_path / study / series / f"{image}.dcm", patient=f"patient of {study}")
    for left_out in ("s1/loose.dcm", "looser.dcm"):
        write_image(tmp_path / left_out)
    for ignored in ("s1/r1/._a.dcm", "s1/r1/notes.txt", ".DS_Store"):
        (tmp_path / ignored).write_text("no image")
    found = scan_images(tmp_path, workers=workers)
    assert found.table[["study_id", "series_id", "image_id"]].to_numpy().tolist() == [
        list(header_of) for header_of in headers_of
    ]
    assert found.table["patient_id"].tolist() == ["patient of s1", "patient of s1", "patient of s2"]
    assert found.table[["rows", "columns"]].to_numpy().tolist() == [[20, 10]] * 3
    assert found.faults == []
    assert sorted(found.misplaced) == [str(tmp_path / "looser.dcm"), str(tmp_path / "s1" / "loose.dcm")]
    assert scan_images(tmp_path, read=False).table["rows"].isna().all()


def test_tables_of_headers_are_joined(tmp_path):
    (tmp_path / "patients.csv").write_text("patientid,studyid,imageid,SeriesNumber\np1,s1,a,1\np2,s2,b,\n")
    (tmp_path / "more.csv").write_text("patientid,studyid,imageid\np3,s3,c\nwrong,s1,a\n")
    (tmp_path / "sizes.csv").write_text("image_id,dim0,dim1,split\na,20,10,train\nd,30,15,test\n")
    table = read_header_tables(tmp_path / name for name in ("patients.csv", "more.csv", "sizes.csv"))
    expected = pd.DataFrame(
        [
            ["a", "s1", "p1", 20, 10],
            ["b", "s2", "p2", None, None],
            ["c", "s3", "p3", None, None],
            ["d", None, None, 30, 15],
        ],
        columns=["image_id", "study_id", "patient_id", "rows", "columns"],
    )
    assert table["series_id"].isna().all()
    assert table[list(expected)].fillna("").to_numpy().tolist() == expected.fillna("").to_numpy().tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [("id,rows\na,1\n", "sizes.csv has no column 'image_id'"), ("image_id,rows\na,tall\n", "column 'rows' has 'tall'")],
)
def test_a_wrong_table_of_headers_is_refused(tmp_path, content, message):
    (tmp_path / "sizes.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_header_tables([tmp_path / "sizes.csv"])
