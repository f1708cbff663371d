"""The index of a small competition worked by hand, of broken ones, and of the competition's own CSV files."""

import gzip
import json
import math
import os
import re
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_COLUMNS
from siimcovid.data.competition import (
    CLIPPED,
    INDEX_COLUMNS,
    INVERTED,
    NOT_FINITE,
    OUTSIDE,
    TINY,
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
        (replace(SAMPLE, "b1_image", "../b1_image"), r"sample ids that cannot be a file's name: 1 \(\.\./b1\)"),
        (replace(IMAGES, "a1_image", "../a1_image"), r"that cannot be a file's name, left out: 1 \(\.\./a1_image\)"),
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
        (image("test/t0/series/a0.dcm"), r"image ids that stand in train and test, left out of test: 1 \(a0\)"),
    ],
)
def test_what_does_not_fit_is_reported_and_the_rows_stay(folder, change, problem):
    change(folder)
    competition = load(folder, progress=False)
    assert any(re.search(problem, found) for found in competition.problems), competition.problems
    test = competition.images[competition.images["split"] == "test"]
    asked = [i.removesuffix("_image") for i in competition.sample["id"] if i.endswith("_image") and "/" not in i]
    assert test["image_id"][test["in_sample"]].tolist() == sorted(set(asked))
    train = competition.images[competition.images["split"] == "train"]
    assert len(train) == (
        0
        if "no train part" in problem
        else 5
        if "repeated ids in train_image" in problem or "a1_image" in problem
        else 6
    )


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
    ("box", "fractions", "fault"),
    [
        ([0, 0, 10, 20], [[0, 0, 1, 1]], None),
        ([1, 5, 2.5, 10], [[0.1, 0.25, 0.35, 0.75]], None),
        ([5, 5, 5.000001, 5], [[0.5, 0.25, 1, 0.5]], None),  # rounding is no fault
        ([1, 1, 1, 1], [[0.1, 0.05, 0.2, 0.1]], None),  # the smallest
        ([-1, -1, 3, 5], [[0, 0, 0.2, 0.2]], CLIPPED),
        ([8, 16, 9, 9], [[0.8, 0.8, 1, 1]], CLIPPED),
        ([10, 0, 5, 5], [], OUTSIDE),
        ([-7, -7, 5, 5], [], OUTSIDE),
        ([9.9999, 0, 5, 5], [], OUTSIDE),  # a ten-thousandth of a pixel is left
        ([1e300, 0, 1e300, 5], [], OUTSIDE),
        ([1, 1, 0, 5], [], TINY),
        ([1, 1, 1e-4, 5], [], TINY),
        ([1, 1, 5, 0.99], [], TINY),
        ([1, 1, -1, 5], [], INVERTED),
        ([5, 5, -2, -2], [], INVERTED),
        ([math.nan, 1, 5, 5], [], NOT_FINITE),
        ([1, 1, 5, math.inf], [], NOT_FINITE),
        ([1.7e308, 1, 1.7e308, 5], [], NOT_FINITE),
    ],
)
def test_boxes_become_fractions(box, fractions, fault):
    assert box_fractions([box], rows=20, columns=10) == (fractions, [fault] if fault else [])
    whole = [[0, 0, 10, 20], box]  # the others of an image stay
    assert box_fractions(whole, rows=20, columns=10)[0] == [[0, 0, 1, 1], *fractions]


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ("{'x': 1, 'y': 5, 'width': 1e-4, 'height': 10}", "less than 1 pixel"),
        ("{'x': 3, 'y': 5, 'width': -2, 'height': 10}", "negative width or height"),
        ("{'x': nan, 'y': 5, 'width': 2, 'height': 10}", "not finite"),
        ("{'x': 1, 'y': 5, 'width': 1e999, 'height': 10}", "not finite"),
        ("{'x': None, 'y': 5, 'width': 2, 'height': 10}", "not finite"),
        ("{'x': 11, 'y': 5, 'width': 2, 'height': 10}", "outside the image"),
    ],
)
def test_a_box_that_is_none_is_left_out_and_reported(folder, box, fault):
    replace(IMAGES, BOX, f"[{box}]")(folder)  # of a0
    competition = load(folder, progress=False)
    images = competition.images.set_index("image_id")
    assert images.loc["a0", "boxes"] == []
    assert not images.loc["a0", "annotated"]  # somebody saw something there
    assert images.loc["a5", "boxes"] == FRACTIONS
    assert sum(fault in problem and problem.endswith(": 1 (a0)") for problem in competition.problems) == 1


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os').getcwd()", "[", "7", "[7]", "[{'x': 1, 'y': 1, 'width': 1}]", "['xy']", "(" * 9999),
        *("[{'x': 'nan', 'y': [], 'width': 1, 'height': 1}]", "{'x': 1}", "nan", "[nan]", "\0", "9" * 5000),
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


@pytest.mark.parametrize(
    ("old", "new"), [("[[", "(("), ("[[0.1", "[[1.1"), ("[[0.1,", "[[null,"), (",20,", ",,"), (",20,", ",1e99,")]
)
def test_what_is_no_index_is_refused(folder, tmp_path, old, new):
    write_index(load(folder, progress=False).images, tmp_path / "index.csv")
    text = (tmp_path / "index.csv").read_text()
    assert old in text
    (tmp_path / "index.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=r"index\.csv is no index") as caught:
        read_index(tmp_path / "index.csv")
    assert "\n" not in str(caught.value)


def test_an_index_that_was_cut_is_refused(folder, tmp_path):
    """At any byte but those between lines, where what is left is a shorter index."""
    path = tmp_path / "index.csv"
    write_index(load(folder, progress=False).images, path)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        if whole[:cut].endswith(b"\n"):
            assert len(read_index(path)) == whole[:cut].count(b"\n") - 1
        else:
            with pytest.raises(InputError, match=r"index\.csv (is empty|is cut off|has|is no index|cannot be read)"):
                read_index(path)


def test_one_image_in_train_and_test_belongs_to_the_test_that_asks_for_it(folder):
    image("test/t1/series/a2.dcm")(folder)
    replace(SAMPLE, "b2_image", "a2_image")(folder)
    competition = load(folder, progress=False)
    assert "image ids that stand in train and test, left out of train: 1 (a2)" in competition.problems
    images = competition.images
    assert not images["image_id"].duplicated().any()
    assert images.set_index("image_id").loc["a2", ["split", "in_sample"]].tolist() == ["test", True]


@pytest.mark.parametrize("ending", [".DCM", ".dicom", ".Dicom", ""])
def test_endings_of_images(folder, ending):
    for split, study, series, name in (("train", "s3", "series of a5", "a5"), ("test", "t1", "series", "b2")):
        place = folder / split / study / series
        (place / f"{name}.dcm").rename(place / f"{name}{ending}")
        (place / "README").write_text("no image")
        (place / "preview.png").write_bytes(b"x")
    competition = load(folder, progress=False)
    assert competition.problems == load(folder, progress=False).problems[:1]  # of the unknown patient alone
    images = competition.images.set_index("image_id")
    assert images.loc["a5", "path"].endswith(f"a5{ending}")
    assert images.loc["a5", "boxes"] == FRACTIONS
    assert images.loc["b2", "rows"] == 20


@pytest.mark.parametrize("pack", ["gz", "zip", "zip of a Mac", "zip of a folder"])
def test_tables_may_be_packed(folder, pack):
    for name in (IMAGES, STUDIES, SAMPLE):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        if pack == "gz":
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            continue
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr(f"labels/{name}" if "folder" in pack else name, content)
            if "Mac" in pack:
                archive.writestr(f"__MACOSX/._{name}", b"\0\5\26\7")
    assert len(load(folder, progress=False).images) == 9


def test_what_lies_there_by_a_similar_name_is_said(folder):
    (folder / SAMPLE).rename(folder / f"{SAMPLE}.7z")
    with pytest.raises(InputError, match=r"no sample_submission\.csv in .*, only sample_submission\.csv\.7z: give"):
        load(folder, progress=False)
    (folder / f"{SAMPLE}.7z").rename(folder / "Sample_Submission.CSV")
    with pytest.raises(InputError, match=r"only Sample_Submission\.CSV: give"):
        load(folder, progress=False)


def strange(folder: Path) -> str:
    """Give a study, a series and an image of train/ and a file of test/ names that are no UTF-8; the image's id."""
    name = os.fsdecode(b"a\xff5")
    place = folder / "train" / "s3"
    (place / "series of a5" / "a5.dcm").rename(place / "series of a5" / f"{name}.dcm")
    (place / "series of a5").rename(place / name)
    place.rename(place.with_name(name))
    image(f"test/t0/series/{name}t.dcm")(folder)
    image(f"test/t0/{name}.dcm")(folder)
    (folder / "train" / "broken").mkdir()
    image(f"train/broken/series/{name}x.dcm")(folder)
    damage(f"train/broken/series/{name}x.dcm")(folder)
    return name


def test_names_that_are_no_utf8(folder, tmp_path, capsys):
    name = strange(folder)
    escaped = "a\\udcff5"
    competition = load(folder, progress=False)
    for problem in competition.problems:
        problem.encode()
    assert any(f"left out: 2 ({escaped}, {escaped}x)" in problem for problem in competition.problems)
    write_index(competition.images, tmp_path / "i.csv")
    (tmp_path / "i.csv").read_text(encoding="utf-8")
    again = read_index(tmp_path / "i.csv")
    pd.testing.assert_frame_equal(again, competition.images)
    row = again.set_index("image_id").loc[f"{escaped}t"]
    assert Path(row["path"]).is_file()
    assert Path(row["path"]).name == f"{name}t.dcm"
    out, coco, cache = tmp_path / "i2.csv", tmp_path / "c.json", tmp_path / "cache"
    assert main(["index", str(folder), "--out", str(out), "--coco", str(coco)]) == 0
    assert out.read_bytes() == (tmp_path / "i.csv").read_bytes()
    json.loads(coco.read_text(encoding="utf-8"))
    assert main(["prepare", str(folder), "--out", str(cache), "--size", "64", "--workers", "1"]) == 0
    failures = (cache / "failures.csv").read_text(encoding="utf-8")
    assert f"{escaped}t.dcm" in failures
    assert "from the disk" not in failures  # they were opened, and hold no pixels
    assert escaped in capsys.readouterr().out


def test_the_competition_folder_itself_may_have_such_a_name(folder, tmp_path):
    place = tmp_path / os.fsdecode(b"data \xe9")
    place.mkdir()
    for entry in list(folder.iterdir()):
        if entry != place:
            entry.rename(place / entry.name)
    assert main(["index", str(place), "--out", str(tmp_path / "i.csv"), "--coco", str(tmp_path / "c.json")]) == 0
    assert Path(read_index(tmp_path / "i.csv")["path"].iloc[0]).is_file()
    assert main(["index", str(place), "--out", str(place / "sample_submission.csv")]) == 2  # its own table


def blocked(folder: Path, where: str) -> str:
    """Where a file stands in the way of an output, or a folder in that of a file."""
    (folder / "file").write_text("")
    (folder / "folder").mkdir(exist_ok=True)
    return str(folder / where)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("file/i.csv", "file is a file, not a folder: name another place"),
        ("file/deeper/i.csv", "file is a file, not a folder: name another place"),
        ("folder", "it is a folder: name a file"),
        ("folder/" + "x" * 300, "File name too long: give a shorter name"),
        ("train_image_level.csv", "is there and is no index: name another file"),
    ],
)
@pytest.mark.parametrize("option", ["--out", "--coco"])
def test_the_output_cannot_be_written(folder, tmp_path, capsys, where, message, option):
    if where.endswith("level.csv") and option == "--coco":
        pytest.skip("an export may replace any file")
    assert main(["index", str(folder), option, blocked(folder, where)]) == 2
    assert message in capsys.readouterr().err
    assert "boxes" in (folder / IMAGES).read_text()


@pytest.mark.parametrize("where", ["file", "file/cache"])
def test_the_cache_cannot_be_made(folder, capsys, where):
    assert main(["prepare", str(folder), "--out", blocked(folder, where)]) == 2
    assert "file is a file, not a folder" in capsys.readouterr().err


def test_the_cache_of_another_data_set_is_refused(folder, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "z9.png").write_bytes(b"")
    arguments = ["prepare", str(folder), "--out", str(tmp_path / "cache"), "--size", "64", "--workers", "1"]
    assert main(arguments) == 2
    assert "holds 1 images of another data set, z9 for one: name another folder" in capsys.readouterr().err
    (tmp_path / "cache" / "a0.png").write_bytes(b"")
    assert main(arguments) == 0


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


@pytest.mark.parametrize("value", ["-3473", "0.5", "-0.1"])
def test_a_size_that_counts_no_pixels_is_refused(tmp_path, value):
    path = tmp_path / "headers.csv"
    path.write_text(f"image_id,rows,columns\na,100,200\nb,100,{value}\n")
    with pytest.raises(InputError, match=f"headers.csv: column 'columns' has '{value}' where pixels should be counted"):
        read_header_tables([path])
