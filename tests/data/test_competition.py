"""The index of a small competition worked by hand, of broken ones, and of the competition's own CSV files."""

import re

import pandas as pd
import pytest

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_COLUMNS
from siimcovid.data.competition import (
    INDEX_COLUMNS,
    box_fractions,
    index_table,
    load,
    parse_boxes,
    read_index,
    write_index,
)
from siimcovid.data.dicom_headers import read_header_tables
from support.image_files import write_image

BOX = "[{'x': 1, 'y': 5.0, 'width': 2.5, 'height': 10}]"  # of an image of 20 rows and 10 columns
FRACTIONS = [[0.1, 0.25, 0.35, 0.75]]
#: image, study, patient ("" for none in the header), boxes
TRAIN = [
    ("a0", "s0", "p0", BOX),
    ("a1", "s0", "p0", ""),  # the sibling that nobody annotated
    ("a2", "s1", "p0", ""),
    ("a3", "s1", "", ""),
    ("a4", "s2", "", ""),
    ("a5", "s3", "p1", BOX),
]
STUDY_LABELS = [["s0_study", 0, 1, 0, 0], ["s1_study", 1, 0, 0, 0], ["s2_study", 0, 0, 0, 1], ["s3_study", 0, 0, 1, 0]]
TEST = [("b0", "t0"), ("b1", "t0"), ("b2", "t1")]
MESSY = [
    {"image_id": "image-1", "study_id": "s", "series_id": "r", "patient_id": "p", "split": "train", "rows": 20}
    | {"columns": 10, "path": '/a, "b"/c.dcm', "boxes": [[0.1, 1 / 3, 0.7, 1.0]] * 2, "study_label": "typical"}
    | {"annotated": True},
    {"image_id": "123456789e12", "study_id": "NA", "series_id": "", "patient_id": "00", "split": "test", "rows": 0}
    | {"columns": 0, "path": "", "boxes": [], "study_label": None, "annotated": False, "in_sample": True},
]


@pytest.fixture
def folder(tmp_path):
    """The competition of the tables above."""
    for image, study, patient, _ in TRAIN:
        write_image(tmp_path / "train" / study / f"series of {image}" / f"{image}.dcm", patient)
    for image, study in TEST:
        write_image(tmp_path / "test" / study / "series" / f"{image}.dcm", f"patient of {study}")
    rows = [[f"{image}_image", boxes, "unread", study] for image, study, _, boxes in TRAIN]
    titles = ["id", "boxes", "label", "StudyInstanceUID"]
    pd.DataFrame(rows, columns=titles).to_csv(tmp_path / "train_image_level.csv", index=False)
    pd.DataFrame(STUDY_LABELS, columns=["id", *STUDY_COLUMNS]).to_csv(tmp_path / "train_study_level.csv", index=False)
    ids = ["t0_study", "t1_study", *(f"{image}_image" for image, _ in TEST)]
    sample = pd.DataFrame({"id": ids, "PredictionString": "none 1 0 0 1 1"})
    sample.to_csv(tmp_path / "sample_submission.csv", index=False)
    return tmp_path


def test_one_row_per_image(folder):
    competition = load(folder, progress=False)
    images = competition.images.set_index("image_id")
    assert tuple(competition.images) == INDEX_COLUMNS
    assert competition.problems == ("images of unknown patients, whose studies stand in: 1 (a4)",)
    assert images.index.tolist() == ["a0", "a1", "a2", "a3", "a4", "a5", "b0", "b1", "b2"]
    assert images["split"].tolist() == ["train"] * 6 + ["test"] * 3
    assert images["study_id"].tolist() == ["s0", "s0", "s1", "s1", "s2", "s3", "t0", "t0", "t1"]
    assert images["series_id"].tolist()[4:7] == ["series of a4", "series of a5", "series"]
    # a3's header names nobody, so its study's other image does; s2 has no other image and stands in itself
    patients = ["p0", "p0", "p0", "p0", "s2", "p1", "patient of t0", "patient of t0", "patient of t1"]
    assert images["patient_id"].tolist() == patients
    assert images["boxes"].tolist() == [FRACTIONS, [], [], [], [], FRACTIONS, [], [], []]
    study_labels = ["typical", "typical", "negative", "negative", "atypical", "indeterminate", None, None, None]
    assert images["study_label"].tolist() == study_labels
    assert images["annotated"].tolist() == [True, False, True, True, True, True, False, False, False]
    assert images["in_sample"].tolist() == [False] * 6 + [True] * 3
    assert set(images["rows"]) == {20}
    assert set(images["columns"]) == {10}
    assert images.loc["a2", "path"] == str(folder / "train" / "s1" / "series of a2" / "a2.dcm")
    assert competition.sample["id"].tolist() == ["t0_study", "t1_study", "b0_image", "b1_image", "b2_image"]


def replace(name, old, new):
    """A change of one of the folder's files."""
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


def remove(name):
    return lambda folder: (folder / name).rename(folder / "removed")


def image(name):
    return lambda folder: write_image(folder / name)


def damage(name):
    return lambda folder: (folder / name).write_bytes(b"x")


A5 = "train/s3/series of a5/a5.dcm"
IMAGES, STUDIES, SAMPLE = "train_image_level.csv", "train_study_level.csv", "sample_submission.csv"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (remove(IMAGES), "no train_image_level.csv in .*: the index has no train part"),
        (remove(STUDIES), "no train_study_level.csv in .*: no study has a study label"),
        (remove("train"), r"train images without a file: 6 \(a0, a1, a2 and 3 more\)"),
        (remove("test"), r"sample images without a file: 3 \(b0, b1, b2\)"),
        (remove("test"), r"sample studies without an image: 2 \(t0, t1\)"),
        (remove("test/t0/series/b1.dcm"), r"sample images without a file: 1 \(b1\)"),
        (replace(SAMPLE, "b1_image", "b9_image"), r"sample images without a file: 1 \(b9\)"),
        (replace(SAMPLE, "b1_image", "b9_image"), r"test files that the sample does not ask for: 1 \(b1\)"),
        (replace(SAMPLE, "t1_study", "t9_study"), r"sample studies without an image: 1 \(t9\)"),
        (replace(SAMPLE, "t1_study", "t9_study"), r"test studies that the sample does not ask for: 1 \(t1\)"),
        (replace(SAMPLE, "b1_image", "b1"), r"neither _study nor _image: 1 \(b1\)"),
        (replace(SAMPLE, "b1_image", "b0_image"), r"repeated ids in the sample: 1 \(b0_image\)"),
        (replace(IMAGES, "a1_image", "a0_image"), r"repeated ids in train_image_level.csv: 1 \(a0_image\)"),
        (replace(IMAGES, "a1_image", "a9_image"), r"train images without a file: 1 \(a9\)"),
        (replace(IMAGES, "a1_image", "a9_image"), r"train files that .* does not know, left out: 1 \(a1\)"),
        (replace(IMAGES, "'x': 1,", "'x': -0.5,"), r"reach outside the image and were clipped: 1 \(a0\)"),
        (replace(STUDIES, "s3_study", "s9_study"), r"train studies without a study label: 1 \(s3\)"),
        (replace(STUDIES, "s3_study", "s9_study"), r"studies with a study label but without images: 1 \(s9\)"),
        (replace(STUDIES, "s3_study", "s0_study"), r"repeated ids in train_study_level.csv: 1 \(s0_study\)"),
        (replace(STUDIES, "s3_study,0", "s3_study,1"), r"have not exactly one study label: 1 \(s3_study\)"),
        (damage(A5), r"headers of train/ that cannot be read: 1 \(.*a5.dcm \("),
        (damage(A5), r"with boxes but of unknown size, whose boxes are left out: 1 \(a5\)"),
        (image("train/s3/other/a0.dcm"), r"files of train/ whose image id another file has, left out: 1"),
        (image("test/t0/loose.dcm"), r"files of test/ that do not lie in <study>/<series>/, left out: 1"),
        (image("test/t0/series/a0.dcm"), r"image ids that stand in train and test: 1 \(a0\)"),
    ],
)
def test_what_does_not_fit_is_reported_and_the_rows_stay(folder, change, problem):
    change(folder)
    competition = load(folder, progress=False)
    assert any(re.search(problem, found) for found in competition.problems), competition.problems
    test = competition.images[competition.images["split"] == "test"]
    asked = [i.removesuffix("_image") for i in competition.sample["id"] if i.endswith("_image")]
    assert test["image_id"][test["in_sample"]].tolist() == sorted(set(asked))
    train = competition.images[competition.images["split"] == "train"]
    assert len(train) == (0 if "no train part" in problem else 5 if "repeated ids in train_image" in problem else 6)


def test_a_image_that_cannot_be_read_teaches_nothing(folder):
    damage(A5)(folder)
    row = load(folder, progress=False).images.set_index("image_id").loc["a5"]
    assert (row["rows"], row["columns"], row["boxes"], row["annotated"]) == (0, 0, [], False)
    assert row["path"].endswith("a5.dcm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(SAMPLE), "no sample_submission.csv in .*: give the folder that holds it"),
        (replace(SAMPLE, "PredictionString", "Prediction"), "sample_submission.csv has no column 'PredictionString'"),
        (lambda f: (f / SAMPLE).write_text("id,PredictionString\n"), "sample_submission.csv holds no ids"),
        (lambda f: (f / IMAGES).write_text(""), "train_image_level.csv is empty"),
        (replace(IMAGES, "boxes", "box"), "train_image_level.csv has no column 'boxes'"),
        (replace(STUDIES, "Typical Appearance", "typical"), "study_level.csv has no column 'Typical Appearance'"),
        (replace(STUDIES, "s1_study,1", "s1_study,yes"), "'Negative for Pneumonia' has 'yes'"),
        (replace(IMAGES, "'x': 1,", "'x': 'left',"), "train_image_level.csv: a0_image: boxes .* are no list of x, y"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(folder, change, message):
    change(folder)
    with pytest.raises(InputError, match=message):
        load(folder, progress=False)


def test_a_submission_needs_no_train_part(folder):
    replace(IMAGES, "boxes", "box")(folder)
    competition = load(folder, splits=("test",), progress=False)
    assert competition.images["image_id"].tolist() == ["b0", "b1", "b2"]
    assert competition.problems == ()


@pytest.mark.parametrize(
    ("box", "fractions", "inside"),
    [
        ([0, 0, 10, 20], [[0, 0, 1, 1]], True),
        ([1, 5, 2.5, 10], [[0.1, 0.25, 0.35, 0.75]], True),
        ([5, 5, 5.000001, 5], [[0.5, 0.25, 1, 0.5]], True),  # rounding is no fault
        ([-1, -1, 3, 5], [[0, 0, 0.2, 0.2]], False),
        ([8, 16, 9, 9], [[0.8, 0.8, 1, 1]], False),
        ([10, 0, 5, 5], [], False),
        ([1, 1, 0, 5], [], True),
        ([1, 1, -1, 5], [], True),
    ],
)
def test_boxes_become_fractions(box, fractions, inside):
    assert box_fractions([box], rows=20, columns=10) == (fractions, inside)


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os').getcwd()", "[", "7", "[7]", "[{'x': 1, 'y': 1, 'width': 1}]", "['xy']", "(" * 9999),
        "[{'x': 1, 'y': 1, 'width': None, 'height': 1}]",
        "[{'x': 1, 'y': 1, 'width': 1e999, 'height': 1}]",
    ],
)
def test_text_that_is_no_boxes(text):
    with pytest.raises(InputError, match=r"^here: boxes "):
        parse_boxes(text, "here")


def test_the_index_survives_its_file(folder, tmp_path):
    for number, images in enumerate((load(folder, progress=False).images, index_table(MESSY), index_table([]))):
        write_index(images, tmp_path / f"{number}.csv")
        again = read_index(tmp_path / f"{number}.csv")
        pd.testing.assert_frame_equal(again, images)
        assert again.to_dict("records") == images.to_dict("records")
        write_index(again, tmp_path / "again.csv")
        assert (tmp_path / "again.csv").read_bytes() == (tmp_path / f"{number}.csv").read_bytes()
    (tmp_path / "0.csv").write_text((tmp_path / "0.csv").read_text().replace("[[", "((", 1))
    with pytest.raises(InputError, match=r"0\.csv is no index"):
        read_index(tmp_path / "0.csv")


def test_the_command_prints_and_writes(folder, tmp_path, capsys):
    assert main(["index", str(folder), "--out", str(tmp_path / "i.csv"), "--coco", str(tmp_path / "c.json")]) == 0
    printed = capsys.readouterr().out
    for line in (
        "train  images 6  studies 4  patients 3  boxes 2",
        "study labels: negative: 1  typical: 1  indeterminate: 1  atypical: 1",
        "test   images 3  studies 2  patients 2  boxes 0",
        "note: images of unknown patients, whose studies stand in: 1 (a4)",
        "i.csv: 9 rows",
        "c.json: 6 images, 2 annotations",
    ):
        assert line in printed
    assert len(read_index(tmp_path / "i.csv")) == 9
    assert main(["index", str(tmp_path / "absent")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_the_competitions_own_tables(real):
    labels = real / "labels"
    tables = ("train_meta_patient_series", "test_meta_patient_series", "image_sizes_train_test_meta")
    headers = read_header_tables(labels / f"{table}.csv.gz" for table in tables)
    competition = load(labels, headers=headers, progress=False)
    images = competition.images
    assert images.groupby("split").size().to_dict() == {"train": 6334, "test": 1263}
    test = images[images["split"] == "test"]
    assert test["in_sample"].all()
    assert test["study_id"].nunique() == 1214
    assert len(competition.sample) == 1214 + 1263
    assert [p.split(" (")[0] for p in competition.problems] == [
        "train images without a file: 6,334",
        "images with boxes that reach outside the image and were clipped: 1",  # its x is -3.56 pixels
        "sample images without a file: 1,263",
    ]
    clipped = images[images["image_id"] == "6ea732c63929"]["boxes"].item()
    assert min(box[0] for box in clipped) == 0
    assert images["rows"].min() > 0
