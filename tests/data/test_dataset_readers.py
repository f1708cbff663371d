"""The three data sets, told apart and read: what each stage may learn from, and what counts as annotated."""

import pytest

from siimcovid.core.errors import InputError
from siimcovid.core.labels import NIH_FINDINGS
from siimcovid.data import dataset_readers
from siimcovid.synthetic.demo_competition import write_competition
from siimcovid.synthetic.pretraining_sets import write_pretraining


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict:
    """A tiny synthetic image folder of each kind."""
    base = tmp_path_factory.mktemp("sources")
    write_competition(base / "competition", train_studies=8, test_studies=1, seed=0, scale=0.05, workers=1)
    for layout in ("rsna", "nih"):
        write_pretraining(base / layout, layout, count=10, seed=0, scale=0.05, workers=1)
    return {name: base / name for name in ("competition", "rsna", "nih")}


@pytest.mark.parametrize("stage", dataset_readers.TRAINING_SETS)
@pytest.mark.parametrize("kind", ["competition", "rsna", "nih"])
def test_a_stage_takes_its_own_kinds(folders, stage, kind):
    if kind in dataset_readers.TRAINING_SETS[stage]:
        assert dataset_readers.kind_of(folders[kind], stage) == kind
    else:
        with pytest.raises(InputError, match=f"stage {stage} is trained on"):
            dataset_readers.kind_of(folders[kind], stage)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(InputError, match=r"holds no data set.*Data_Entry_2017"):
        dataset_readers.kind_of(tmp_path, "backbone")


def test_rsna_trains_on_images_with_boxes_alone(folders):
    images, problems = dataset_readers.read(folders["rsna"], "rsna")
    assert problems == ()
    boxed = images["boxes"].map(len) > 0
    assert 0 < boxed.sum() < len(images) == 10
    assert (images["annotated"] == boxed).all()
    assert all(0 <= value <= 1 for boxes in images["boxes"] for box in boxes for value in box)


def test_nih_has_its_findings(folders):
    images, problems = dataset_readers.read(folders["nih"], "nih")
    assert problems == ()
    assert len(images) == 10
    assert images["annotated"].all()
    table = images[list(NIH_FINDINGS)]
    assert ((table["No Finding"] == 1) == (table.drop(columns="No Finding").sum(axis=1) == 0)).all()
    assert images["patient_id"].nunique() <= 10


def test_the_competitions_train_part(folders):
    images, _ = dataset_readers.read(folders["competition"], "competition")
    assert set(images["split"]) == {"train"}


@pytest.mark.parametrize(("change", "said"), [({"count": 0}, "0 images"), ({"scale": 2.0}, "scale 2")])
def test_synthetic_folders_refuse(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        write_pretraining(tmp_path / "x", "nih", **{"count": 2, "seed": 0, "scale": 0.1, "workers": 1} | change)


def test_synthetic_folder_that_is_not_empty(folders):
    with pytest.raises(InputError, match="not empty"):
        write_pretraining(folders["nih"], "nih", count=2, seed=0, scale=0.1, workers=1)
