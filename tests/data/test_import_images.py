"""One's own images as a competition folder: names, boxes, labels, pixels, and what is refused with which words."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from siimcovid.apps.command_line import main
from siimcovid.core.errors import InputError
from siimcovid.data import competition
from siimcovid.data.dicom_image import read_image
from siimcovid.data.import_images import import_images
from siimcovid.evaluation.ground_truth import find_ground_truth, read_ground_truth
from siimcovid.synthetic.demo_competition import write_competition


@pytest.fixture
def folder(tmp_path):
    """Ten images of ten patients: PNG of 8 and 16 bits, JPEG, in folders with spaces and accents; and a broken one."""
    rng = np.random.default_rng(0)
    top = tmp_path / "my x-rays"
    for k in range(10):
        pixels = rng.integers(0, 4096 if k % 2 else 256, (40 + k, 30)).astype(np.uint16 if k % 2 else np.uint8)
        path = top / f"übung {k % 3}" / f"image{k}.{'jpg' if k == 8 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imencode(path.suffix, pixels)[1].tofile(path)
    (top / "broken.png").write_bytes(b"no picture")
    (top / "notes.txt").write_text("of no interest")
    return top


def write_tables(tmp_path, boxes=None, labels=None):
    boxes = boxes or {"image_id": ["image1", "image2", "image4"], "xmin": [2, 3, ""], "ymin": [4, 5, ""],
                      "xmax": [12, 300, ""], "ymax": [24, 25, ""]}  # fmt: skip
    names = ["negative", "Typical", "indeterminate", "atypical"]
    labels = labels or {"image_id": [f"image{k}" for k in range(10)], "study_label": [names[k % 4] for k in range(10)]}
    pd.DataFrame(boxes).to_csv(tmp_path / "boxes.csv", index=False)
    pd.DataFrame(labels).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path / "boxes.csv", tmp_path / "labels.csv"


def test_pictures_become_a_competition(folder, tmp_path):
    result = import_images(folder, *write_tables(tmp_path), tmp_path / "data")
    assert (result.train, result.test, result.boxes) == (8, 2, 2)
    assert any("broken.png" in problem for problem in result.problems)
    assert any("clipped: 1" in problem for problem in result.problems)
    found = competition.load(tmp_path / "data")
    assert found.problems == ()
    images = found.images.set_index("image_id")
    assert set(images.index) == {f"image{k}" for k in range(10)}
    assert images["patient_id"].nunique() == 10
    truth = read_ground_truth(find_ground_truth(tmp_path / "data"))
    sizes = {name: (row["rows"], row["columns"]) for name, row in images.iterrows()}
    boxes = {**images["boxes"], **truth.boxes(sizes)}
    assert boxes["image1"] == [pytest.approx([2 / 30, 4 / 41, 12 / 30, 24 / 41])]
    assert boxes["image2"] == [pytest.approx([3 / 30, 5 / 42, 1.0, 25 / 42])]
    assert sum(map(len, boxes.values())) == 2
    labels = {**images["study_label"].dropna(), **truth.study_labels()}
    assert labels["image1"] == "typical"
    for k in (0, 8):  # eight bits: pixel by pixel
        original = cv2.imdecode(np.fromfile(next(folder.rglob(f"image{k}.*")), np.uint8), cv2.IMREAD_GRAYSCALE)
        stretched = np.ptp(original.astype(int))
        assert read_image(images["path"][f"image{k}"]).shape == original.shape
        assert stretched > 0


def test_dicom_and_coco(tmp_path):
    """A synthetic competition's own files, shuffled into one flat folder, with its COCO export."""
    write_competition(tmp_path / "demo", train_studies=6, test_studies=1, seed=1, scale=0.05, workers=1)
    index = competition.load(tmp_path / "demo", splits=("train",)).images
    (tmp_path / "flat").mkdir()
    for row in index.itertuples():
        shutil.copyfile(row.path, tmp_path / "flat" / f"{row.image_id}.dicom")
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "opacity"}]}
    for k, row in enumerate(index.itertuples()):
        coco["images"].append(
            {"id": k, "file_name": f"somewhere/{row.image_id}.dcm", "width": row.columns, "height": 1}
        )
        for x1, y1, x2, y2 in row.boxes:
            size = [x1 * row.columns, y1 * row.rows, (x2 - x1) * row.columns, (y2 - y1) * row.rows]
            coco["annotations"].append({"image_id": k, "bbox": size, "category_id": 1})
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    labels = {"image_id": index["image_id"], "study_id": index["study_id"], "study_label": index["study_label"]}
    pd.DataFrame(labels).to_csv(tmp_path / "labels.csv", index=False)
    result = import_images(tmp_path / "flat", tmp_path / "coco.json", tmp_path / "labels.csv", tmp_path / "data")
    assert result.test >= 1
    assert result.boxes == index["boxes"].map(len).sum()
    found = competition.load(tmp_path / "data").images.set_index("image_id")
    index = index.set_index("image_id").loc[found.index[found["split"] == "train"]]
    found = found.loc[index.index]
    assert found["study_label"].tolist() == index["study_label"].tolist()
    assert found["patient_id"].tolist() == index["patient_id"].tolist()
    for mine, theirs in zip(found["boxes"], index["boxes"], strict=True):
        assert np.allclose(np.reshape(mine, (-1, 4)), np.reshape(theirs, (-1, 4)), atol=1e-4)


def test_the_same_name_in_two_folders(tmp_path):
    for part in ("a", "b"):
        (tmp_path / "in" / part).mkdir(parents=True)
        cv2.imencode(".png", np.full((20, 20), 9, np.uint8))[1].tofile(tmp_path / "in" / part / "x.png")
    table = {"image_id": ["x"], "xmin": [1], "ymin": [1], "xmax": [9], "ymax": [9]}
    labels = {"image_id": ["a/x", "b/x.png"], "study_label": ["typical", "negative"]}
    boxes, labels = write_tables(tmp_path, table, labels)
    with pytest.raises(InputError, match="'x' is the name of several images"):
        import_images(tmp_path / "in", boxes, labels, tmp_path / "out")
    boxes, labels = write_tables(tmp_path, table | {"image_id": ["a/x"]}, pd.read_csv(labels).to_dict("list"))
    assert import_images(tmp_path / "in", boxes, labels, tmp_path / "out").boxes == 1
    assert competition.load(tmp_path / "out").images["image_id"].nunique() == 2


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ({"name": ["image1"]}, None, "no column that names the image"),
        ({"image_id": ["image1"], "left": [1]}, None, "has no columns of boxes: give xmin"),
        ({"image_id": ["other"], "x": [1], "y": [1], "width": [5], "height": [5]}, None, "names none of the 10 images"),
        ({"image_id": ["image1"], "x": ["a"], "y": [1], "width": [5], "height": [5]}, None, "column 'x' has 'a'"),
        (None, {"image_id": ["image1"], "study_label": ["covid"]}, "study label 'covid' is none of negative"),
        (None, {"image_id": ["image1"], "mark": ["typical"]}, "has no column study_label"),
        (None, {"image_id": ["other"], "study_label": ["typical"]}, "gives none of the 10 images a study label"),
    ],
)
def test_what_does_not_fit_is_a_sentence(folder, tmp_path, boxes, labels, message):
    with pytest.raises(InputError, match=message):
        import_images(folder, *write_tables(tmp_path, boxes, labels), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_command(folder, tmp_path, capsys):
    boxes, labels = write_tables(tmp_path)
    given = ["import", str(folder), "--boxes", str(boxes), "--out", str(tmp_path / "data")]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "8 images to train on, 2 held back, 2 boxes" in printed
    assert "no study labels were given (--labels)" in printed
    assert not (tmp_path / "data" / "train_study_level.csv").exists()
    assert main([*given, "--labels", str(labels)]) == 2
    assert "is there already and not empty" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "none"), "--boxes", str(boxes), "--out", str(tmp_path / "d")]) == 2
    assert "no folder" in capsys.readouterr().err
