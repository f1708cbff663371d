"""The COCO export, by hand and as COCO's own tools read it."""

import json

import pandas as pd
import pytest

from siimcovid.core.files import write_json
from siimcovid.data.coco_export import to_coco
from siimcovid.data.competition import index_table, load, parse_boxes
from siimcovid.data.dicom_headers import read_header_tables


def row(image, boxes, rows=20, columns=10, path="", annotated=True):
    ids = {"image_id": image, "study_id": "s", "series_id": "r", "patient_id": "p", "split": "train", "path": path}
    return {**ids, "rows": rows, "columns": columns, "boxes": boxes, "study_label": "typical", "annotated": annotated}


def test_by_hand(tmp_path):
    images = index_table(
        [
            row("a", [[0.1, 0.25, 0.35, 0.75], [0.0, 0.0, 1.0, 1.0]], path=str(tmp_path / "train" / "x.dcm")),
            row("b", [], annotated=False),
            row("c", [], rows=0, columns=0),
            row("d", [[0.5, 0.5, 1.0, 1.0]], rows=200, path="/elsewhere/d.dcm"),
        ]
    )
    assert to_coco(images, tmp_path) == {
        "images": [
            {"id": 1, "width": 10, "height": 20, "file_name": "train/x.dcm", "annotated": True},
            {"id": 2, "width": 10, "height": 20, "file_name": "train/s/r/b.dcm", "annotated": False},
            {"id": 3, "width": 10, "height": 200, "file_name": "/elsewhere/d.dcm", "annotated": True},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "area": 25.0, "bbox": [1.0, 5.0, 2.5, 10.0], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 1, "area": 200.0, "bbox": [0.0, 0.0, 10.0, 20.0], "iscrowd": 0},
            {"id": 3, "image_id": 3, "category_id": 1, "area": 500.0, "bbox": [5.0, 100.0, 5.0, 100.0], "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "opacity"}],
    }


def test_the_competitions_own_tables(real, tmp_path):
    coco_tools = pytest.importorskip("pycocotools.coco")
    labels = real / "labels"
    headers = read_header_tables(
        [labels / "train_meta_patient_series.csv.gz", labels / "image_sizes_train_test_meta.csv.gz"]
    )
    images = load(labels, headers=headers, splits=("train",), progress=False).images
    write_json(tmp_path / "train.json", to_coco(images, labels))
    coco = coco_tools.COCO(tmp_path / "train.json")
    assert (len(coco.imgs), len(coco.anns), len(coco.cats)) == (6334, 7853, 1)
    assert coco.imgs[1]["file_name"] == "train/5776db0cec75/81456c9c5423/000a312787f2.dcm"
    # box for box the competition's own numbers, but for the one that begins left of its image
    table = pd.read_csv(labels / "train_image_level.csv.gz", dtype=str, keep_default_na=False)
    own = {row.id.removesuffix("_image"): parse_boxes(row.boxes, row.id) for row in table.itertuples()}
    changed = []
    for image in coco.imgs.values():
        boxes = [annotation["bbox"] for annotation in coco.imgToAnns[image["id"]]]
        image_id = image["file_name"].removesuffix(".dcm").rsplit("/", 1)[1]
        if boxes != own[image_id]:
            changed.append((image_id, boxes, own[image_id]))
    assert [image_id for image_id, _, _ in changed] == ["6ea732c63929"]
    assert json.loads((tmp_path / "train.json").read_text())["categories"] == [{"id": 1, "name": "opacity"}]
