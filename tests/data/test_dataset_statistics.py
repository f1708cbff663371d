"""Counts of an index worked by hand, and of the competition's own tables against what is published of them."""

import pandas as pd
import pytest

from siimcovid.core.errors import InputError
from siimcovid.data.competition import load
from siimcovid.data.dataset_statistics import box_table, describe, nih_findings, rsna_classes
from siimcovid.data.dicom_headers import read_header_tables

ROWS = [  # study, patient, boxes, study label, annotated, rows, columns
    ("s0", "p0", [[0.1, 0.2, 0.3, 0.6], [0.5, 0.5, 0.9, 0.6]], "typical", True, 20, 10),
    ("s0", "p0", [], "typical", False, 20, 10),
    ("s1", "p0", [], "negative", True, 30, 10),
    ("s2", "p1", [[0.0, 0.0, 1.0, 1.0]], "atypical", True, 20, 10),
    ("", "p2", [], None, False, 0, 0),
]
INDEX = pd.DataFrame(ROWS, columns=["study_id", "patient_id", "boxes", "study_label", "annotated", "rows", "columns"])


def test_counts_by_hand():
    counts = describe(INDEX)
    assert (counts["images"], counts["studies"], counts["patients"], counts["boxes"]) == (5, 3, 3, 3)
    assert counts["study_labels"] == {"negative": 1, "typical": 1, "indeterminate": 0, "atypical": 1}
    assert counts["images_per_study"] == {1: 2, 2: 1}
    assert counts["boxes_per_image"] == {0: 3, 1: 1, 2: 1}
    assert counts["boxes_per_study_label"] == {
        "negative": {0: 1},
        "typical": {2: 1},
        "indeterminate": {},
        "atypical": {1: 1},
    }
    assert counts["repeated_studies"] == {1: 1}
    assert counts["not_annotated"] == 2
    assert counts["sizes"] == [[20, 10, 3], [30, 10, 1]]
    assert counts["box_width"][1] == pytest.approx(0.4)
    assert counts["box_area"][1] == pytest.approx(0.08)
    expected = pd.DataFrame(
        [[0.2, 0.4, 0.08, 0.2, 0.4], [0.4, 0.1, 0.04, 0.7, 0.55], [1.0, 1.0, 1.0, 0.5, 0.5]],
        columns=["width", "height", "area", "centre_x", "centre_y"],
    )
    pd.testing.assert_frame_equal(box_table(INDEX["boxes"]), expected)


def test_nothing_is_counted_as_nothing():
    counts = describe(INDEX[:0])
    assert (counts["images"], counts["boxes"], counts["sizes"], counts["box_width"]) == (0, 0, [], [])


def test_counts_of_the_competition(real):
    labels = real / "labels"
    headers = read_header_tables(
        [labels / f"{t}.csv.gz" for t in ("train_meta_patient_series", "image_sizes_train_test_meta")]
    )
    images = load(labels, headers=headers, splits=("train",), progress=False).images
    counts = describe(images)
    assert (counts["images"], counts["studies"], counts["patients"], counts["boxes"]) == (6334, 6054, 3261, 7853)
    assert counts["study_labels"] == {"negative": 1676, "typical": 2855, "indeterminate": 1049, "atypical": 474}
    assert counts["images_per_study"] == {1: 5822, 2: 207, 3: 15, 4: 4, 5: 3, 6: 1, 7: 1, 9: 1}
    assert counts["repeated_studies"] == {0: 55, 1: 177}
    assert counts["boxes_per_image"] == {0: 2040, 1: 973, 2: 3113, 3: 183, 4: 23, 5: 1, 8: 1}
    assert set(counts["boxes_per_study_label"]["negative"]) == {0}
    commonest = [(2336, 2836), (3480, 4240), (3480, 4248), (3488, 4256)]
    assert [(rows, columns) for rows, columns, _ in counts["sizes"][:4]] == commonest
    rows, columns, images_of_size = zip(*counts["sizes"], strict=True)
    assert sum(images_of_size) == 6334
    assert (min(rows + columns), max(rows), max(columns)) == (846, 4891, 4891)
    for name, low, median, high in (
        ("width", 0.10, 0.215, 0.35),
        ("height", 0.14, 0.362, 0.65),
        ("area", 0.016, 0.075, 0.21),
    ):
        assert counts[f"box_{name}"] == [
            pytest.approx(low, abs=0.005),
            pytest.approx(median, abs=5e-4),
            pytest.approx(high, abs=0.005),
        ]
    assert counts["box_centre_y"][1] == pytest.approx(0.516, abs=5e-4)
    # the siblings of the 177 boxed images in studies of several images
    several = (
        images.groupby("study_id")["boxes"]
        .agg(["size", lambda boxes: sum(map(bool, boxes))])
        .set_axis(["n", "boxed"], axis=1)
    )
    assert counts["not_annotated"] == (several["n"] - several["boxed"])[several["boxed"] > 0].sum() == 217


def test_findings_of_nih_and_classes_of_rsna(tmp_path):
    entries = ["Image Index,Finding Labels", "1.png,Mass|Nodule", "2.png,No Finding", "3.png,Nodule"]
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("\n".join(entries))
    counts, images = nih_findings(tmp_path)
    assert images == 3
    assert list(counts.items())[:3] == [("Nodule", 2), ("Mass", 1), ("No Finding", 1)]
    assert len(counts) == 15
    assert sum(counts.values()) == 4
    rows = ["patientId,class", "a,Lung Opacity", "a,Lung Opacity", "b,Normal"]  # a row per box
    (tmp_path / "stage_2_detailed_class_info.csv").write_text("\n".join(rows))
    assert rsna_classes(tmp_path) == ({"Lung Opacity": 2, "Normal": 1}, 2)


def test_pretraining_sets_that_are_not_there(tmp_path):
    for count, name in ((nih_findings, "NIH"), (rsna_classes, "RSNA")):
        with pytest.raises(InputError, match=name):
            count(tmp_path)
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels\n1.png,Masss\n")
    with pytest.raises(InputError, match="'Masss'"):
        nih_findings(tmp_path)


def test_findings_of_real_images(real):
    counts, images = nih_findings(real / "nih")
    assert (images, sum(counts.values())) == (782, 1190)
    assert list(counts.items())[:2] == [("No Finding", 443), ("Pneumonia", 339)]
