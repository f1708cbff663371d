"""Whatever stands in a table or a setting, the answer is a result that holds together or an InputError of one line."""

import json
import math
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import strategies as st

from siimcovid.core.configuration import Preset
from siimcovid.core.overrides import from_dict, override, read_settings, to_dict
from siimcovid.core.presets import DEMO, load_preset
from siimcovid.core.tables import find_table, read_csv
from siimcovid.data.competition import BOX_FAULTS, box_fractions, load, parse_boxes, read_index, write_index
from siimcovid.data.dataset_statistics import describe, nih_findings, rsna_classes
from siimcovid.data.dicom_headers import read_header_tables
from siimcovid.data.duplicates import read_duplicates
from siimcovid.data.nih_chestxray14 import load_nih
from siimcovid.data.rsna_pneumonia import load_rsna
from support.fuzzing import fuzzed
from support.strategies_tables import (
    BOXES,
    CHANGES,
    LAYOUTS,
    NAMES,
    NUMBERS,
    SLIPS,
    TEXTS,
    configurations,
    damaged,
    files,
    one_sentence,
)


def laid_out(folder: str, contents: list[tuple[str, bytes]]) -> Path:
    for name, content in contents:
        (Path(folder) / name).write_bytes(content)
    return Path(folder)


@fuzzed(40, file=st.sampled_from(sorted(LAYOUTS)).flatmap(files))
def test_a_csv_file(file):
    with tempfile.TemporaryDirectory() as name:
        folder = laid_out(name, [file])
        table = one_sentence(read_csv, folder / file[0])
        if table is not None:
            assert all(isinstance(cell, str) for cell in table.to_numpy().ravel())
            assert len(set(table.columns)) == table.shape[1]
        groups = one_sentence(read_duplicates, folder / file[0])
        assert groups is None or all(isinstance(image, str) for group in groups for image in group)


#: Sizes of all images that the strategies know.
SIZES = pd.DataFrame({"image_id": NAMES, "rows": 2000, "columns": 2500})


@fuzzed(
    60,
    tables=st.tuples(*(st.none() | files(f"{name}.csv") for name in ("train_study_level", "sample_submission"))),
    images=files("train_image_level.csv"),
    headers=st.none() | files("headers.csv"),
)
def test_a_competition_folder(tables, images, headers):
    with tempfile.TemporaryDirectory() as name:
        folder = laid_out(name, [images, *filter(None, (headers, *tables))])
        known = one_sentence(read_header_tables, [folder / headers[0]]) if headers else SIZES
        for splits in (("train",), ("train", "test")):
            found = one_sentence(load, folder, splits=splits, headers=known, progress=False)
            if found is not None:
                check_index(found.images, folder)
                assert all(problem and "\n" not in problem for problem in found.problems)


def check_index(images, folder: Path) -> None:
    """An index has each image once, boxes with area inside the image, and survives its file."""
    assert not images["image_id"].duplicated().any()
    assert (images[["rows", "columns"]] >= 0).all(axis=None)
    for box in (box for boxes in images["boxes"] for box in boxes):
        assert all(0 <= number <= 1 for number in box)
        assert box[0] < box[2]
        assert box[1] < box[3]
    json.dumps(describe(images), allow_nan=False)
    write_index(images, folder / "index.csv")
    assert read_index(folder / "index.csv").to_dict("records") == images.to_dict("records")


@fuzzed(40, labels=files("stage_2_train_labels.csv"), classes=files("stage_2_detailed_class_info.csv"))
def test_a_folder_of_the_rsna_challenge(labels, classes):
    with tempfile.TemporaryDirectory() as name:
        folder = laid_out(name, [labels, classes])
        (folder / "stage_2_train_images").mkdir()
        one_sentence(load_rsna, folder, progress=False)
        counted = one_sentence(rsna_classes, folder)
        assert counted is None or sum(counted[0].values()) >= counted[1]


@fuzzed(40, entries=files("Data_Entry_2017.csv"))
def test_a_folder_of_nih(entries):
    with tempfile.TemporaryDirectory() as name:
        folder = laid_out(name, [entries])
        (folder / "images").mkdir()
        (folder / "images" / "000a312787f2.png").write_bytes(b"")
        found = one_sentence(load_nih, folder)
        assert found is None or len(found[0]) == 1
        one_sentence(nih_findings, folder)


@fuzzed(150, text=BOXES, rows=st.integers(1, 5000), columns=st.integers(1, 5000))
def test_boxes(text, rows, columns):
    boxes = one_sentence(parse_boxes, text, "here")
    if boxes is None:
        return
    fractions, faults = box_fractions(boxes, rows, columns)
    assert set(faults) <= set(BOX_FAULTS)
    assert len(fractions) == len(boxes) or faults
    for box in fractions:
        assert all(math.isfinite(number) and 0 <= number <= 1 for number in box)
        assert box[0] < box[2]
        assert box[1] < box[3]


@fuzzed(150, changes=CHANGES)
def test_overrides(changes):
    preset = one_sentence(load_preset, "demo", changes)
    if preset is not None:
        assert from_dict(Preset, json.loads(json.dumps(to_dict(preset), allow_nan=False))) == preset
    one_sentence(override, DEMO.yolo, changes)


SET = st.tuples(SLIPS, st.sampled_from(["=", "", " = "]), NUMBERS | TEXTS).map("".join)


@fuzzed(100, texts=st.lists(SET))
def test_settings_of_the_command_line(texts):
    changes = one_sentence(read_settings, texts)
    if changes is not None:
        one_sentence(load_preset, "full", changes)


@fuzzed(60, tree=configurations())
def test_a_configuration_from_json(tree):
    preset = one_sentence(from_dict, Preset, tree)
    if preset is not None:
        assert from_dict(Preset, to_dict(preset)) == preset


INDEX = (
    b"image_id,study_id,series_id,patient_id,split,in_sample,path,rows,columns,boxes,study_label,annotated\n"
    b'a,s,r,p,train,False,/a.dcm,20,10,"[[0.1, 0.25, 0.35, 0.75]]",typical,True\nb,s,r,p,test,True,,0,0,[],,False\n'
)


@fuzzed(100, content=damaged(INDEX))
def test_a_damaged_index(content):
    with tempfile.TemporaryDirectory() as name:
        folder = laid_out(name, [("index.csv", content)])
        found = one_sentence(read_index, folder / "index.csv")
        if found is not None:
            for box in (box for boxes in found["boxes"] for box in boxes):
                assert all(0 <= number <= 1 for number in box)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_tables_of_the_strategies_are_found(name, tmp_path):
    laid_out(tmp_path, [(f"{name}.zip", b"")])
    assert find_table(tmp_path, name) == tmp_path / f"{name}.zip"
