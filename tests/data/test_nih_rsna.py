"""The readers of NIH ChestX-ray14 and of the RSNA Pneumonia Challenge."""

import pandas as pd
import pytest

from siimcovid.core.errors import InputError
from siimcovid.core.labels import NIH_FINDINGS
from siimcovid.data.competition import INDEX_COLUMNS
from siimcovid.data.nih_chestxray14 import load_nih
from siimcovid.data.rsna_pneumonia import load_rsna
from support.image_files import write_image

ENTRIES = """Image Index,Finding Labels,Follow-up #,Patient ID
00000001_000.png,Cardiomegaly|Emphysema,0,1
00000001_001.png,No Finding,1,1
00000002_000.png,Consolidation|Edema|Pleural_Thickening,0,2
"""


@pytest.fixture
def nih(tmp_path):
    (tmp_path / "Data_Entry_2017.csv").write_text(ENTRIES)
    for name in ("images_001/images/00000001_000.png", "images_002/00000001_001.png", "images/00000002_000.JPG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_nih_has_fifteen_outputs():
    assert len(NIH_FINDINGS) == len(set(NIH_FINDINGS)) == 15
    assert {"Consolidation", "Edema", "Pleural_Thickening", "No Finding"} < set(NIH_FINDINGS)


def test_nih_folder(nih):
    images, problems = load_nih(nih)
    assert problems == ()
    assert images["image_id"].tolist() == ["00000001_000", "00000001_001", "00000002_000"]
    assert images["patient_id"].tolist() == ["1", "1", "2"]
    assert [path.removeprefix(f"{nih}/") for path in images["path"]] == [
        "images_001/images/00000001_000.png",
        "images_002/00000001_001.png",
        "images/00000002_000.JPG",
    ]
    marked = [{label for label in NIH_FINDINGS if row[label] == 1} for row in images.to_dict("records")]
    assert marked == [{"Cardiomegaly", "Emphysema"}, {"No Finding"}, {"Consolidation", "Edema", "Pleural_Thickening"}]
    assert images[list(NIH_FINDINGS)].to_numpy().sum() == 6


def test_nih_images_that_are_not_there(nih):
    (nih / "images_002/00000001_001.png").unlink()
    images, problems = load_nih(nih)
    assert len(images) == 2
    assert problems == ("images of Data_Entry_2017.csv without a file, left out: 1 (00000001_001)",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "Data_Entry_2017.csv").unlink(), "no Data_Entry_2017.csv in .*: give the folder of NIH"),
        (
            lambda f: (f / "Data_Entry_2017.csv").write_text(ENTRIES.replace("|Edema", "Edema")),
            "00000002_000.png has the label 'ConsolidationEdema', which is none of Atelectasis",
        ),
        (
            lambda f: (f / "Data_Entry_2017.csv").write_text(ENTRIES.replace("Patient ID", "Patient")),
            "no column 'Patient",
        ),
        (lambda f: (f / "Data_Entry_2017.csv").write_text(ENTRIES.replace("0000000", "x")), "has none of the images"),
    ],
)
def test_nih_folder_that_is_none(nih, change, message):
    change(nih)
    with pytest.raises(InputError, match=message):
        load_nih(nih)


def test_real_nih_folder(real):
    images, problems = load_nih(real / "nih")
    assert (len(images), images["patient_id"].nunique(), problems) == (782, 559, ())
    own = pd.read_csv(real / "nih" / "Data_Entry_2017.csv")["Finding Labels"]
    for label in NIH_FINDINGS:
        assert images[label].sum() == sum(label in text.split("|") for text in own), label


BOXES = """patientId,x,y,width,height,Target
b,1.0,5.0,2.5,10.0,1
b,0.0,0.0,10.0,20.0,1
a,,,,,0
c,8.0,16.0,9.0,9.0,1
d,1.0,1.0,1.0,1.0,1
"""
CLASSES = "patientId,class\nb,Lung Opacity\nb,Lung Opacity\na,Normal\nc,Lung Opacity\nd,Lung Opacity\n"


@pytest.fixture
def rsna(tmp_path):
    (tmp_path / "stage_2_train_labels.csv").write_text(BOXES)
    (tmp_path / "stage_2_detailed_class_info.csv").write_text(CLASSES)
    for name in "abcd":
        write_image(tmp_path / "stage_2_train_images" / f"{name}.dcm")
    return tmp_path


def test_rsna_folder(rsna):
    images, problems = load_rsna(rsna, progress=False)
    assert tuple(images) == INDEX_COLUMNS
    assert problems == ("images with boxes that reach outside the image and were clipped: 1 (c)",)
    for column in ("image_id", "study_id", "series_id", "patient_id"):
        assert images[column].tolist() == list("abcd")
    boxes = [[], [[0.1, 0.25, 0.35, 0.75], [0, 0, 1, 1]], [[0.8, 0.8, 1, 1]], [[0.1, 0.05, 0.2, 0.1]]]
    assert images["boxes"].tolist() == boxes
    assert images["study_label"].tolist() == [None] * 4
    assert images["annotated"].all()
    assert images["path"][0] == str(rsna / "stage_2_train_images" / "a.dcm")


def test_rsna_faults_are_reported(rsna):
    (rsna / "stage_2_train_images" / "a.dcm").unlink()
    (rsna / "stage_2_train_images" / "b.dcm").write_bytes(b"x")
    (rsna / "stage_2_detailed_class_info.csv").write_text(CLASSES.replace("d,Lung Opacity", "d,Normal"))
    images, problems = load_rsna(rsna, progress=False)
    assert images["annotated"].tolist() == [False, False, True, True]
    assert images["boxes"][1] == []
    assert images["path"][0] == ""
    texts = ["disagree: 1 (d)", "images without a file: 1 (a)", "cannot be read: 1 (", "were clipped: 1 (c)"]
    assert all(text in problem for text, problem in zip(texts, problems, strict=True)), problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "stage_2_train_labels.csv").unlink(), "no stage_2_train_(labels.csv in|images/ beside)"),
        (
            lambda f: (f / "stage_2_train_images").rename(f / "x"),
            "no stage_2_train_(labels.csv in|images/ beside)",
        ),
        (lambda f: (f / "stage_2_train_labels.csv").write_text(BOXES.replace("Target", "T")), "no column 'Target'"),
        (lambda f: (f / "stage_2_train_labels.csv").write_text(BOXES.replace("b,1.0", "b,")), "column 'x' has ''"),
    ],
)
def test_rsna_folder_that_is_none(rsna, change, message):
    change(rsna)
    with pytest.raises(InputError, match=message):
        load_rsna(rsna, progress=False)


def test_rsna_without_a_box(rsna):
    (rsna / "stage_2_train_labels.csv").write_text("patientId,x,y,width,height,Target\na,,,,,0\n")
    (rsna / "stage_2_detailed_class_info.csv").unlink()
    images, problems = load_rsna(rsna, progress=False)
    assert (images["image_id"].tolist(), images["boxes"].tolist(), problems) == (["a"], [[]], ())
