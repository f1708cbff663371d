"""DICOM Structured Reports of predictions: what stands in them, where they lie, and what others read of them."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest

from siimcovid import __version__
from siimcovid.apps.command_line import main
from siimcovid.data.image_files import ImageFile, find_images
from siimcovid.inference.structured_report import report_paths
from support.dicom_files import write
from support.tiny_weights import write_synthetic_weights

sr = pytest.importorskip("highdicom.sr", reason="highdicom is not installed")

#: As the competition's files have them.
COMPETITION = {
    "StudyInstanceUID": "00086460a852",
    "SeriesInstanceUID": "4b3c2a190f5e",
    "SOPInstanceUID": "000a312787f2",
    "StudyDate": "8a7b6c5d",
    "PatientID": "84b82f15c3ae",
    "PatientName": "1a2b3c4d5e6f",
}
VALID = {
    "StudyInstanceUID": "1.2.840.1",
    "SeriesInstanceUID": "1.2.840.2",
    "SOPInstanceUID": "1.2.840.3",
    "PatientID": "é 1",
    "PatientName": "Müller^Jürgen",
    "SpecificCharacterSet": "ISO_IR 100",
    "StudyDate": "20200401",
}
PIXELS = np.random.default_rng(0).integers(0, 256, (150, 200), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights that were trained on a synthetic competition, so they say."""
    return write_synthetic_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three DICOM images, one of several frames and one in an archive, and a PNG."""
    top = tmp_path_factory.mktemp("images")
    (top / "ward é" / "series").mkdir(parents=True)
    write(top / "ward é" / "series" / "IM0001", PIXELS, 8, **VALID)
    frames = {"NumberOfFrames": 2, "Rows": 150, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}
    write(top / "frames.dcm", np.vstack([PIXELS, PIXELS]), 8, **COMPETITION, **frames)
    write(top / "inside.dcm", 255 - PIXELS, 8)
    with zipfile.ZipFile(top / "study.zip", "w") as archive:
        archive.write(top / "inside.dcm", "../../deep/inside.dcm")
    (top / "inside.dcm").unlink()
    cv2.imwrite(str(top / "picture.png"), PIXELS)
    return top


def predict(images: Path, weights: Path, out: Path) -> int:
    arguments = ["--weights", str(weights), "--out", str(out), "--threshold", "0.01", "--dicom-sr"]
    return main(["predict", str(images), *arguments])


@pytest.fixture(scope="module")
def out(images, weights, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert predict(images, weights, out) == 0
    return out


REPORTS = {"IM0001": "ward é/series/IM0001.dcm", "frames": "frames.dcm", "inside": "study.zip/deep/inside.dcm"}


def test_reports_lie_as_the_images_do(out):
    found = {str(path.relative_to(out / "dicom-sr")) for path in (out / "dicom-sr").rglob("*") if path.is_file()}
    assert found == set(REPORTS.values())
    table = pd.read_csv(out / "dicom-sr.csv", keep_default_na=False).set_index("image_id")
    assert table["report"].to_dict() == {name: f"dicom-sr/{path}" for name, path in REPORTS.items()}
    assert table.loc["IM0001", "notice"] == ""
    assert "StudyInstanceUID '00086460a852' of the image is not valid: 2.25." in table.loc["frames", "notice"]
    assert "The image has no StudyInstanceUID" in table.loc["inside", "notice"]


@pytest.mark.parametrize("name", REPORTS)
def test_highdicom_reads_a_group_for_each_box(name, out):
    report = sr.srread(out / "dicom-sr" / REPORTS[name])
    boxes = pd.read_csv(out / "boxes.csv").query("image_id == @name")
    groups = report.content.get_planar_roi_measurement_groups()
    assert len(groups) == len(boxes) > 0
    for group, box in zip(groups, boxes.itertuples(), strict=True):
        assert group.roi.GraphicType == "POLYLINE"
        corners = group.roi.value
        assert corners[0].tolist() == corners[-1].tolist()
        assert corners.min(axis=0) == pytest.approx([box.xmin, box.ymin], abs=0.01)
        assert corners.max(axis=0) == pytest.approx([box.xmax, box.ymax], abs=0.01)
        (certainty,) = group.get_measurements()
        assert (certainty.name.value, certainty.name.scheme_designator) == ("111012", "DCM")
        assert certainty.value == pytest.approx(100 * box.score, abs=0.006)
        assert group.finding_type.meaning == "Opacity"
    row = pd.read_csv(out / "predictions.csv").set_index("image_id").loc[name]
    (whole,) = report.content.get_image_measurement_groups()
    values = {measurement.name.value: measurement.value for measurement in whole.get_measurements()}
    expected = {label: 100 * row[label] for label in ("negative", "typical", "indeterminate", "atypical", "none")}
    assert values == pytest.approx(expected, abs=0.006)


def test_a_report_belongs_to_the_images_patient_and_study(out):
    report = pydicom.dcmread(out / "dicom-sr" / REPORTS["IM0001"])
    assert report.SOPClassUID.name == "Comprehensive SR Storage"
    assert (report.StudyInstanceUID, str(report.PatientName), report.PatientID) == ("1.2.840.1", "Müller^Jürgen", "é 1")
    assert report.SeriesInstanceUID != "1.2.840.2"
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    (image,) = series.ReferencedSOPSequence
    assert (study.StudyInstanceUID, series.SeriesInstanceUID, image.ReferencedSOPInstanceUID) == (
        "1.2.840.1",
        "1.2.840.2",
        "1.2.840.3",
    )
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert report.VerificationFlag == "UNVERIFIED"


def test_a_report_says_whose_it_is_and_what_the_weights_were_trained_on(out, weights):
    import siimcovid

    identity = siimcovid.load(weights).identity
    report = pydicom.dcmread(out / "dicom-sr" / REPORTS["frames"])
    comments = " ".join(item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT")
    for words in ("not for diagnosis", "means nothing on patients", "'000a312787f2' of the image is not valid"):
        assert words in comments
    assert report.SeriesDescription == f"siimcovid {__version__}, research use only"
    said = report.to_json()
    for words in ("Algorithm Name", "Algorithm Version", f'"{__version__}"', f"weights {identity}"):
        assert words in said
    assert '"00081160"' in said  # the number of the frame


def test_a_report_that_is_there_is_not_written_again(images, weights, out, tmp_path):
    shutil.copytree(out, tmp_path / "out")
    paths = [tmp_path / "out" / "dicom-sr" / path for path in REPORTS.values()]
    paths[0].write_bytes(b"damaged")
    states = [path.read_bytes() for path in paths]
    assert predict(images, weights, tmp_path / "out") == 0
    assert [path.read_bytes() == state for path, state in zip(paths, states, strict=True)] == [False, True, True]
    assert (
        pydicom.dcmread(paths[0]).SOPInstanceUID == pydicom.dcmread(out / "dicom-sr" / REPORTS["IM0001"]).SOPInstanceUID
    )


def test_what_is_printed(images, weights, tmp_path, capsys):
    assert predict(images, weights, tmp_path) == 0
    said = capsys.readouterr().out
    assert "3 structured reports, 2 of images with missing or invalid UIDs: derived ones under 2.25 stand for" in said
    assert "1 PNG and JPEG images get none" in said


def test_without_highdicom_it_is_a_sentence(images, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    monkeypatch.delitem(sys.modules, "highdicom.sr", raising=False)
    assert predict(images, weights, tmp_path) == 2
    words = "siimcovid predict: --dicom-sr needs highdicom: pip install 'siimcovid[dicom-sr]'\n"
    assert capsys.readouterr().err == words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["a"], ["1.dcm", "b/1.dcm", "b/scan.dicom.dcm"]),
        (["a", "c"], ["a/1.dcm", "a/b/1.dcm", "a/b/scan.dicom.dcm", "c/1.dcm"]),
        (["a/b", "x/b"], ["b/1.dcm", "b/scan.dicom.dcm", "b/1_2.dcm"]),
        (["c/1.dcm", "a/1.dcm"], ["1.dcm", "1_2.dcm"]),
    ],
)
def test_paths_repeat_the_images(tmp_path, named, expected):
    for path in ("a/1.dcm", "a/b/1.dcm", "a/b/scan.dicom", "c/1.dcm", "x/b/1.dcm"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(bytes(128) + b"DICM")
    sources = [tmp_path / path for path in named]
    found = report_paths(find_images(sources)[0], sources)
    assert sorted(map(str, found.values())) == sorted(expected)


@pytest.mark.parametrize("member", ["/etc/1.dcm", "../../1.dcm", "a/../../1.dcm"])
def test_no_path_leads_out(tmp_path, member):
    image = ImageFile("1", "", tmp_path / "a.zip", member, (0, 0))
    (path,) = report_paths([image], [tmp_path / "a.zip"]).values()
    assert not path.is_absolute()
    assert ".." not in path.parts


def test_a_name_that_is_too_long_is_cut(tmp_path):
    image = ImageFile("short", "", tmp_path / "a.zip", f"{'é' * 200}.dcm", (0, 0))
    assert str(report_paths([image], [tmp_path])["short"]) == "short.dcm"


def faults(path: Path) -> list[str]:
    """What dciodvfy calls an error in a file."""
    if not (program := shutil.which("dciodvfy")):
        pytest.skip("no dciodvfy: it is in Debian's dicom3tools")
    done = subprocess.run([program, path], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert "ComprehensiveSR" in lines
    return [line for line in lines if line.startswith("Error")]


@pytest.mark.parametrize("name", REPORTS)
def test_dciodvfy_finds_no_error(name, out):
    assert faults(out / "dicom-sr" / REPORTS[name]) == []


def test_dciodvfy_finds_none_in_reports_of_real_images(real, weights, tmp_path):
    """Of all encodings and faults, and none where the images themselves have some."""
    assert predict(real / "dicom", weights, tmp_path) == 0
    reports = sorted((tmp_path / "dicom-sr").iterdir())
    assert len(reports) > 15
    assert {path.name: found for path in reports if (found := faults(path))} == {}
