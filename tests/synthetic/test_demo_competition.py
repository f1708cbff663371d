"""The demo competition: its proportions against the counts on the real train set, its files, its images."""

import ast
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_COLUMNS, STUDY_LABELS
from siimcovid.synthetic import competition_plan, demo_competition
from siimcovid.synthetic.anatomy import Anatomy
from siimcovid.synthetic.competition_plan import allocate, plan_split
from siimcovid.synthetic.demo_competition import image_path, write_competition
from siimcovid.synthetic.dicom_writer import to_dicom
from siimcovid.synthetic.lung_findings import choose_findings, visible_box
from siimcovid.synthetic.radiograph import place_patient, render

DEMO = {"train_studies": 28, "test_studies": 8, "seed": 3, "scale": 0.04}
STUDIES, IMAGES, PATIENTS = 6054, 6334, 3261  # of the real train set


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "demo"
    assert write_competition(folder, **DEMO, workers=1)
    return folder


@pytest.fixture(scope="module")
def real_train():
    """A plan as large as the real train set; nothing is drawn."""
    return plan_split(seed=0, split="train", studies=STUDIES, scale=0.25)


def tree(folder: Path) -> dict[str, str]:
    """Every file of a competition and of its answers, with its checksum."""
    places = (folder, folder.with_name(folder.name + ".truth"))
    files = [(place, path) for place in places for path in sorted(place.rglob("*")) if path.is_file()]
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for place, path in files}


# Proportions


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ({"a": 1, "b": 1}, 4, {"a": 2, "b": 2}),
        ({"a": 2, "b": 1}, 4, {"a": 3, "b": 1}),  # shares 2.67 and 1.33
        ({"a": 9, "b": 1}, 3, {"a": 3}),  # shares 2.7 and .3
        (competition_plan.LABEL_COUNTS, 60, {"negative": 17, "typical": 28, "indeterminate": 10, "atypical": 5}),
        (competition_plan.LABEL_COUNTS, 240, {"negative": 66, "typical": 113, "indeterminate": 42, "atypical": 19}),
    ],
)
def test_allocate_gives_every_key_its_share(counts, total, expected):
    assert Counter(allocate(np.random.default_rng(0), counts, total)) == expected


def test_a_plan_of_the_real_size_has_the_real_counts(real_train):
    studies = {image.study: image for image in real_train if image.annotated}
    assert Counter(image.study_label for image in studies.values()) == competition_plan.LABEL_COUNTS
    assert len(real_train) == pytest.approx(IMAGES, abs=40)
    assert len({image.patient for image in real_train}) == PATIENTS
    per_patient = Counter(Counter(image.patient for image in studies.values()).values())
    assert per_patient[1] == pytest.approx(2061, rel=0.02)
    drawn_images = Counter(Counter(image.study for image in real_train).values())
    assert drawn_images[1] == STUDIES - 232
    assert drawn_images[2] == pytest.approx(207, abs=5)
    boxes = Counter(image.boxes if image.annotated else 0 for image in real_train)
    for count, times in {0: 2040, 1: 973, 2: 3113, 3: 183, 4: 23}.items():
        assert boxes[count] == pytest.approx(times, abs=40), count
    for field, counts in {  # counted on the real headers
        "bits": {12: 4311, 15: 1240, 8: 401, 14: 210, 16: 166, 10: 3, 13: 3},
        "photometric": {"MONOCHROME2": 4633, "MONOCHROME1": 1701},
        "syntax": {"1.2.840.10008.1.2.1": 5894, "1.2.840.10008.1.2.4.70": 440},
        "modality": {"DX": 3242, "CR": 3092},
    }.items():
        dealt = Counter(getattr(image, field) for image in real_train)
        for value, times in counts.items():
            assert dealt[value] == pytest.approx(times * len(real_train) / IMAGES, abs=1), value


def test_one_image_of_a_study_is_annotated_and_the_others_are_its_repeats(real_train):
    by_study = pd.DataFrame([vars(image) for image in real_train]).groupby("study")
    assert (by_study["annotated"].sum() == 1).all()
    for field in ("patient", "study_label", "boxes", "shape", "study_seed", "patient_seed"):
        assert by_study[field].agg(set).map(len).max() == 1, field


def test_the_constants_are_the_counts_of_the_real_files(real):
    labels = real / "labels"
    images = pd.read_csv(labels / "train_image_level.csv.gz")
    studies = pd.read_csv(labels / "train_study_level.csv.gz").set_index("id")
    meta = pd.read_csv(labels / "train_meta_patient_series.csv.gz")
    study_label = pd.Series(np.array(STUDY_LABELS)[studies.to_numpy().argmax(1)], index=studies.index.str[:-6])
    assert study_label.value_counts().to_dict() == competition_plan.LABEL_COUNTS
    assert list(studies.columns) == list(STUDY_COLUMNS)
    boxes = images["boxes"].fillna("[]").map(ast.literal_eval).map(len).groupby(images["StudyInstanceUID"]).max()
    for name, counts in competition_plan.BOX_COUNTS.items():
        found = boxes[study_label[study_label == name].index].value_counts()
        for number, times in counts.items():
            assert times == pytest.approx(found[number], abs=2), (name, number)  # 5 and 8 boxes are left out
    drawn_images = meta.groupby("studyid").size()
    assert (
        study_label[drawn_images[drawn_images > 1].index].value_counts().to_dict() == competition_plan.REPEATED_COUNTS
    )
    for number, times in competition_plan.IMAGE_COUNTS.items():
        assert (drawn_images == number).sum() == times
    per_patient = meta.groupby("patientid")["studyid"].nunique().value_counts()
    assert per_patient.to_dict() == competition_plan.STUDIES_PER_PATIENT
    sizes = pd.read_csv(labels / "image_sizes_train_test_meta.csv.gz").groupby(["dim0", "dim1"]).size()
    assert {shape: sizes[shape] for shape in competition_plan.SIZE_COUNTS} == competition_plan.SIZE_COUNTS
    assert min(competition_plan.SIZE_COUNTS.values()) == sizes.nlargest(24).min()


def test_boxes_have_the_sizes_and_places_of_the_radiologists(real_train):
    found = []
    for image in real_train[:400]:
        anatomy = Anatomy.draw(image.patient_seed)
        canvas = place_patient(np.random.default_rng([image.study_seed, 0]), anatomy, (120, 146))
        lungs = anatomy.lungs()
        findings = choose_findings(
            np.random.default_rng([image.study_seed, 1]), image.study_label, image.boxes, canvas, lungs
        )
        masks = canvas.area(lungs[0]), canvas.area(lungs[1])
        found += [visible_box(finding.density(canvas, masks)) for finding in findings if finding.boxed]
    x1, y1, x2, y2 = np.array(found).T
    width, height, x, y = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
    for name, values, quantiles, tolerance in (  # 5, 50 and 95 %, counted on the real 7,853 boxes
        ("width", width, (0.103, 0.215, 0.347), 0.05),
        ("height", height, (0.137, 0.362, 0.653), 0.05),
        ("area", width * height, (0.016, 0.075, 0.208), 0.04),
        ("x, right lung", x[x < 0.5], (0.167, 0.280, 0.391), 0.045),
        ("x, left lung", x[x > 0.5], (0.628, 0.741, 0.846), 0.065),
        ("y", y, (0.309, 0.516, 0.728), 0.06),
    ):
        assert np.quantile(values, (0.05, 0.5, 0.95)) == pytest.approx(quantiles, abs=tolerance), name


# Files


def test_the_layout_is_the_competition_s(demo):
    for path in demo.rglob("*"):
        if path.is_file():
            name = path.relative_to(demo).as_posix()
            assert re.fullmatch(
                r"(train|test)/[0-9a-f]{12}/[0-9a-f]{12}/[0-9a-f]{12}\.dcm"
                r"|train_(image|study)_level\.csv|sample_submission\.csv",
                name,
            ), name
    truth = sorted(path.name for path in demo.with_name("demo.truth").iterdir())
    assert truth == ["synthetic.json", "test_image_level.csv", "test_study_level.csv"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_csvs_have_the_original_s_columns_and_formats(demo, split):
    folder = demo if split == "train" else demo.with_name("demo.truth")
    images = pd.read_csv(folder / f"{split}_image_level.csv")
    studies = pd.read_csv(folder / f"{split}_study_level.csv")
    assert list(images.columns) == ["id", "boxes", "label", "StudyInstanceUID"]
    assert list(studies.columns) == ["id", *STUDY_COLUMNS]
    assert images["id"].is_monotonic_increasing
    assert studies["id"].is_monotonic_increasing
    assert (studies[list(STUDY_COLUMNS)].sum(axis=1) == 1).all()
    assert len(studies) == DEMO[f"{split}_studies"]
    assert {name[:-6] for name in images["id"]} == {path.stem for path in (demo / split).rglob("*.dcm")}
    assert {name[:-6] for name in studies["id"]} == {path.name for path in (demo / split).iterdir()}
    negative = set(studies.loc[studies[STUDY_COLUMNS[0]] == 1, "id"].str[:-6])
    for row in images.itertuples():
        assert (demo / split / row.StudyInstanceUID).is_dir()
        if row.StudyInstanceUID in negative:
            assert row.label == "none 1 0 0 1 1"
        if pd.isna(row.boxes):
            assert row.label == "none 1 0 0 1 1"
            continue
        boxes = ast.literal_eval(row.boxes)
        assert all(list(box) == ["x", "y", "width", "height"] for box in boxes)
        corners = [(b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"]) for b in boxes]
        words = np.array(row.label.split()).reshape(-1, 6)
        assert (words[:, :2] == ["opacity", "1"]).all()
        assert words[:, 2:].astype(float) == pytest.approx(np.array(corners), abs=1e-4)
        drawn = pydicom.dcmread(next((demo / split).rglob(f"{row.id[:-6]}.dcm")), stop_before_pixels=True)
        for x1, y1, x2, y2 in corners:
            assert 0 <= x1 < x2 <= drawn.Columns
            assert 0 <= y1 < y2 <= drawn.Rows
    annotated = images.groupby("StudyInstanceUID")["boxes"].count()
    assert annotated.max() == 1  # repeats have no boxes


def test_the_sample_lists_studies_then_images(demo):
    sample = pd.read_csv(demo / "sample_submission.csv")
    assert list(sample.columns) == ["id", "PredictionString"]
    studies, images = sample[: DEMO["test_studies"]], sample[DEMO["test_studies"] :]
    assert list(studies["id"]) == sorted(f"{path.name}_study" for path in (demo / "test").iterdir())
    assert set(images["id"]) == {f"{path.stem}_image" for path in (demo / "test").rglob("*.dcm")}
    assert set(studies["PredictionString"]) == {"negative 1 0 0 1 1"}
    assert set(images["PredictionString"]) == {"none 1 0 0 1 1"}


def test_headers_are_as_planned_and_pixels_decode(demo):
    planned = [image for split in ("train", "test") for image in plan_split(3, split, DEMO[f"{split}_studies"], 0.04)]
    assert {image.syntax.name for image in planned} == {
        "Explicit VR Little Endian",
        "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])",
    }
    for image in planned:
        drawn = pydicom.dcmread(image_path(demo, image))
        assert (drawn.StudyInstanceUID, drawn.SeriesInstanceUID, drawn.SOPInstanceUID) == (
            image.study,
            image.series,
            image.image,
        )
        assert (drawn.PatientID, drawn.Modality, drawn.file_meta.TransferSyntaxUID) == (
            image.patient,
            image.modality,
            image.syntax,
        )
        assert (drawn.BitsStored, drawn.BitsAllocated, drawn.HighBit) == (
            image.bits,
            8 if image.bits == 8 else 16,
            image.bits - 1,
        )
        assert (drawn.PhotometricInterpretation, (drawn.Rows, drawn.Columns)) == (image.photometric, image.shape)
        assert not {"WindowCenter", "RescaleSlope", "VOILUTSequence"} & set(drawn.dir())
        pixels = drawn.pixel_array
        assert pixels.shape == image.shape
        assert 0.5 * 2**image.bits < np.ptp(pixels) < 2**image.bits


def test_monochrome1_is_stored_inverted():
    image = next(image for image in plan_split(0, "train", 40, 0.04) if image.photometric == "MONOCHROME1")
    ramp = np.tile(np.linspace(0, 1, image.shape[1], dtype=np.float32), (image.shape[0], 1))
    stored = to_dicom(image, ramp, np.random.default_rng(0)).pixel_array.astype(int)
    assert (np.diff(stored[0]) <= 0).all()
    assert stored[0, 0] > 0.9 * 2**image.bits


def test_patients_are_in_one_split_and_share_their_anatomy():
    train, test = plan_split(0, "train", 240, 0.25), plan_split(0, "test", 60, 0.25)
    assert not {image.patient for image in train} & {image.patient for image in test}
    assert not {image.study for image in train} & {image.study for image in test}
    assert len({image.patient for image in train}) == round(240 * PATIENTS / STUDIES)
    seeds = pd.DataFrame([vars(image) for image in train]).groupby("patient")["patient_seed"].agg(set)
    assert seeds.map(len).max() == 1


# Images


@pytest.mark.parametrize(
    ("study_label", "boxes", "seed"),
    [("typical", 2, 1), ("typical", 3, 2), ("indeterminate", 1, 3), ("indeterminate", 2, 4), ("atypical", 1, 5)],
)
def test_boxes_surround_what_the_findings_changed(study_label, boxes, seed):
    """The same image without findings differs inside the boxes, and inside only."""
    anatomy, shape = Anatomy.draw(seed), (240, 290)
    drawn, clear = (
        render(anatomy, name, count, shape, seed) for name, count in ((study_label, boxes), ("negative", 0))
    )
    assert drawn.boxes.shape == (boxes, 4)
    assert clear.boxes.shape == (0, 4)
    change = drawn.pixels - clear.pixels
    unboxed = np.ones(shape, bool)
    for x1, y1, x2, y2 in drawn.boxes * [290, 240, 290, 240]:
        inside = change[int(y1) : int(y2), int(x1) : int(x2)]
        assert inside.mean() > 0.005  # dense is bright, however faint
        for edge in (inside[:8], inside[-8:], inside[:, :8], inside[:, -8:]):
            assert edge.max() > 0.15 * inside.max()  # the box is not larger than what is seen
        unboxed[max(int(y1) - 8, 0) : int(y2) + 9, max(int(x1) - 8, 0) : int(x2) + 9] = False
    if not any(f.kind in ("effusion", "nodules") for f in findings_of(anatomy, study_label, boxes, shape, seed)):
        assert (change[unboxed] > 0.35 * change.max()).mean() < 0.002  # nor smaller


def findings_of(anatomy, study_label, boxes, shape, seed):
    canvas = place_patient(np.random.default_rng([seed, 0]), anatomy, shape)
    return choose_findings(np.random.default_rng([seed, 1]), study_label, boxes, canvas, anatomy.lungs())


def test_a_typical_study_has_both_lungs_and_an_atypical_one_no_typical_opacity():
    for seed in range(20):
        anatomy, shape = Anatomy.draw(seed), (160, 194)
        sides = [np.sign(f.box[0] + f.box[2]) for f in findings_of(anatomy, "typical", 2, shape, seed)]
        assert sorted(sides) == [-1, 1]
        for boxes in (0, 1, 2):
            findings = findings_of(anatomy, "atypical", boxes, shape, seed)
            assert findings
            assert not {f.kind for f in findings} & {"patches", "haze"}
            assert sum(f.boxed for f in findings) == boxes
        assert not findings_of(anatomy, "negative", 0, shape, seed)


def test_a_repeat_is_another_image_of_the_same_findings():
    anatomy, shape = Anatomy.draw(1), (160, 194)
    first, repeat = (render(anatomy, "typical", 2, shape, seed=1, repeat=number) for number in (0, 1))
    assert not np.array_equal(first.pixels, repeat.pixels)
    assert first.boxes == pytest.approx(repeat.boxes, abs=0.15)
    assert (first.boxes[:, 2:] - first.boxes[:, :2]) == pytest.approx(
        repeat.boxes[:, 2:] - repeat.boxes[:, :2],
        abs=0.05,  # a box is measured on its own image, where the texture's faint edge falls elsewhere
    )


@pytest.mark.parametrize("shape", [(96, 117), (117, 96), (120, 120), (900, 1100)])
def test_a_image_has_the_shape_asked_for_and_uses_its_range(shape):
    pixels = render(Anatomy.draw(2), "negative", 0, shape, seed=2).pixels
    assert pixels.shape == shape
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() < 0.2 < 0.7 < pixels.max() <= 1


# Writing


def test_same_seed_same_bytes_with_any_number_of_workers(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_competition, "IMAGES_OF_A_PROCESS", 8)
    processes = []
    pool = demo_competition.ProcessPoolExecutor
    monkeypatch.setattr(demo_competition, "ProcessPoolExecutor", lambda n, **how: processes.append(n) or pool(n, **how))
    write_competition(tmp_path / "again", **DEMO, workers=2)
    assert processes == [2]
    assert tree(tmp_path / "again") == tree(demo)
    write_competition(tmp_path / "other", **{**DEMO, "seed": 4, "train_studies": 2, "test_studies": 1}, workers=1)
    assert not set(tree(tmp_path / "other").values()) & set(tree(demo).values())


def test_a_second_call_does_no_work_and_mends_what_is_missing(tmp_path):
    folder, small = tmp_path / "demo", {**DEMO, "train_studies": 3, "test_studies": 1}
    assert write_competition(folder, **small, workers=1)
    before = tree(folder)
    assert not write_competition(folder, **small, workers=1)
    next(folder.rglob("*.dcm")).unlink()
    assert write_competition(folder, **small, workers=1)
    assert tree(folder) == before


def test_bad_input_is_said_in_a_sentence(tmp_path, capsys):
    small = {**DEMO, "train_studies": 1, "test_studies": 1}
    write_competition(tmp_path / "demo", **small, workers=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for folder, changed, words in (
        ("demo", {"seed": 9}, "other parameters"),
        ("mine", {}, "not empty"),
        ("new", {"scale": 0}, "--scale is 0"),
        ("new", {"scale": 1.5}, "--scale is 1.5"),
        ("new", {"test_studies": 0}, "--test-studies is 0"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            write_competition(tmp_path / folder, **{**small, **changed}, workers=1)
    assert main(["synthetic", str(tmp_path / "mine")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_command_writes_what_it_says(tmp_path, capsys):
    words = ["--train-studies", "2", "--test-studies", "1", "--seed", "5", "--scale", "0.03", "--workers", "1"]
    assert main(["synthetic", str(tmp_path / "demo"), *words]) == 0
    assert "written" in capsys.readouterr().out
    assert main(["synthetic", str(tmp_path / "demo"), *words]) == 0
    assert "already there" in capsys.readouterr().out
    written = json.loads((tmp_path / "demo.truth" / "synthetic.json").read_text())
    assert written["complete"]
